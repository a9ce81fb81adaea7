"""Answers on whole texts and images: a class, several labels, or a number."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayft.data.cells import BadRow
from rayft.predict.base import Answer, Predictor, Row, rounded

ABOVE = 0.5
"""What a label's probability must be above for the label to be given."""


class _Texts(Predictor):
    """Texts or pairs of them through a text-classification pipeline."""

    function: str

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.labels = [pipe.model.config.id2label[index] for index in range(pipe.model.config.num_labels)]

    def size(self, row: Row) -> int:
        """See `Predictor.size`."""
        return sum(map(len, row))

    def answers(self, rows: Sequence[Row]) -> list[Answer | BadRow]:
        """See `Predictor.answers`."""
        given = [dict(zip(("text", "text_pair"), row, strict=False)) for row in rows]
        # Only tokenizers that add nothing of their own may leave nothing of a text.
        adds = self._pipe.tokenizer.num_special_tokens_to_add(len(rows[0]) == 2)
        has_tokens = [bool(adds or self._pipe.tokenizer(**one, verbose=False)["input_ids"]) for one in given]
        sound = [one for one, has in zip(given, has_tokens, strict=True) if has]
        options = {"top_k": None, "function_to_apply": self.function, "truncation": True, "batch_size": len(rows)}
        found = iter(self._pipe(sound, **options) if sound else [])
        return [self.answer(scores_of(next(found))) if has else BadRow("no tokens") for has in has_tokens]

    def answer(self, scores: dict[str, float]) -> Answer:
        """A row's answer from each label's score."""
        raise NotImplementedError


class TextClasses(_Texts):
    """One class for each text."""

    function = "softmax"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.columns = class_columns(self.labels)

    def answer(self, scores: dict[str, float]) -> Answer:
        """See `_Texts.answer`."""
        return class_answer(scores, self.labels)


class SeveralLabels(_Texts):
    """Any number of labels for each text."""

    function = "sigmoid"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.columns = {"prediction": pa.list_(pa.string()), **_probabilities(self.labels)}

    def answer(self, scores: dict[str, float]) -> Answer:
        """See `_Texts.answer`."""
        given = [label for label in self.labels if scores[label] > ABOVE]
        return (given, *(rounded(scores[label]) for label in self.labels))


class Numbers(_Texts):
    """A number for each text."""

    function = "none"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.columns = {"prediction": pa.float64()}

    def answer(self, scores: dict[str, float]) -> Answer:
        """See `_Texts.answer`."""
        return tuple(map(rounded, scores.values()))


class ImageClasses(Predictor):
    """One class for each image."""

    rows_per_chunk = 256

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.labels = [pipe.model.config.id2label[index] for index in range(pipe.model.config.num_labels)]
        self.columns = class_columns(self.labels)

    def answers(self, rows: Sequence[Row]) -> list[Answer | BadRow]:
        """See `Predictor.answers`."""
        from rayft.tasks.image_classification import open_image

        options = {"top_k": len(self.labels), "function_to_apply": "softmax", "batch_size": len(rows)}
        found = self._pipe([open_image(image) for (image,) in rows], **options)
        return [class_answer(scores_of(entries), self.labels) for entries in found]


def scores_of(entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Each label's score, from what a pipeline gives for a row; the highest first."""
    return {entry["label"]: entry["score"] for entry in entries}


def class_columns(labels: Sequence[str]) -> dict[str, pa.DataType]:
    """What is written where one class is given."""
    return {"prediction": pa.string(), "probability": pa.float64(), **_probabilities(labels)}


def class_answer(scores: dict[str, float], labels: Sequence[str]) -> Answer:
    """The likeliest class, its probability, and that of each class."""
    likeliest = max(labels, key=scores.__getitem__)
    return (likeliest, rounded(scores[likeliest]), *(rounded(scores[label]) for label in labels))


def _probabilities(labels: Sequence[str]) -> dict[str, pa.DataType]:
    return {f"probability:{label}": pa.float64() for label in labels}

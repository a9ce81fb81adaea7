"""A tag for each word, however long the row."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayft.data.cells import BadRow
from rayft.predict.base import Answer, Predictor, Row, rounded

Tagged = dict[int, tuple[str, float]]
"""Tag and probability by the number of the word."""


class Tags(Predictor):
    """A tag for each word: that of its first sub-word, as in training.

    What a model was trained to read at once may be shorter than a row. The row is then read in several windows, each of
    which begins where the one before it ended; training cuts such rows off.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.columns = {"prediction": pa.list_(pa.string()), "probability": pa.list_(pa.float64())}

    def size(self, row: Row) -> int:
        """See `Predictor.size`."""
        return len(row[0])

    def answers(self, rows: Sequence[Row]) -> list[Answer | BadRow]:
        """See `Predictor.answers`; a word that the tokenizer leaves nothing of has no tag."""
        encoded = self._pipe.tokenizer(
            [words for (words,) in rows],
            is_split_into_words=True,
            truncation=True,
            return_overflowing_tokens=True,
            verbose=False,
        )
        row_of = encoded.pop("overflow_to_sample_mapping")
        tagged: list[Tagged] = [{} for _ in rows]
        for start in range(0, len(row_of), len(rows)):  # a long row's windows are many batches
            windows = range(start, min(start + len(rows), len(row_of)))
            for window, found in zip(windows, self._tag(encoded, windows), strict=True):
                tagged[row_of[window]] = found | tagged[row_of[window]]  # the window in which a word begins has it
        return [_answer(len(words), own) for (words,), own in zip(rows, tagged, strict=True)]

    def _tag(self, encoded: Any, windows: range) -> list[Tagged]:
        """The tags of the words that begin in each of some windows, or go on there."""
        import torch

        own = {name: [values[window] for window in windows] for name, values in encoded.items()}
        batch = self._pipe.tokenizer.pad(own, return_tensors="pt").to(self._pipe.device)
        with torch.inference_mode():
            probabilities = self._pipe.model(**batch).logits.float().softmax(dim=-1)
        highest, ids = (values.tolist() for values in probabilities.max(dim=-1))
        names = self._pipe.model.config.id2label
        found: list[Tagged] = []
        for row, window in enumerate(windows):
            found.append({})
            for place, word in enumerate(encoded.word_ids(window)):
                if word is not None and word not in found[-1]:
                    found[-1][word] = (names[ids[row][place]], rounded(highest[row][place]))
        return found


def _answer(words: int, tagged: Tagged) -> Answer | BadRow:
    if not tagged:
        return BadRow("no tokens")
    pairs = [tagged.get(word, (None, None)) for word in range(words)]
    return [tag for tag, _ in pairs], [probability for _, probability in pairs]

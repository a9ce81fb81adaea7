"""A tag for each word, such as names of people and places."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, DataConfig, Hyperparameters
from rayft.data.cells import LONE_SURROGATE, UNDECODABLE, BadRow, is_missing, label_of
from rayft.data.check import Table
from rayft.data.encoded import IGNORED, ROWS_PER_BATCH, EncodedData, EncodedSplit
from rayft.data.formats import READERS, Part, first_places, text_lines
from rayft.data.labels import class_faults, class_names
from rayft.data.load import SplitName
from rayft.data.splits import Rows
from rayft.errors import DataError, Fault, ModelError
from rayft.tasks.base import Encoded, Preprocessor, Task, batches
from rayft.tasks.classes import confusion_matrix
from rayft.tasks.texts import count_truncated, token_columns

if TYPE_CHECKING:
    from torch import Tensor

DOCUMENT_START = "-DOCSTART-"
CONLL = (".conll", ".iob", ".bio", ".txt")
CELL = re.compile(r"[^ \t]+")
"""Of a line; other white space, such as a no-break space, is part of a word."""


class TokenClassification(Task):
    """A tag for each word. A word's tag is that of its first sub-word; the others are neither trained nor scored."""

    name = "token-classification"
    pipeline = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    model_types = "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"

    def input_columns(self, columns: Columns) -> dict[str, str]:
        """See `Task.input_columns`."""
        return {"tokens": columns.tokens}

    def label_columns(self, columns: Columns) -> tuple[str, ...]:
        """See `Task.label_columns`."""
        return (columns.tags,)

    def read_inputs(self, cells: Sequence[Any], part: Part) -> tuple[Any, ...]:
        """See `Task.read_inputs`."""
        words = cells[0]
        if words is None or (isinstance(words, list) and not words):
            raise BadRow("no words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise BadRow(f"words must be a list of texts, but are {str(words)[:40]!r}", droppable=False)
        if any(is_missing(word) for word in words):
            raise BadRow("an empty word")
        if any(LONE_SURROGATE.search(word) for word in words):
            raise BadRow(UNDECODABLE)
        return (words,)

    def read_label(self, cells: Sequence[Any], inputs: tuple[Any, ...], columns: Columns) -> list[str]:
        """See `Task.read_label`; a tag for each word."""
        tags, words = cells[0], inputs[0]
        if tags is None:
            raise BadRow("missing tags")
        if not isinstance(tags, list):
            raise BadRow(f"tags must be a list, but are {str(tags)[:40]!r}", droppable=False)
        if len(tags) != len(words):
            raise BadRow(f"{len(tags)} tags for {len(words)} words")
        return [label_of(tag) for tag in tags]

    def label_names(self, labels: Sequence[Any], columns: Columns) -> tuple[str, ...]:
        """See `Task.label_names`."""
        return class_names(tag for tags in labels for tag in tags)

    def label_faults(self, tables: Mapping[SplitName, Table], columns: Columns) -> list[Fault]:
        """See `Task.label_faults`."""
        return class_faults(tables, lambda tags: tags, "tag")

    def label_ids(self, labels: Sequence[Any], names: Sequence[str]) -> list[list[int]]:
        """See `Task.label_ids`; an id for each word."""
        ids = {name: index for index, name in enumerate(names)}
        return [[ids[tag] for tag in tags] for tags in labels]

    def facts(self, preprocessor: Preprocessor, config: DataConfig, train: Rows) -> dict[str, Any]:
        """See `Task.facts`."""
        if not preprocessor.is_fast:
            rule = "must come with a fast tokenizer for token-classification, which alone tells a word's sub-words"
            raise ModelError([Fault(preprocessor.name_or_path, rule, "model")])
        return {}

    def encode(
        self, rows: Rows, preprocessor: Preprocessor, config: DataConfig, facts: Mapping[str, Any]
    ) -> Iterator[Encoded]:
        """See `Task.encode`."""
        for start, part in batches(rows, ROWS_PER_BATCH):
            encoded = preprocessor(
                part.inputs["tokens"],
                is_split_into_words=True,
                truncation=True,
                max_length=config.max_length,
                padding=False,
                return_attention_mask=False,
            )
            assert isinstance(part.labels, list)
            targets = [_targets(encoded.word_ids(row), tags) for row, tags in enumerate(part.labels)]
            columns = token_columns(encoded)
            columns["targets"] = pa.array(targets, pa.list_(pa.int32()))
            empty = [start + row for row, own in enumerate(targets) if all(target == IGNORED for target in own)]
            yield Encoded(columns, count_truncated(encoded, config.max_length), tuple(empty))

    def collate(
        self, split: EncodedSplit, rows: NDArray[np.int64], data: EncodedData, hp: Hyperparameters | None = None
    ) -> "dict[str, Tensor]":
        """See `Task.collate`."""
        from rayft.data.batches import padded, real_tokens, token_inputs

        batch = token_inputs(split, rows, data.pad_token_id)
        batch["labels"] = padded(split, "targets", rows, real_tokens(split, rows), IGNORED)
        return batch

    def row_weights(self, split: EncodedSplit, data: EncodedData) -> NDArray[np.float64]:
        """See `Task.row_weights`: a row's words."""
        return split.target_counts.astype(np.float64)

    def loss_sum(self, logits: "Tensor", labels: "Tensor", hp: Hyperparameters, data: EncodedData) -> "Tensor":
        """See `Task.loss_sum`: cross-entropy over words."""
        from torch.nn import functional

        return functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=hp.label_smoothing,
            reduction="sum",
        )

    def output_size(self, data: EncodedData) -> int:
        """See `Task.output_size`: the loss, and the predicted tag of each token."""
        splits = (data.train, data.validation, data.test)
        return 1 + max(int(split.lengths.max()) for split in splits if split is not None)

    def outputs(self, logits: "Tensor", labels: "Tensor | None") -> "Tensor":
        """See `Task.outputs`."""
        import torch
        from torch.nn import functional

        assert labels is not None
        loss = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(
            dim=1
        )
        return torch.cat([loss.unsqueeze(1), logits.argmax(dim=-1).float()], dim=1)

    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """See `Task.metrics`; all but loss and accuracy count whole entities, as seqeval does."""
        true, predicted = self._tags(outputs, split)
        names = data.label_names
        hits = found = wanted = correct = 0
        for true_row, predicted_row in zip(true, predicted, strict=True):
            true_spans = entities([names[tag] for tag in true_row])
            predicted_spans = entities([names[tag] for tag in predicted_row])
            hits += len(true_spans & predicted_spans)
            wanted += len(true_spans)
            found += len(predicted_spans)
            correct += int((true_row == predicted_row).sum())
        words = int(split.target_counts.sum())
        return {
            "loss": float(outputs[:, 0].astype(np.float64).sum() / words),
            "f1": 2 * hits / (wanted + found) if wanted + found else 0.0,
            "precision": hits / found if found else 0.0,
            "recall": hits / wanted if wanted else 0.0,
            "accuracy": correct / words,
        }

    def confusion(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> NDArray[np.int64]:
        """See `Task.confusion`; counts of words."""
        true, predicted = self._tags(outputs, split)
        return confusion_matrix(np.concatenate(true), np.concatenate(predicted), len(data.label_names))

    def _tags(
        self, outputs: NDArray[Any], split: EncodedSplit
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
        """The true and the predicted tag of each row's words."""
        true, predicted = [], []
        for row in range(len(split)):
            targets = split.ragged("targets", row)
            scored = targets != IGNORED
            true.append(targets[scored].astype(np.int64))
            predicted.append(outputs[row, 1 : 1 + len(targets)][scored].astype(np.int64))
        return true, predicted


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The (kind, first word, last word) of each entity, as conlleval and seqeval's default mode read any tags.

    A tag's first letter is its prefix and what follows a hyphen its kind. An entity begins with B or S, or with any
    other tag after another kind or none, goes on with the same kind, and ends with E or S at the latest. Tags without a
    prefix are read by the same rules, letter by letter.
    """
    found = set()
    begin, last_prefix, last_kind = 0, "O", ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        is_other = kind != last_kind
        goes_on = not (last_prefix in "BI" and prefix in "BSO")
        if last_prefix in "ES" or not goes_on or (last_prefix not in "O." and is_other):
            found.add((last_kind, begin, index - 1))
        if prefix in "BS" or (last_prefix in "ESO" and prefix in "EI") or (prefix not in "O." and is_other):
            begin = index
        last_prefix, last_kind = prefix, kind
    return found


def _targets(word_ids: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    targets, last = [], None
    for word in word_ids:
        targets.append(IGNORED if word is None or word == last else tags[word])
        last = word
    return targets


def _read_conll(path: Path, name: str, wanted: Sequence[str]) -> Part:
    """A word and its tag per line, first and last of its columns, and a blank line after each sentence."""
    sentences: list[list[list[str]]] = []
    numbers: list[int] = []
    short: list[str] = []
    goes_on = False
    for number, line in enumerate(text_lines(path, name), start=1):
        cells = CELL.findall(line) if line.strip() else []
        if not cells or cells[0] == DOCUMENT_START or (not goes_on and line.startswith("# ")):
            goes_on = False
            continue
        if not goes_on:
            sentences.append([])
            numbers.append(number)
        goes_on = True
        sentences[-1].append(cells)
        if len(cells) < 2 <= len(wanted):
            short.append(f"{name}:{number}")
    if short:
        rule = f"every line must have a word and a tag, but {len(short)} have one cell: {first_places(short)}"
        raise DataError([Fault(name, rule)])
    cells_of = {wanted[0]: [[cells[0] for cells in rows] for rows in sentences]}
    if len(wanted) > 1:
        cells_of[wanted[1]] = [[cells[-1] for cells in rows] for rows in sentences]
    return Part(name, tuple(cells_of), cells_of, numbers, by_line=True)


TokenClassification.readers = {**READERS, **dict.fromkeys(CONLL, _read_conll)}

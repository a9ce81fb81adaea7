"""Encoded rows on disk: written once per sweep, as Arrow files that every trial on a node maps into the same memory.

    encoded/
      train.arrow  validation.arrow  test.arrow  unlabeled.arrow      the last two if there are such rows
      raw/validation.arrow  raw/test.arrow                            the rows before anything was done to them
      manifest.json                                                   written last: without it the folder is unfinished

The columns of a file, of which each task has some:
    input_ids       list<int32>, special tokens included, not padded
    token_type_ids  list<int8>, if the tokenizer gives them
    position_ids    list<int32>, which start again at 0 with each text of a block
    targets         list<int32>, what is to be predicted at each token, -100 where nothing is
    pixels          fixed_size_binary, uint8 of [channels, height, width]
    label           int64, an index into the manifest's label_names; or float32, a number; or fixed_size_list<float32>,
                    0 or 1 for each name
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from rayft.config import TaskName
from rayft.data.load import SplitName
from rayft.errors import Fault, RunError

ROWS_PER_BATCH = 4096
"""Rows that are tokenised together and become one record batch; all but a file's last have this many."""
MANIFEST, RAW = "manifest.json", "raw"
IGNORED = -100
"""A target that isn't one, as torch's cross-entropy has it."""


class EncodedSplit:
    """The rows of one split, read from a memory map.

    Attributes:
        name: The split's name.
        lengths: Tokens of each row, int64 of shape [rows]; 1 where rows aren't made of tokens.
        labels: Of shape [rows], ids or numbers, or [rows, labels]; None where there are none, or one for each token.
        columns: The file's columns.
    """

    def __init__(self, name: SplitName, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.name = name
        self.columns: tuple[str, ...] = tuple(reader.schema.names)
        self._rows: int = sum(batch.num_rows for batch in batches)
        self._rows_per_batch: int = batches[0].num_rows
        self._ragged: dict[str, list[_Ragged]] = {}
        self._binary: dict[str, list[NDArray[np.uint8]]] = {}
        self.labels: NDArray[Any] | None = None
        for column in reader.schema:
            arrays = [batch.column(column.name) for batch in batches]
            if column.name == "label":
                self.labels = np.concatenate([_dense(array) for array in arrays])
            elif pa.types.is_fixed_size_binary(column.type):
                self._binary[column.name] = [_bytes(array) for array in arrays]
            else:
                self._ragged[column.name] = [_Ragged.of(array) for array in arrays]
        self.lengths: NDArray[np.int64] = np.ones(self._rows, dtype=np.int64)
        if self.has_tokens:
            diffs = [np.diff(part.offsets) for part in self._ragged["input_ids"]]
            self.lengths = np.concatenate(diffs).astype(np.int64)

    def __len__(self) -> int:
        return self._rows

    @property
    def has_tokens(self) -> bool:
        """Whether rows are made of tokens."""
        return "input_ids" in self._ragged

    def ragged(self, column: str, row: int) -> NDArray[Any]:
        """A row of a list column, without padding; a read-only view of the memory map."""
        batch, index = divmod(row, self._rows_per_batch)
        return self._ragged[column][batch][index]

    def binary(self, column: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some rows of a column of equally many bytes, [rows, bytes]."""
        parts = self._binary[column]
        return np.stack([parts[row // self._rows_per_batch][row % self._rows_per_batch] for row in rows.tolist()])

    def content(self) -> Iterator[NDArray[Any]]:
        """All that the rows are made of but their labels and targets, for a digest."""
        for name in sorted(self._ragged.keys() - {"targets"}):
            for part in self._ragged[name]:
                yield part.offsets
                yield part.values
        for name in sorted(self._binary):
            yield from self._binary[name]

    @cached_property
    def vocabulary(self) -> NDArray[np.int64]:
        """The token ids that occur in any row, sorted."""
        parts = self._ragged["input_ids"]
        occurs = np.zeros(1 + max(int(part.values.max()) for part in parts), dtype=bool)
        for part in parts:
            occurs[part.values] = True
        return np.flatnonzero(occurs)

    @cached_property
    def target_counts(self) -> NDArray[np.int64]:
        """How many tokens of each row have a target, [rows]."""
        return np.concatenate([part.sums(part.values != IGNORED) for part in self._ragged["targets"]])


@dataclass(frozen=True, eq=False)
class EncodedData:
    """All encoded splits of a sweep.

    Attributes:
        train: Labelled rows.
        validation: Labelled rows.
        test: Labelled rows, if the sweep has any for this.
        unlabeled: Rows without labels, if the sweep has any.
        label_names: `label_names[id]` is the name of a label id; none if labels are no classes.
        pad_token_id: What fills rows up, the tokenizer's.
        task: What the rows are for.
        facts: What the task needs to know of them beside.
    """

    train: EncodedSplit
    validation: EncodedSplit
    test: EncodedSplit | None
    unlabeled: EncodedSplit | None
    label_names: tuple[str, ...]
    pad_token_id: int
    task: TaskName = "text-classification"
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "EncodedData":
        """Maps what `encode_splits` wrote.

        Raises:
            RunError: The folder is unfinished or damaged.
        """
        manifest = _Manifest.read(folder / MANIFEST)

        def split(name: SplitName) -> EncodedSplit | None:
            summary = manifest.splits.get(name)
            return None if summary is None else _open_split(name, folder / f"{name}.arrow", summary.rows)

        train, validation = split("train"), split("validation")
        if train is None or validation is None:
            raise RunError([Fault(str(folder / MANIFEST), "must have the splits train and validation")])
        names, padding = manifest.label_names, manifest.pad_token_id
        return cls(train, validation, split("test"), split("unlabeled"), names, padding, manifest.task, manifest.facts)


class _SplitSummary(BaseModel):
    rows: int


class _Manifest(BaseModel):
    """What reading takes of the manifest."""

    task: TaskName
    label_names: tuple[str, ...]
    pad_token_id: int
    facts: dict[str, Any]
    splits: dict[str, _SplitSummary]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises a RunError if the file isn't there or damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            rule = f"the encoded data is unfinished, it has no {path.name}"
            raise RunError([Fault(str(path.parent), rule)]) from error
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"]))
            rule = f"is damaged: {f'{place}: ' if place else ''}{found['msg']}"
            raise RunError([Fault(str(path), rule)]) from error


@dataclass(frozen=True)
class _Ragged:
    """A list column: row i is values[offsets[i]:offsets[i + 1]]."""

    values: NDArray[Any]
    offsets: NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ListArray) -> "_Ragged":
        return cls(column.values.to_numpy(), column.offsets.to_numpy())

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def sums(self, values: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The sum of other values over each row."""
        totals = np.concatenate([[0], np.cumsum(values)])
        sums: NDArray[np.int64] = totals[self.offsets[1:]] - totals[self.offsets[:-1]]
        return sums


def _dense(array: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(array.type):
        flat: NDArray[Any] = array.values.to_numpy()
        return flat.reshape(len(array), array.type.list_size)
    numbers: NDArray[Any] = array.to_numpy()
    return numbers


def _bytes(array: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    return np.frombuffer(array.buffers()[1], np.uint8).reshape(len(array), array.type.byte_width)


def _open_split(name: SplitName, path: Path, rows: int) -> EncodedSplit:
    try:
        split = EncodedSplit(name, path)
    except (OSError, pa.ArrowException) as error:
        raise RunError([Fault(str(path), f"can't be read as encoded data: {error}")]) from error
    if len(split) != rows:
        raise RunError([Fault(str(path), f"must have the {rows} rows of {MANIFEST}, but has {len(split)}")])
    return split

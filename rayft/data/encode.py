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

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import DataConfig, TaskName
from rayft.data.formats import first_places
from rayft.data.load import SplitName
from rayft.data.quality import class_counts
from rayft.data.splits import Splits
from rayft.errors import DataError, Fault, RunError

if TYPE_CHECKING:
    from rayft.tasks.base import Encoded, Task

ROWS_PER_BATCH = 4096
"""Rows that are tokenised together and become one record batch; all but a file's last have this many."""
MANIFEST, RAW = "manifest.json", "raw"
IGNORED = -100
"""A target that isn't one, as torch's cross-entropy has it."""


def encode_splits(splits: Splits, task: "Task", preprocessor: Any, config: DataConfig, folder: Path) -> list[str]:
    """Encodes all splits into `folder`, replacing what is there.

    Args:
        splits: The rows.
        task: What they are for.
        preprocessor: The model's tokenizer or image processor.
        config: The data section, for how long a row may be and how classes are weighted.
        folder: Where the files go; made if it doesn't exist.

    Returns:
        What the user should know: how much was cut off.

    Raises:
        DataError: Rows have no token at all, so that no model can read them.
        ModelError: The preprocessor can't do what the task needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # from here until the end the folder counts as unfinished
    shutil.rmtree(folder / RAW, ignore_errors=True)
    (folder / RAW).mkdir()
    facts = task.facts(preprocessor, config, splits.train)
    if config.class_weights == "balanced":
        counts = np.array(class_counts(splits.train.labels, splits.label_names))
        # A column of 0 and 1 may have no row of train.
        facts["class_weights"] = (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()
    facts["stratified"] = config.sampling == "stratified"
    summaries, faults, notes = {}, [], []
    for split, rows in splits.present().items():
        summary = _write_split(task.encode(rows, preprocessor, config, facts), folder / f"{split}.arrow")
        summaries[split] = {"columns": summary.columns, "rows": summary.rows, "tokens": summary.tokens}
        summaries[split] |= {"truncated": summary.truncated}
        if not summary.rows:
            rule = f"none of its {len(rows)} rows has a token to be predicted within data.max_length"
            faults.append(Fault(split, f"{rule} {config.max_length}", f"data.{split}"))
        if summary.empty:
            texts = first_places([repr(next(iter(rows.inputs.values()))[row])[:40] for row in summary.empty])
            faults.append(Fault(split, f"{len(summary.empty)} of {len(rows)} texts have no tokens: {texts}"))
        if summary.truncated:
            part = f"{summary.truncated} of {len(rows)} rows ({summary.truncated / len(rows):.0%})"
            notes.append(f"{split}: {part} are cut to data.max_length {config.max_length}")
        if split in ("validation", "test"):
            _write_raw(task.raw(rows), folder / RAW / f"{split}.arrow")
    if faults:
        raise DataError(faults)
    manifest = {
        "task": splits.task,
        "label_names": splits.label_names,
        "max_length": config.max_length,
        "pad_token_id": getattr(preprocessor, "pad_token_id", None) or 0,
        "facts": facts,
        "splits": summaries,
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)
    return notes


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
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError([Fault(str(folder), f"the encoded data is unfinished, it has no {MANIFEST}")]) from error
        except ValueError as error:
            raise RunError([Fault(str(folder / MANIFEST), f"doesn't parse as JSON: {error}")]) from error

        def split(name: SplitName) -> EncodedSplit | None:
            summary = manifest["splits"].get(name)
            return None if summary is None else _open_split(name, folder / f"{name}.arrow", summary["rows"])

        train, validation = split("train"), split("validation")
        assert train is not None and validation is not None
        names, padding = tuple(manifest["label_names"]), manifest["pad_token_id"]
        task, facts = manifest["task"], manifest["facts"]
        return cls(train, validation, split("test"), split("unlabeled"), names, padding, task, facts)


@dataclass
class _Summary:
    """What encoding a split has shown; `empty` are the rows without a token."""

    columns: list[str] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    empty: list[int] = field(default_factory=list)


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


def _write_split(encoded: "Iterator[Encoded]", path: Path) -> _Summary:
    summary = _Summary()
    temporary = path.with_name(f"{path.name}.tmp")
    writer: pa.ipc.RecordBatchFileWriter | None = None
    try:
        for part in encoded:
            batch = pa.RecordBatch.from_pydict(part.columns)
            if writer is None:
                writer = pa.ipc.new_file(str(temporary), batch.schema)
                summary.columns = batch.schema.names
            writer.write_batch(batch)
            summary.rows += batch.num_rows
            if "input_ids" in part.columns:
                summary.tokens += len(part.columns["input_ids"].values)
            summary.truncated += part.truncated
            summary.empty += part.empty
    finally:
        if writer is not None:
            writer.close()
    if writer is not None:
        temporary.replace(path)
    return summary


def _write_raw(columns: dict[str, pa.Array], path: Path) -> None:
    table = pa.table(columns)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)

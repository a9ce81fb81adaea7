"""Tokenises the rows once per sweep, into Arrow files that every trial on a node maps into the same memory.

    encoded/
      train.arrow  validation.arrow  test.arrow  unlabeled.arrow      the last two if there are such rows
      manifest.json                                                   written last: without it the folder is unfinished

The columns of a file:
    input_ids       list<int32>, special tokens included, not padded
    token_type_ids  list<int8>, if the tokenizer gives them
    label           int64, an index into the manifest's label_names; not in unlabeled.arrow
    text            the raw text
    text_pair       the raw second text, if the task has pairs
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.data.formats import first_places
from rayft.data.load import SplitName
from rayft.data.splits import Rows, Splits
from rayft.errors import DataError, Fault, RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_BATCH = 4096
"""Rows that are tokenised together and become one record batch; all but a file's last have this many."""
MANIFEST = "manifest.json"


def encode_splits(splits: Splits, tokenizer: "PreTrainedTokenizerBase", max_length: int, folder: Path) -> None:
    """Tokenises all splits into `folder`, replacing what is there.

    Args:
        splits: The rows.
        tokenizer: The model's tokenizer.
        max_length: Tokens per row, special tokens included; of pairs the longer text is cut first.
        folder: Where the files go; made if it doesn't exist.

    Raises:
        DataError: Rows have no token at all, so that no model can read them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # from here until the end the folder counts as unfinished
    summaries = {}
    faults = []
    for split, rows in splits.present().items():
        summary = _write_split(rows, tokenizer, max_length, folder / f"{split}.arrow")
        summaries[split] = {
            "columns": summary.columns,
            "rows": len(rows),
            "tokens": summary.tokens,
            "truncated": summary.truncated,
        }
        if summary.empty:
            texts = first_places([repr(rows.texts[row][:40]) for row in summary.empty])
            faults.append(Fault(split, f"{len(summary.empty)} of {len(rows)} texts have no tokens: {texts}"))
    if faults:
        raise DataError(faults)
    manifest = {
        "label_names": splits.label_names,
        "max_length": max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "splits": summaries,
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


class EncodedSplit:
    """The rows of one split, read from a memory map.

    Attributes:
        name: The split's name.
        lengths: Tokens of each row, int64 of shape [rows].
        labels: Label ids, int64 of shape [rows]; None for unlabeled rows.
        columns: The file's columns.
    """

    def __init__(self, name: SplitName, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.name = name
        self.columns: tuple[str, ...] = tuple(reader.schema.names)
        self._table = pa.Table.from_batches(batches)
        self._rows_per_batch: int = batches[0].num_rows
        self._input_ids = [_Ragged.of(batch.column("input_ids")) for batch in batches]
        self._token_type_ids = (
            [_Ragged.of(batch.column("token_type_ids")) for batch in batches]
            if "token_type_ids" in self.columns
            else None
        )
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(part.offsets) for part in self._input_ids]).astype(
            np.int64
        )
        self.labels: NDArray[np.int64] | None = self._table["label"].to_numpy() if "label" in self.columns else None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def has_token_type_ids(self) -> bool:
        """Whether the tokenizer gave token type ids."""
        return self._token_type_ids is not None

    def input_ids(self, row: int) -> NDArray[np.int32]:
        """A row's token ids, without padding; a read-only view of the memory map."""
        batch, index = divmod(row, self._rows_per_batch)
        return self._input_ids[batch][index]

    def token_type_ids(self, row: int) -> NDArray[np.int8]:
        """A row's token type ids, as long as its token ids; a read-only view of the memory map."""
        assert self._token_type_ids is not None
        batch, index = divmod(row, self._rows_per_batch)
        return self._token_type_ids[batch][index]

    @cached_property
    def vocabulary(self) -> NDArray[np.int64]:
        """The token ids that occur in any row, sorted."""
        occurs = np.zeros(1 + max(int(part.values.max()) for part in self._input_ids), dtype=bool)
        for part in self._input_ids:
            occurs[part.values] = True
        return np.flatnonzero(occurs)

    def texts(self) -> list[str]:
        """The raw first text of each row."""
        return list(self._table["text"].to_pylist())

    def pairs(self) -> list[str] | None:
        """The raw second text of each row, if the task has pairs."""
        return list(self._table["text_pair"].to_pylist()) if "text_pair" in self.columns else None


@dataclass(frozen=True)
class EncodedData:
    """All encoded splits of a sweep.

    Attributes:
        train: Labelled rows.
        validation: Labelled rows.
        test: Labelled rows, if the sweep has any for this.
        unlabeled: Rows without labels, if the sweep has any.
        label_names: `label_names[id]` is the name of a label id.
        pad_token_id: What fills rows up, the tokenizer's.
    """

    train: EncodedSplit
    validation: EncodedSplit
    test: EncodedSplit | None
    unlabeled: EncodedSplit | None
    label_names: tuple[str, ...]
    pad_token_id: int

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
        label_names, pad_token_id = tuple(manifest["label_names"]), manifest["pad_token_id"]
        return cls(train, validation, split("test"), split("unlabeled"), label_names, pad_token_id)


@dataclass
class _Summary:
    """What tokenising a split has shown; `empty` are the rows without a token."""

    columns: list[str]
    tokens: int
    truncated: int
    empty: list[int]


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


def _open_split(name: SplitName, path: Path, rows: int) -> EncodedSplit:
    try:
        split = EncodedSplit(name, path)
    except (OSError, pa.ArrowException) as error:
        raise RunError([Fault(str(path), f"can't be read as encoded data: {error}")]) from error
    if len(split) != rows:
        raise RunError([Fault(str(path), f"must have the {rows} rows of {MANIFEST}, but has {len(split)}")])
    return split


def _write_split(rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, path: Path) -> _Summary:
    summary = _Summary(columns=[], tokens=0, truncated=0, empty=[])
    temporary = path.with_name(f"{path.name}.tmp")
    batches = _encoded_batches(rows, tokenizer, max_length, summary)
    first = next(batches)
    summary.columns = first.schema.names
    with pa.ipc.new_file(str(temporary), first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    temporary.replace(path)
    return summary


def _encoded_batches(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, summary: _Summary
) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), ROWS_PER_BATCH):
        part = slice(start, start + ROWS_PER_BATCH)
        pairs = None if rows.pairs is None else rows.pairs[part]
        encoded = tokenizer(
            rows.texts[part], pairs, truncation=True, max_length=max_length, padding=False, return_attention_mask=False
        )
        summary.tokens += sum(map(len, encoded["input_ids"]))
        summary.truncated += _count_truncated(encoded, max_length)
        summary.empty += [start + index for index, ids in enumerate(encoded["input_ids"]) if not ids]
        yield _record_batch(rows, part, encoded)


def _record_batch(rows: Rows, part: slice, encoded: Any) -> pa.RecordBatch:
    columns = {"input_ids": pa.array(encoded["input_ids"], pa.list_(pa.int32()))}
    if "token_type_ids" in encoded:
        columns["token_type_ids"] = pa.array(encoded["token_type_ids"], pa.list_(pa.int8()))
    if rows.labels is not None:
        columns["label"] = pa.array(rows.labels[part])
    columns["text"] = pa.array(rows.texts[part], pa.string())
    if rows.pairs is not None:
        columns["text_pair"] = pa.array(rows.pairs[part], pa.string())
    return pa.RecordBatch.from_pydict(columns)


def _count_truncated(encoded: Any, max_length: int) -> int:
    """Rows that lost tokens; slow tokenizers don't say, so there it is the rows that fill `max_length`."""
    if encoded.is_fast:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return sum(len(ids) == max_length for ids in encoded["input_ids"])

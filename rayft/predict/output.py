"""Files of a file's rows and what was predicted for them, each complete or not there."""

import csv
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from rayft.data.cells import LONE_SURROGATE
from rayft.data.chunks import Chunk, ChunkedFile
from rayft.errors import DataError, Fault

NO_TAG = "_"
"""What stands for a missing tag among words in one cell, as in CoNLL-U."""
_NOT_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Lone surrogates that stand for no byte of a file."""
_REPLACEMENT = "\ufffd"

Types = Mapping[str, pa.DataType]


class Writer(ABC):
    """Writes the rows of a file, chunk after chunk, with further columns."""

    def __init__(self, path: Path, source: ChunkedFile, added: Types, words: frozenset[str]) -> None:
        """Opens a new file.

        Args:
            path: Where.
            source: Whose rows are written again.
            added: The further columns and their types.
            words: Columns of lists of words, or of something for each word.
        """
        self._source, self._words, self._names = source, words, [*source.columns, *added]

    @abstractmethod
    def write(self, chunk: Chunk, added: Mapping[str, list[Any]]) -> None:
        """Writes some rows.

        Raises:
            DataError: A cell is of a kind that the format can't hold.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the file."""

    def _rows(self, chunk: Chunk, added: Mapping[str, list[Any]]) -> Iterator[tuple[Any, ...]]:
        return zip(*map(chunk.cells, self._source.columns), *added.values(), strict=True)


class _Csv(Writer):
    """Lists are JSON in a cell, but for those of words, which have spaces between them."""

    delimiter: ClassVar[str] = ","

    def __init__(self, path: Path, source: ChunkedFile, added: Types, words: frozenset[str]) -> None:
        super().__init__(path, source, added, words)
        # Bytes that are not UTF-8 came as lone surrogates, and leave as the bytes that they were.
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        # Before Python 3.13 a carriage return is only quoted where the line's end has one.
        self._writer = csv.writer(_Lines(self._file), delimiter=self.delimiter, lineterminator="\r\n")
        self._writer.writerow(map(_writable, self._names))

    def write(self, chunk: Chunk, added: Mapping[str, list[Any]]) -> None:
        """See `Writer.write`."""
        self._writer.writerows(map(self._cell, cells, self._names) for cells in self._rows(chunk, added))

    def close(self) -> None:
        """See `Writer.close`."""
        self._file.close()

    def _cell(self, cell: Any, column: str) -> str:
        if cell is None:
            return ""
        if isinstance(cell, str):
            return _writable(cell)
        if isinstance(cell, list) and column in self._words:
            return _writable(" ".join(NO_TAG if word is None else str(word) for word in cell))
        if isinstance(cell, list | dict | bool | bytes):
            return _writable(_json(cell, self._source.name, ascii=False))
        return str(cell)


class _Tsv(_Csv):
    delimiter = "\t"


class _Lines:
    """Gives a csv writer's lines another end."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """Takes one line."""
        self._file.write(line.removesuffix("\r\n") + "\n")


class _JsonLines(Writer):
    """An object on each line."""

    before, between, after = "", "\n", "\n"

    def __init__(self, path: Path, source: ChunkedFile, added: Types, words: frozenset[str]) -> None:
        super().__init__(path, source, added, words)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._next = self.before

    def write(self, chunk: Chunk, added: Mapping[str, list[Any]]) -> None:
        """See `Writer.write`."""
        for cells in self._rows(chunk, added):
            values = (None if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells)
            row = dict(zip(self._names, values, strict=True))
            line = _json(row, self._source.name, ascii=False)
            escaped = LONE_SURROGATE.search(line) is not None  # JSON has a way to write what UTF-8 can't
            self._file.write(self._next + (_json(row, self._source.name, ascii=True) if escaped else line))
            self._next = self.between

    def close(self) -> None:
        """See `Writer.close`."""
        with self._file:
            self._file.write(self.after)


class _Json(_JsonLines):
    """A list of objects."""

    before, between, after = "[\n", ",\n", "\n]\n"


class _Parquet(Writer):
    """Columns keep the types that they have in a Parquet file, and get the narrowest that fits those of others."""

    def __init__(self, path: Path, source: ChunkedFile, added: Types, words: frozenset[str]) -> None:
        super().__init__(path, source, added, words)
        own = source.schema or _inferred(source)
        self._schema = pa.schema([*own, *(pa.field(name, kind) for name, kind in added.items())], own.metadata)
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, chunk: Chunk, added: Mapping[str, list[Any]]) -> None:
        """See `Writer.write`."""
        cells = {name: chunk.cells(name) for name in ([] if chunk.table else self._source.columns)}
        kept = chunk.table.columns if chunk.table else []
        made = [
            pa.array(_without_surrogates(column), self._schema.field(name).type)
            for name, column in {**cells, **added}.items()
        ]
        self._writer.write_table(pa.Table.from_arrays([*kept, *made], schema=self._schema))

    def close(self) -> None:
        """See `Writer.close`."""
        self._writer.close()


WRITERS: dict[str, type[Writer]] = {
    ".csv": _Csv,
    ".tsv": _Tsv,
    ".json": _Json,
    ".jsonl": _JsonLines,
    ".parquet": _Parquet,
}
"""What writes a file, by suffix."""


@contextmanager
def writing(to: Path, source: ChunkedFile, added: Types, words: frozenset[str]) -> Iterator[Writer]:
    """A writer of a file that appears once all is written, and doesn't if anything goes wrong."""
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        writer = WRITERS[to.suffix.lower()](partial, source, added, words)
        try:
            yield writer
        finally:
            writer.close()
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)


def _inferred(source: ChunkedFile) -> pa.Schema:
    """Types that hold every cell of a file.

    Raises:
        DataError: A column has cells of different kinds.
    """
    if source.untyped:
        return pa.schema([(name, pa.string()) for name in source.columns])
    schema = pa.schema([(name, pa.null()) for name in source.columns])
    for chunk in source.read():
        for index, name in enumerate(source.columns):
            try:
                kind = pa.array(_without_surrogates(chunk.cells(name))).type
                own = pa.schema([(name, kind)])
                (merged,) = pa.unify_schemas([pa.schema([schema.field(index)]), own], promote_options="permissive")
            except (pa.ArrowException, OverflowError) as error:
                rule = "has cells of different kinds, which Parquet can't hold; write to .jsonl"
                raise DataError([Fault(source.name, rule, repr(name))]) from error
            schema = schema.set(index, merged)
    return schema


def _json(cell: Any, name: str, *, ascii: bool) -> str:
    """A cell as JSON; what JSON has no kind for, such as a date, as text.

    Raises:
        DataError: It holds bytes.
    """

    def other(value: Any) -> str:
        if isinstance(value, bytes):
            raise DataError(
                [Fault(name, "has a column of bytes, such as images, which only .parquet can hold", "--to")]
            )
        return str(value)

    return json.dumps(cell, ensure_ascii=ascii, default=other)


def _writable(text: str) -> str:
    return _NOT_BYTES.sub(_REPLACEMENT, text)


def _without_surrogates(cell: Any) -> Any:
    if isinstance(cell, str):
        return LONE_SURROGATE.sub(_REPLACEMENT, cell)
    if isinstance(cell, list):
        return [_without_surrogates(one) for one in cell]
    if isinstance(cell, dict):
        return {name: _without_surrogates(one) for name, one in cell.items()}
    return cell

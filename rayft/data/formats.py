"""Readers of csv, tsv, json, jsonl and parquet: the wanted columns, cell by cell, and every row's place in its file."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayft.errors import DataError, Fault

MAX_PLACES = 5
"""How many places a fault names; the count says how many there are."""
LONGEST_CELL = 2**31 - 1
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Part:
    """The wanted columns of one file or data set.

    Attributes:
        name: The file as the user named it.
        available: Every column that it has.
        cells: The wanted columns that it has, each with one cell per row, as read.
        numbers: Each row's line number, or its row number where lines mean nothing; both from 1.
        by_line: Whether `numbers` are line numbers.
        folder: Where the file is, which paths in it start from; None for data sets of the hub.
        places: What messages call each row, if not by its number.
    """

    name: str
    available: tuple[str, ...]
    cells: dict[str, list[Any]]
    numbers: Sequence[int]
    by_line: bool
    folder: Path | None = None
    places: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, row: int) -> str:
        """Where a row is, as `train.csv:7` or `train.parquet row 3`."""
        if self.places is not None:
            return self.places[row]
        return f"{self.name}:{self.numbers[row]}" if self.by_line else f"{self.name} row {self.numbers[row]}"


Reader = Callable[[Path, str, Sequence[str]], Part]
"""Reads the wanted columns of a file, which messages call by a name."""


def read_file(path: Path, name: str, wanted: Sequence[str], readers: Mapping[str, Reader]) -> Part:
    """Reads one file by its suffix.

    Args:
        path: The file.
        name: What messages call it.
        wanted: The columns to keep; those that the file lacks are left out.
        readers: What reads it, by suffix.

    Raises:
        DataError: The file doesn't parse, or its format is not supported.
        OSError: It can't be read.
    """
    reader = readers.get(path.suffix.lower())
    if reader is None:
        what = f"but got {path.suffix}" if path.suffix else "but the name has no suffix"
        raise DataError([Fault(name, f"must be one of {', '.join(readers)}, {what}")])
    return replace(reader(path, name, wanted), folder=path.parent)


def first_places(places: Sequence[str]) -> str:
    """The first few places, and a mark if there are more."""
    return ", ".join([*places[:MAX_PLACES], *(["..."] if len(places) > MAX_PLACES else [])])


def _read_csv(path: Path, name: str, wanted: Sequence[str]) -> Part:
    return _delimited_part(_records(read_text(path, name), name, ",", csv.QUOTE_MINIMAL), name, wanted)


def _read_tsv(path: Path, name: str, wanted: Sequence[str]) -> Part:
    text = read_text(path, name)
    try:
        return _delimited_part(_records(text, name, "\t", csv.QUOTE_MINIMAL), name, wanted)
    except DataError as error:
        # Half of the world's TSV quotes like CSV, the other half has no quoting at all and free quotation marks.
        try:
            return _delimited_part(_records(text, name, "\t", csv.QUOTE_NONE), name, wanted)
        except DataError:
            raise error from None


def _records(text: str, name: str, delimiter: str, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line that it starts on; blank lines are none."""
    csv.field_size_limit(LONGEST_CELL)
    # Without `strict`, a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError([Fault(f"{name}:{line}", f"doesn't parse, check its quotes: {error}")]) from error


def _delimited_part(records: Iterator[tuple[int, list[str]]], name: str, wanted: Sequence[str]) -> Part:
    _, header = next(records, (1, []))
    twice = [column for column in wanted if header.count(column) > 1]
    if twice:
        raise DataError([Fault(f"{name}:1", "must name a column once only", repr(column)) for column in twice])
    numbers, rows, ragged = [], [], []
    for line, cells in records:
        numbers.append(line)
        rows.append(cells)
        if len(cells) != len(header):
            ragged.append(f"{name}:{line} has {len(cells)}")
    if ragged:
        rule = f"every row must have the header's {len(header)} cells, but {len(ragged)} don't: {first_places(ragged)}"
        raise DataError([Fault(name, rule)])
    indices = {column: header.index(column) for column in wanted if column in header}
    cells_of = {column: [row[index] for row in rows] for column, index in indices.items()}
    return Part(name, tuple(header), cells_of, numbers, by_line=True)


def _read_json(path: Path, name: str, wanted: Sequence[str]) -> Part:
    text = read_text(path, name)
    if not text.lstrip().startswith("["):  # many writers, `datasets` among them, call JSON lines .json
        return _json_lines_part(text, name, wanted)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError([Fault(f"{name}:{error.lineno}", f"doesn't parse as JSON: {error.msg}")]) from error
    except RecursionError as error:
        raise DataError([Fault(name, "doesn't parse as JSON: it is nested too deeply")]) from error
    wrong = [f"{name} row {number}" for number, row in enumerate(rows, start=1) if not isinstance(row, dict)]
    if wrong:
        raise DataError([Fault(name, f"must be a list of objects, but {len(wrong)} are none: {first_places(wrong)}")])
    return _objects_part(rows, name, wanted, range(1, len(rows) + 1), by_line=False)


def _read_json_lines(path: Path, name: str, wanted: Sequence[str]) -> Part:
    return _json_lines_part(read_text(path, name), name, wanted)


def _json_lines_part(text: str, name: str, wanted: Sequence[str]) -> Part:
    rows, numbers, wrong = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 inside a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
            numbers.append(number)
        else:
            wrong.append(f"{name}:{number}")
    if wrong:
        rule = f"every line must be a JSON object, but {len(wrong)} are none: {first_places(wrong)}"
        raise DataError([Fault(name, rule)])
    return _objects_part(rows, name, wanted, numbers, by_line=True)


def _objects_part(
    rows: list[dict[str, Any]], name: str, wanted: Sequence[str], numbers: Sequence[int], *, by_line: bool
) -> Part:
    available = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = {column: [row.get(column) for row in rows] for column in wanted if column in available}
    return Part(name, available, cells, numbers, by_line)


def _read_parquet(path: Path, name: str, wanted: Sequence[str]) -> Part:
    try:
        with pq.ParquetFile(path) as file:
            available = file.schema_arrow.names
            table = file.read(columns=[column for column in wanted if column in available])
    except pa.ArrowException as error:
        raise DataError([Fault(name, f"doesn't parse as Parquet: {first_line(error)}")]) from error
    return table_part(table, name, available, wanted)


def table_part(table: pa.Table, name: str, available: Sequence[str], wanted: Sequence[str]) -> Part:
    """An Arrow table's wanted columns."""
    cells = {column: column_cells(table.column(column)) for column in wanted if column in table.column_names}
    return Part(name, tuple(available), cells, range(1, table.num_rows + 1), by_line=False)


def column_cells(column: pa.ChunkedArray) -> list[Any]:
    """An Arrow column's values; bytes that are not UTF-8 become lone surrogates, as they do in text files."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return list(column.to_pylist())
    raw = column.cast(pa.large_binary()).to_pylist()
    return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]


def first_line(error: BaseException) -> str:
    """An error's message, cut to its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_text(path: Path, name: str) -> str:
    """A text file's text; bytes that are not UTF-8 become lone surrogates.

    Raises:
        DataError: It is UTF-16.
        OSError: It can't be read.
    """
    raw = path.read_bytes()
    if raw.startswith(UTF_16):
        raise DataError([Fault(name, "must be UTF-8 text, but is UTF-16; save it as UTF-8")])
    # What is not UTF-8 is kept as lone surrogates, so that the check can name the rows that have it.
    return raw.decode("utf-8-sig", "surrogateescape")


READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}

"""Readers of csv, tsv, json, jsonl and parquet: the wanted columns, cell by cell, and every row's place in its file."""

import codecs
import contextlib
import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    return replace(reader_of(path, name, readers)(path, name, wanted), folder=path.parent)


def reader_of(path: Path, name: str, readers: Mapping[str, Reader]) -> Reader:
    """What reads a file of this suffix.

    Raises:
        DataError: Nothing does.
    """
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError([Fault(name, suffix_rule(path, readers))])
    return reader


def suffix_rule(path: Path, suffixes: Iterable[str]) -> str:
    """What a file's name must end in; the one that may have been meant comes first."""
    what = f"but got {path.suffix}" if path.suffix else "but the name has no suffix"
    known = list(suffixes)
    meant = difflib.get_close_matches(path.suffix.lower(), known, n=1, cutoff=0.7)
    return f"must be one of {', '.join(dict.fromkeys([*meant, *known]))}, {what}"


def nearest_first(name: str, choices: Iterable[str]) -> list[str]:
    """What a name may have been meant to be, in the order of likeness."""

    def distance(choice: str) -> float:
        return -difflib.SequenceMatcher(None, name.lower(), choice.lower()).ratio()

    return sorted(choices, key=distance)


def first_places(places: Sequence[str]) -> str:
    """The first few places, and a mark if there are more."""
    return ", ".join([*places[:MAX_PLACES], *(["..."] if len(places) > MAX_PLACES else [])])


def _read_csv(path: Path, name: str, wanted: Sequence[str] | None) -> Part:
    return _read_delimited(read_text(path, name), name, ",", csv.QUOTE_MINIMAL, wanted)


def _read_tsv(path: Path, name: str, wanted: Sequence[str] | None) -> Part:
    text = read_text(path, name)
    try:
        return _read_delimited(text, name, "\t", csv.QUOTE_MINIMAL, wanted)
    except DataError as error:
        # Half of the world's TSV quotes like CSV, the other half has no quoting at all and free quotation marks.
        try:
            return _read_delimited(text, name, "\t", csv.QUOTE_NONE, wanted)
        except DataError:
            raise error from None


def _read_delimited(text: str, name: str, delimiter: str, quoting: Any, wanted: Sequence[str] | None) -> Part:
    records = delimited_records(io.StringIO(text, newline=""), name, delimiter, quoting)
    return delimited_part(records, read_header(records, name, wanted), name, wanted)


def delimited_records(lines: Iterable[str], name: str, delimiter: str, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line that it starts on; blank lines are none.

    Raises:
        DataError: Quotes don't match.
    """
    csv.field_size_limit(LONGEST_CELL)
    # Without `strict`, a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError([Fault(f"{name}:{line}", f"doesn't parse, check its quotes: {error}")]) from error


def read_header(records: Iterator[tuple[int, list[str]]], name: str, wanted: Sequence[str] | None) -> list[str]:
    """The first record, as the columns' names.

    Raises:
        DataError: A wanted column is in it twice; if None are named, any.
    """
    _, header = next(records, (1, []))
    twice = [column for column in dict.fromkeys(wanted or header) if header.count(column) > 1]
    if twice:
        raise DataError([Fault(f"{name}:1", "must name a column once only", repr(column)) for column in twice])
    return header


def delimited_part(
    records: Iterable[tuple[int, list[str]]], header: Sequence[str], name: str, wanted: Sequence[str] | None
) -> Part:
    """Records' wanted columns, or all if None are named.

    Raises:
        DataError: A record is longer or shorter than the header.
    """
    numbers, rows, ragged = [], [], []
    for line, cells in records:
        numbers.append(line)
        rows.append(cells)
        if len(cells) != len(header):
            ragged.append(f"{name}:{line} has {len(cells)}")
    if ragged:
        rule = f"every row must have the header's {len(header)} cells, but {len(ragged)} don't: {first_places(ragged)}"
        raise DataError([Fault(name, rule)])
    indices = {column: header.index(column) for column in _kept(header, wanted)}
    cells_of = {column: [row[index] for row in rows] for column, index in indices.items()}
    return Part(name, tuple(header), cells_of, numbers, by_line=True)


def read_json(path: Path, name: str, wanted: Sequence[str] | None) -> Part:
    """A JSON file's wanted columns, or all if None are named; a list of objects, or JSON lines.

    Raises:
        DataError: It is neither.
        OSError: It can't be read.
    """
    text = read_text(path, name)
    if not text.lstrip().startswith("["):  # many writers, `datasets` among them, call JSON lines .json
        return json_lines_part(_numbered_lines(text), name, wanted)
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


def _read_json_lines(path: Path, name: str, wanted: Sequence[str] | None) -> Part:
    return json_lines_part(_numbered_lines(read_text(path, name)), name, wanted)


def _numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(text.split("\n"), start=1)  # splitlines() would also cut at U+2028 inside a string


def json_lines_part(lines: Iterable[tuple[int, str]], name: str, wanted: Sequence[str] | None) -> Part:
    """Numbered lines' wanted columns, or all if None are named.

    Raises:
        DataError: A line is no JSON object.
    """
    rows, numbers, wrong = [], [], []
    for number, line in lines:
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
    rows: list[dict[str, Any]], name: str, wanted: Sequence[str] | None, numbers: Sequence[int], *, by_line: bool
) -> Part:
    available = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = {column: [row.get(column) for row in rows] for column in _kept(available, wanted)}
    return Part(name, available, cells, numbers, by_line)


def _kept(available: Sequence[str], wanted: Sequence[str] | None) -> Sequence[str]:
    return available if wanted is None else [column for column in wanted if column in available]


def _read_parquet(path: Path, name: str, wanted: Sequence[str]) -> Part:
    with open_parquet(path, name) as file:
        available = file.schema_arrow.names
        return table_part(file.read(columns=list(_kept(available, wanted))), name, available, wanted)


@contextlib.contextmanager
def open_parquet(path: Path, name: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, which what reads within may find damaged.

    Raises:
        DataError: It is none, or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except pa.ArrowException as error:
        raise DataError([Fault(name, f"doesn't parse as Parquet: {first_line(error)}")]) from error


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
    _refuse_utf_16(raw, name)
    # What is not UTF-8 is kept as lone surrogates, so that the check can name the rows that have it.
    return raw.decode("utf-8-sig", "surrogateescape")


def streamed_lines(path: Path, name: str, newline: str) -> Iterator[str]:
    """A text file's lines as `read_text` has them, of which no more is in memory than the one.

    Args:
        path: The file.
        name: What messages call it.
        newline: What ends a line; any of its usual ends if empty.

    Raises:
        DataError: It is UTF-16.
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        _refuse_utf_16(file.read(2), name)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        yield from lines


def _refuse_utf_16(start: bytes, name: str) -> None:
    if start.startswith(UTF_16):
        raise DataError([Fault(name, "must be UTF-8 text, but is UTF-16; save it as UTF-8")])


def text_lines(path: Path, name: str) -> list[str]:
    """A text file's lines without their ends; splitlines() would also cut at U+2028 and the like inside a line.

    Raises:
        DataError: It is UTF-16.
        OSError: It can't be read.
    """
    return read_text(path, name).replace("\r\n", "\n").split("\n")


READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}

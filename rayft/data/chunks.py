"""Files of any size as chunks of rows, read as often as wanted, with the checks and the places of `formats`."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from rayft.data import formats
from rayft.data.check import missing_column_rule
from rayft.data.formats import Part
from rayft.errors import DataError, Fault

if TYPE_CHECKING:
    from rayft.tasks.base import Task

MAX_CHARACTERS = 8_000_000
"""Of a text file in one chunk, but for a longer row: rows may be whole books."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows with all their columns.

    Attributes:
        part: The rows; of Parquet files, which may hold more columns than anybody wants as Python's values, it has the
            inputs alone.
        table: All columns of a Parquet file, as they are in it.
    """

    part: Part
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.part)

    def cells(self, column: str) -> list[Any]:
        """A column's cells, None where there are none."""
        if self.table is not None:
            return formats.column_cells(self.table.column(column))
        return self.part.cells[column] if column in self.part.cells else [None] * len(self)


@dataclass(frozen=True)
class ChunkedFile:
    """A file that has been read through once, and found to parse from its first row to its last.

    Attributes:
        path: Where it is.
        name: What messages call it.
        columns: All that it has.
        rows: How many.
        read: Reads it from its beginning.
        schema: A Parquet file's.
        untyped: Whether every cell is a text, or missing.
    """

    path: Path
    name: str
    columns: tuple[str, ...]
    rows: int
    read: Callable[[], Iterator[Chunk]]
    schema: pa.Schema | None
    untyped: bool


def open_chunked(
    path: Path, name: str, inputs: Sequence[str], others: Sequence[str], task: "Task", rows: int, key: str
) -> ChunkedFile:
    """Reads a file through and says what is in it.

    Args:
        path: The file, or a folder that the task reads.
        name: What messages call it.
        inputs: The columns of the model's inputs.
        others: What to call further columns in a file that doesn't name them, such as that of the tags; it needs none.
        task: What the rows are for.
        rows: The most in one chunk.
        key: What the user names the inputs by.

    Raises:
        DataError: It doesn't parse, has no rows or lacks a column, or a text column has numbers only.
        OSError: It can't be read.
    """
    first_error = None
    for read in _ways(path, name, inputs, others, task, rows):
        try:
            return _read_through(path, name, inputs, task, key, read)
        except DataError as error:
            first_error = first_error or error
    assert first_error is not None, "no way to read a file"
    raise first_error


def _ways(
    path: Path, name: str, inputs: Sequence[str], others: Sequence[str], task: "Task", rows: int
) -> list[Callable[[], Iterator[Chunk]]]:
    """What may read a file, the likeliest first."""
    if path.is_dir():
        return [partial(_slices, _read_folder(path, name, inputs, task), rows)]
    suffix = path.suffix.lower()
    if formats.reader_of(path, name, task.readers) is not formats.READERS.get(suffix):
        return [partial(_slices, formats.read_file(path, name, [*inputs, *others], task.readers), rows)]
    if suffix == ".csv":
        return [partial(_delimited, path, name, rows, ",", csv.QUOTE_MINIMAL)]
    if suffix == ".tsv":  # quoted or not, as in `formats`
        return [partial(_delimited, path, name, rows, "\t", how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)]
    if suffix == ".parquet":
        return [partial(_parquet, path, name, rows, inputs)]
    if suffix == ".json" and _is_list(path, name):
        return [partial(_slices, replace(formats.read_json(path, name, None), folder=path.parent), rows)]
    return [partial(_json_lines, path, name, rows)]


def _read_folder(path: Path, name: str, inputs: Sequence[str], task: "Task") -> Part:
    try:
        part = task.read_folder(path, name, inputs, "unlabeled")
    except DataError as error:
        raise DataError([Fault(fault.where, fault.rule) for fault in error.faults]) from error  # there is no data.KEY
    if part is None:
        rule = f"must be a file ({', '.join(task.readers)}) for task {task.name}, but is a folder"
        raise DataError([Fault(name, rule)])
    return part


def _read_through(
    path: Path, name: str, inputs: Sequence[str], task: "Task", key: str, read: Callable[[], Iterator[Chunk]]
) -> ChunkedFile:
    """Reads a file once, so that nothing is found at its end after an hour of work on its beginning."""
    columns: dict[str, None] = {}
    rows, odd, schema = 0, None, None
    for chunk in read():
        columns |= dict.fromkeys(chunk.part.available)
        schema = chunk.table.schema if chunk.table is not None else None
        rows += len(chunk)
        if len(chunk) and odd != []:  # only what is odd about every chunk is odd about the file
            odd = task.part_faults(chunk.part, inputs)
    if not rows:
        raise DataError([Fault(name, "has no rows" if columns else "is empty")])
    faults = [
        Fault(name, missing_column_rule(column, tuple(columns)), key) for column in inputs if column not in columns
    ]
    faults += [Fault(fault.where, fault.rule, key) for fault in odd or []]
    if faults:
        raise DataError(faults)
    untyped = path.suffix.lower() in (".csv", ".tsv")
    return ChunkedFile(path, name, tuple(columns), rows, read, schema, untyped)


def _slices(part: Part, rows: int) -> Iterator[Chunk]:
    """A file that had to be read at once."""
    for start in range(0, max(1, len(part)), rows):
        own = slice(start, start + rows)
        places = None if part.places is None else part.places[own]
        cells = {name: column[own] for name, column in part.cells.items()}
        yield Chunk(replace(part, cells=cells, numbers=part.numbers[own], places=places))


def _delimited(path: Path, name: str, rows: int, delimiter: str, quoting: Any) -> Iterator[Chunk]:
    lines = formats.streamed_lines(path, name, newline="")
    records = formats.delimited_records(lines, name, delimiter, quoting)
    header = formats.read_header(records, name, None)
    for batch in _batches(records, rows, lambda record: sum(map(len, record[1]))):
        yield Chunk(replace(formats.delimited_part(batch, header, name, None), folder=path.parent))


def _json_lines(path: Path, name: str, rows: int) -> Iterator[Chunk]:
    lines = enumerate(formats.streamed_lines(path, name, newline="\n"), start=1)
    filled = (line for line in lines if line[1].strip())  # so that every chunk has rows
    for batch in _batches(filled, rows, lambda line: len(line[1])):
        yield Chunk(replace(formats.json_lines_part(batch, name, None), folder=path.parent))


def _parquet(path: Path, name: str, rows: int, inputs: Sequence[str]) -> Iterator[Chunk]:
    start = 0
    with formats.open_parquet(path, name) as file:
        available = file.schema_arrow.names
        empty = [] if file.metadata.num_rows else [file.schema_arrow.empty_table()]
        for batch in empty or file.iter_batches(rows):
            table = batch if empty else pa.Table.from_batches([batch])
            part = formats.table_part(table, name, available, [column for column in inputs if column in available])
            numbers = range(start + 1, start + 1 + len(part))
            start += len(part)
            yield Chunk(replace(part, numbers=numbers, folder=path.parent), table)


def _is_list(path: Path, name: str) -> bool:
    for line in formats.streamed_lines(path, name, newline="\n"):
        if line.strip():
            return line.lstrip().startswith("[")
    return False


def _batches(items: Iterable[Item], rows: int, characters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Consecutive items, as many as a chunk may have; one empty batch if there are none."""
    batch: list[Item] = []
    size, is_first = 0, True
    for item in items:
        if batch and (len(batch) == rows or size + characters(item) > MAX_CHARACTERS):
            yield batch
            batch, size, is_first = [], 0, False
        batch.append(item)
        size += characters(item)
    if batch or is_first:
        yield batch

"""What can be wrong with the rows, told all at once and before any trial runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayft.config import Columns, DataConfig, Source
from rayft.data.cells import BadRow, is_missing, is_number
from rayft.data.formats import Part, first_places, nearest_first
from rayft.data.load import SplitName, source_name
from rayft.errors import Fault

if TYPE_CHECKING:
    from rayft.tasks.base import Task

MAX_NAMES = 20


@dataclass(frozen=True)
class Table:
    """The sound rows of one source, in order.

    Attributes:
        source: What messages call the source.
        inputs: What the model reads, by name, such as `text` and `text_pair`; each with one value per row.
        labels: What it is to predict, as the task reads it from its columns; None for unlabeled rows.
        places: Where each row is, as `train.csv:7`.
    """

    source: str
    inputs: dict[str, list[Any]]
    labels: list[Any] | None
    places: list[str]


@dataclass(frozen=True)
class Checked:
    """A source after its checks.

    Attributes:
        table: Its sound rows; None if whole files or columns are missing, so that the labels are not all known.
        faults: What is wrong.
        notes: What was left out.
    """

    table: Table | None
    faults: list[Fault]
    notes: list[str]


@dataclass
class _Rows:
    """Rows sorted into sound ones and bad ones."""

    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    bad: list[tuple[str, BadRow]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs) + len(self.bad)


def column_choice_faults(names: Sequence[str]) -> list[Fault]:
    """Columns that are used for two things."""
    uses = Counter(names)
    return [
        Fault("data.columns", f"must be different columns, but {name!r} is named twice")
        for name in uses
        if uses[name] > 1
    ]


def check_source(
    task: "Task", split: SplitName, read: tuple[list[Part], list[Fault]], source: Source, config: DataConfig
) -> Checked:
    """Checks the columns and rows of a source's files.

    Args:
        task: What its rows are for.
        split: What the source is for; unlabeled rows need no label.
        read: The source's files, and the faults of those that couldn't be read.
        source: Its value in the config.
        config: The columns, and what to do with bad rows.
    """
    parts, faults = read[0], [*read[1]]
    names, rows = list(task.input_columns(config.columns)), _Rows()
    for part in parts:
        found = _part_faults(task, part, config.columns, labelled=split != "unlabeled")
        faults += found
        if not found:
            _sort_rows(task, part, config.columns, split != "unlabeled", rows)
    complete = not faults
    name = source_name(source)
    faults += _bad_row_faults(rows, name, f"data.{split}", config.on_bad_row)
    if parts and not faults and not rows.inputs:
        faults.append(Fault(name, f"no row is left, all {len(rows)} are bad", f"data.{split}"))
    notes = [_drop_note(split, rows)] if rows.bad and config.on_bad_row == "drop" else []
    if not complete or not rows.inputs:
        return Checked(None, faults, notes)
    inputs = dict(zip(names, (list(column) for column in zip(*rows.inputs, strict=True)), strict=True))
    labels = None if split == "unlabeled" else rows.labels
    return Checked(Table(name, inputs, labels, rows.places), faults, notes)


def numeric_text_faults(part: Part, columns: Sequence[str]) -> list[Fault]:
    """Text columns that hold numbers only, and so are hardly texts."""
    faults = []
    for name in columns:
        present = [cell for cell in part.cells.get(name, []) if not is_missing(cell)]
        if present and all(is_number(cell) for cell in present):
            rule = f"the text column {name!r} must hold text, but every cell is a number, such as {present[0]!r}"
            faults.append(Fault(part.name, f"{rule}; columns are {quoted(part.available)}", "data.columns"))
    return faults


def row_count(count: int) -> str:
    """`1 row` or `5 rows`."""
    return "1 row" if count == 1 else f"{count} rows"


def quoted(names: Sequence[str]) -> str:
    """Names for a message, cut where they are many."""
    shown = ", ".join(repr(name if len(name) <= 60 else f"{name[:60]}...") for name in names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown}, ... ({len(names)} in all)"


def _part_faults(task: "Task", part: Part, columns: Columns, *, labelled: bool) -> list[Fault]:
    """What makes a whole file unusable."""
    if not len(part):
        return [Fault(part.name, "has no rows" if part.available else "is empty")]
    inputs = list(task.input_columns(columns).values())
    faults = [
        Fault(part.name, missing_column_rule(name, part.available), "data.columns")
        for name in (*inputs, *(task.label_columns(columns) if labelled else ()))
        if name not in part.available
    ]
    return faults + task.part_faults(part, inputs)


def missing_column_rule(name: str, available: Sequence[str]) -> str:
    """That a column is missing, and which there are."""
    return f"there is no column {name!r}, nearest first there are {quoted(nearest_first(name, available))}"


def _sort_rows(task: "Task", part: Part, columns: Columns, labelled: bool, rows: _Rows) -> None:
    inputs = zip(*(part.cells[name] for name in task.input_columns(columns).values()), strict=True)
    label_names = task.label_columns(columns) if labelled else ()
    labels = zip(*(part.cells[name] for name in label_names), strict=True) if label_names else ((),) * len(part)
    for index, (cells, label_cells) in enumerate(zip(inputs, labels, strict=True)):
        try:
            read = task.read_inputs(cells, part)
            label = task.read_label(label_cells, read, columns) if labelled else None
        except BadRow as bad:
            rows.bad.append((part.place(index), bad))
            continue
        rows.inputs.append(read)
        rows.labels.append(label)
        rows.places.append(part.place(index))


def _bad_row_faults(rows: _Rows, name: str, key: str, on_bad_row: str) -> list[Fault]:
    """One fault for the rows that may be dropped, unless they are, and one for those that never are."""
    droppable = [f"{place} ({bad})" for place, bad in rows.bad if bad.droppable]
    wrong = [f"{place} ({bad})" for place, bad in rows.bad if not bad.droppable]
    faults = []
    if droppable and on_bad_row == "error":
        rule = f"{len(droppable)} of {len(rows)} rows are bad: {first_places(droppable)}"
        faults.append(Fault(name, f"{rule}; mend them, or leave them out with data.on_bad_row: drop", key))
    if wrong:
        faults.append(Fault(name, f"{len(wrong)} of {len(rows)} rows have the wrong type: {first_places(wrong)}", key))
    return faults


def _drop_note(split: SplitName, rows: _Rows) -> str:
    reasons = Counter(bad.reason for _, bad in rows.bad)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{split}: left out {len(rows.bad)} of {len(rows)} rows ({counts})"

"""What can be wrong with the rows, told all at once and before any trial runs."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayft.config import Columns, DataConfig, Source
from rayft.data.formats import MAX_PLACES, Part, first_places
from rayft.data.load import SplitName, read_source, source_name
from rayft.errors import Fault

EMPTY_TEXT, MISSING_LABEL, UNDECODABLE = "empty text", "missing label", "undecodable bytes"
DROPPABLE = frozenset({EMPTY_TEXT, MISSING_LABEL, UNDECODABLE})
"""What may befall single rows. Anything else means that the column is not what the user thinks, and always stops."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
MAX_NAMES = 20


@dataclass(frozen=True)
class Table:
    """The sound rows of one source, in order.

    Attributes:
        source: What messages call the source.
        texts: The first text column.
        pairs: The second one, if the task has pairs.
        labels: Label names; None for unlabeled rows.
        places: Where each row is, as `train.csv:7`.
    """

    source: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[str] | None
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
    """Rows sorted into sound ones and bad ones, the latter as (place, reason)."""

    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts) + len(self.bad)

    def extend(self, other: "_Rows") -> None:
        self.texts += other.texts
        self.labels += other.labels
        self.places += other.places
        self.bad += other.bad

    def table(self, source: str, labelled: bool) -> Table:
        texts, *pairs = (list(column) for column in zip(*self.texts, strict=True))
        return Table(source, texts, pairs[0] if pairs else None, self.labels if labelled else None, self.places)


def column_choice_faults(columns: Columns) -> list[Fault]:
    """Columns that are used for two things."""
    uses = Counter([*text_columns(columns), columns.label])
    return [
        Fault("data.columns", f"must be different columns, but {name!r} is named twice")
        for name in uses
        if uses[name] > 1
    ]


def text_columns(columns: Columns) -> tuple[str, ...]:
    """The one text column, or the two of a pair."""
    return (columns.text,) if isinstance(columns.text, str) else columns.text


def check_source(split: SplitName, source: Source, config: DataConfig) -> Checked:
    """Reads a source and checks its files, columns and rows.

    Args:
        split: What the source is for; unlabeled rows need no label.
        source: Its value in the config.
        config: The columns, and what to do with bad rows.
    """
    texts = text_columns(config.columns)
    label = None if split == "unlabeled" else config.columns.label
    parts, faults = read_source(source, split, texts if label is None else (*texts, label))
    rows = _Rows()
    for part in parts:
        found = _part_faults(part, texts, label)
        faults += found
        if not found:
            rows.extend(_sort_rows(part, texts, label))
    complete = not faults
    name = source_name(source)
    faults += _bad_row_faults(rows, name, f"data.{split}", config.on_bad_row)
    if not faults and not rows.texts:
        faults.append(Fault(name, f"no row is left, all {len(rows)} are bad", f"data.{split}"))
    notes = [_drop_note(split, rows)] if rows.bad and config.on_bad_row == "drop" else []
    return Checked(rows.table(name, label is not None) if complete and rows.texts else None, faults, notes)


def label_faults(tables: Mapping[SplitName, Table]) -> list[Fault]:
    """One class only, and labels that train lacks."""
    train = tables["train"]
    assert train.labels is not None
    known = label_names(train.labels)
    faults = []
    if len(known) < 2:
        rule = f"must have at least 2 classes, but all {len(train.labels)} rows have the label {known[0]!r}"
        faults.append(Fault(train.source, rule, "data.train"))
    for split, table in tables.items():
        unknown = {label: count for label, count in Counter(table.labels or ()).items() if label not in known}
        for label in list(unknown)[:MAX_PLACES]:
            faults.append(_unknown_label_fault(split, table, label, unknown[label], known))
        if len(unknown) > MAX_PLACES:
            rule = f"train lacks {len(unknown) - MAX_PLACES} more of its labels"
            faults.append(Fault(table.source, rule, f"data.{split}"))
    return faults


def _unknown_label_fault(split: SplitName, table: Table, label: str, count: int, known: Sequence[str]) -> Fault:
    assert table.labels is not None
    near = difflib.get_close_matches(label, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rule = f"train lacks the label {label!r} ({row_count(count)} in {split}); {hint}train has {quoted(known)}"
    return Fault(table.places[table.labels.index(label)], rule, f"data.{split}")


def label_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in id order: by value if all are numbers, else sorted."""
    names = sorted(set(labels))
    if all(_is_number(name) for name in names):
        names.sort(key=float)
    return tuple(names)


def row_count(count: int) -> str:
    """`1 row` or `5 rows`."""
    return "1 row" if count == 1 else f"{count} rows"


def quoted(names: Sequence[str]) -> str:
    """Names for a message, cut where they are many."""
    shown = ", ".join(repr(name if len(name) <= 60 else f"{name[:60]}...") for name in names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown}, ... ({len(names)} in all)"


def _part_faults(part: Part, texts: Sequence[str], label: str | None) -> list[Fault]:
    """What makes a whole file unusable."""
    if not len(part):
        return [Fault(part.name, "has no rows" if part.available else "is empty")]
    faults = []
    for name in texts if label is None else [*texts, label]:
        if name not in part.available:
            faults.append(Fault(part.name, _missing_column_rule(name, part.available), "data.columns"))
    for name in texts:
        present = [cell for cell in part.cells.get(name, []) if not _is_missing(cell)]
        if present and all(_is_number(cell) for cell in present):
            rule = f"the text column {name!r} must hold text, but every cell is a number, such as {present[0]!r}"
            faults.append(Fault(part.name, f"{rule}; columns are {quoted(part.available)}", "data.columns"))
    return faults


def _missing_column_rule(name: str, available: Sequence[str]) -> str:
    def distance(column: str) -> float:
        return -difflib.SequenceMatcher(None, name.lower(), column.lower()).ratio()

    return f"there is no column {name!r}, nearest first there are {quoted(sorted(available, key=distance))}"


def _sort_rows(part: Part, texts: Sequence[str], label: str | None) -> _Rows:
    rows = _Rows()
    labels = [None] * len(part) if label is None else part.cells[label]
    for index, (*cells, label_cell) in enumerate(zip(*(part.cells[name] for name in texts), labels, strict=True)):
        reasons = [_text_fault(cell) for cell in cells]
        if label is not None:
            reasons.append(_label_fault(label_cell))
        reason = next(filter(None, reasons), None)
        if reason is None:
            rows.texts.append(tuple(cells))
            rows.labels.append("" if label is None else _label_name(label_cell))
            rows.places.append(part.place(index))
        else:
            rows.bad.append((part.place(index), reason))
    return rows


def _text_fault(cell: Any) -> str | None:
    if _is_missing(cell):
        return EMPTY_TEXT
    if not isinstance(cell, str):
        return f"text is not a string, but {type(cell).__name__}"
    return UNDECODABLE if LONE_SURROGATE.search(cell) else None


def _label_fault(cell: Any) -> str | None:
    if _is_missing(cell):
        return MISSING_LABEL
    if isinstance(cell, str):
        return UNDECODABLE if LONE_SURROGATE.search(cell) else None
    if isinstance(cell, int) or (isinstance(cell, float) and cell.is_integer()):
        return None
    return f"label {str(cell)[:40]!r} is neither a name nor a whole number"


def _label_name(cell: str | int | float) -> str:
    # pandas turns integers into floats as soon as one is missing
    return cell.strip() if isinstance(cell, str) else str(int(cell) if isinstance(cell, float) else cell)


def _is_missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _is_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return NUMBER.fullmatch(cell.strip()) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _bad_row_faults(rows: _Rows, name: str, key: str, on_bad_row: str) -> list[Fault]:
    """One fault for the rows that may be dropped, unless they are, and one for those that never are."""
    droppable = [f"{place} ({reason})" for place, reason in rows.bad if reason in DROPPABLE]
    wrong = [f"{place} ({reason})" for place, reason in rows.bad if reason not in DROPPABLE]
    faults = []
    if droppable and on_bad_row == "error":
        rule = f"{len(droppable)} of {len(rows)} rows are bad: {first_places(droppable)}"
        faults.append(Fault(name, f"{rule}; mend them, or leave them out with data.on_bad_row: drop", key))
    if wrong:
        faults.append(Fault(name, f"{len(wrong)} of {len(rows)} rows have the wrong type: {first_places(wrong)}", key))
    return faults


def _drop_note(split: SplitName, rows: _Rows) -> str:
    reasons = Counter(reason for _, reason in rows.bad)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{split}: left out {len(rows.bad)} of {len(rows)} rows ({counts})"

"""The classes of a labelled data set: their names, and labels that train lacks."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rayft.data.cells import is_number
from rayft.data.check import Table, quoted, row_count
from rayft.data.formats import MAX_PLACES
from rayft.data.load import SplitName
from rayft.errors import Fault


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in id order: by value if all are numbers, else sorted."""
    names = sorted(set(labels))
    if all(is_number(name) for name in names):
        names.sort(key=float)
    return tuple(names)


def class_faults(
    tables: Mapping[SplitName, Table], names_of: Callable[[Any], Sequence[str]], what: str = "label"
) -> list[Fault]:
    """One class only, and labels that train lacks.

    Args:
        tables: The rows of each split.
        names_of: A row's label as the classes that it names.
        what: What messages call such a name.
    """
    train = tables["train"]
    known = class_names(name for label in train.labels or () for name in names_of(label))
    faults = []
    if len(known) < 2:
        have = f"all {len(train.places)} rows have the {what} {known[0]!r}" if known else f"no row has a {what}"
        faults.append(Fault(train.source, f"must have at least 2 classes, but {have}", "data.train"))
    for split, table in tables.items():
        rows = [set(names_of(label)) - set(known) for label in table.labels or ()]
        unknown = Counter(name for names in rows for name in names)
        for name in list(unknown)[:MAX_PLACES]:
            place = table.places[next(index for index, names in enumerate(rows) if name in names)]
            faults.append(_unknown_fault(split, place, name, unknown[name], known, what))
        if len(unknown) > MAX_PLACES:
            rule = f"train lacks {len(unknown) - MAX_PLACES} more of its {what}s"
            faults.append(Fault(table.source, rule, f"data.{split}"))
    return faults


def _unknown_fault(split: SplitName, place: str, name: str, count: int, known: Sequence[str], what: str) -> Fault:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rule = f"train lacks the {what} {name!r} ({row_count(count)} in {split}); {hint}train has {quoted(known)}"
    return Fault(place, rule, f"data.{split}")

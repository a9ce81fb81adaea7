"""The train, validation, test and unlabeled rows of a sweep, checked, split and with their labels as ids."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayft.config import DataConfig, Source
from rayft.data.check import Table, check_source, column_choice_faults, label_faults, label_names, row_count
from rayft.data.load import SplitName
from rayft.errors import DataError, Fault

Ids = NDArray[np.int64]

MAX_CLASSES = 5
"""How many classes a fault names; the count says how many there are."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        texts: The first text of each row.
        pairs: The second one, if the task has pairs.
        labels: Label ids, int64 of shape [rows]; None for unlabeled rows.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Ids | None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Splits:
    """All rows of a sweep.

    Attributes:
        label_names: The name of each label id.
        notes: What the user should know: rows left out, duplicates across splits.
    """

    train: Rows
    validation: Rows
    test: Rows | None
    unlabeled: Rows | None
    label_names: tuple[str, ...]
    notes: tuple[str, ...]

    def present(self) -> dict[SplitName, Rows]:
        """The splits that there are, by name."""
        splits: dict[SplitName, Rows | None] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
            "unlabeled": self.unlabeled,
        }
        return {name: rows for name, rows in splits.items() if rows is not None}


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Reads, checks and splits the data.

    Args:
        config: The `data` section.
        seed: Decides which rows a fraction holds out. The same files and seed give the same splits.

    Raises:
        DataError: With everything that is wrong in any file.
    """
    choice_faults = column_choice_faults(config.columns)
    faults = [*choice_faults]
    notes: list[str] = []
    tables: dict[SplitName, Table] = {}
    for split, source in _sources(config).items():
        checked = check_source(split, source, config)
        faults += checked.faults
        notes += checked.notes
        if checked.table is not None:
            tables[split] = checked.table
    fractions = _fractions(config)
    if "train" in tables and not choice_faults:
        faults += label_faults(tables)
        faults += fraction_faults(tables["train"], fractions)
    if faults:
        raise DataError(faults)
    return _assemble(tables, fractions, seed, notes)


def stratify(labels: Ids, fractions: Mapping[SplitName, float], seed: int) -> dict[SplitName, Ids]:
    """Holds out a fraction of every class for each named split; train is what is left.

    Which rows one fraction holds out doesn't depend on the fractions after it.

    Args:
        labels: Label ids of shape [rows].
        fractions: What share of all rows each split gets.
        seed: Decides which rows.

    Returns:
        Row indices of each split, in file order; together they are every row once.
    """
    generator = np.random.default_rng(seed)
    chosen: dict[SplitName, list[Ids]] = {split: [] for split in ("train", *fractions)}
    for label in range(int(labels.max()) + 1):
        left = generator.permutation(np.flatnonzero(labels == label))
        rows = len(left)
        for split, fraction in fractions.items():
            count = held_out(rows, fraction)
            chosen[split].append(left[:count])
            left = left[count:]
        chosen["train"].append(left)
    return {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}


def held_out(rows: int, fraction: float) -> int:
    """How many of a class's rows a fraction holds out: the nearest whole number."""
    return math.floor(rows * fraction + 0.5)


def fraction_faults(train: Table, fractions: Mapping[SplitName, float]) -> list[Fault]:
    """Fractions that leave a class without a row on either side."""
    assert train.labels is not None
    if sum(fractions.values()) >= 1:
        total = " + ".join(str(fraction) for fraction in fractions.values())
        return [Fault(train.source, f"the fractions must sum to less than 1, but got {total}", "data.validation")]
    names = label_names(train.labels)
    counts = Counter(train.labels)
    faults = []
    for split, fraction in fractions.items():
        without = [name for name in names if held_out(counts[name], fraction) == 0]
        if without:
            rule = f"{fraction} holds out no row of {_classes(without, counts)}"
            need = f"at this fraction every class needs at least {math.ceil(0.5 / fraction)} rows"
            faults.append(Fault(train.source, f"{rule}; {need}", f"data.{split}"))
    left = {
        name: counts[name] - sum(held_out(counts[name], fraction) for fraction in fractions.values()) for name in names
    }
    used_up = [name for name in names if left[name] <= 0]
    if used_up:
        total = " and ".join(str(fraction) for fraction in fractions.values())
        rule = f"{total} leaves no row to train on of {_classes(used_up, counts)}"
        faults.append(Fault(train.source, rule, f"data.{next(iter(fractions))}"))
    return faults


def duplicate_notes(splits: Mapping[SplitName, Rows]) -> list[str]:
    """Rows of validation and test whose text is also in a split before them."""
    notes = []
    seen: dict[SplitName, set[tuple[str, ...]]] = {}
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        keys = _keys(splits[split])
        for earlier, earlier_keys in seen.items():
            count = sum(key in earlier_keys for key in keys)
            if count:
                notes.append(f"{split}: {count} of {len(keys)} rows are exact duplicates of rows in {earlier}")
        seen[split] = set(keys)
    return notes


def _sources(config: DataConfig) -> dict[SplitName, Source]:
    sources: dict[SplitName, Source] = {"train": config.train}
    if isinstance(config.validation, str | list):
        sources["validation"] = config.validation
    if isinstance(config.test, str | list):
        sources["test"] = config.test
    if config.unlabeled is not None:
        sources["unlabeled"] = config.unlabeled
    return sources


def _fractions(config: DataConfig) -> dict[SplitName, float]:
    fractions: dict[SplitName, float] = {}
    if isinstance(config.validation, float):
        fractions["validation"] = config.validation
    if isinstance(config.test, float):
        fractions["test"] = config.test
    return fractions


def _assemble(
    tables: Mapping[SplitName, Table], fractions: Mapping[SplitName, float], seed: int, notes: list[str]
) -> Splits:
    train = tables["train"]
    assert train.labels is not None
    names = label_names(train.labels)
    splits = {split: _rows(table, names) for split, table in tables.items()}
    if fractions:
        whole = splits["train"]
        assert whole.labels is not None
        for split, indices in stratify(whole.labels, fractions, seed).items():
            splits[split] = _take(whole, indices)
    return Splits(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        unlabeled=splits.get("unlabeled"),
        label_names=names,
        notes=(*notes, *duplicate_notes(splits)),
    )


def _rows(table: Table, names: Sequence[str]) -> Rows:
    ids = {name: index for index, name in enumerate(names)}
    labels = None if table.labels is None else np.array([ids[label] for label in table.labels], dtype=np.int64)
    return Rows(table.texts, table.pairs, labels)


def _take(rows: Rows, indices: Ids) -> Rows:
    assert rows.labels is not None
    pairs = None if rows.pairs is None else [rows.pairs[index] for index in indices]
    return Rows([rows.texts[index] for index in indices], pairs, rows.labels[indices])


def _keys(rows: Rows) -> list[tuple[str, ...]]:
    return [(text,) for text in rows.texts] if rows.pairs is None else list(zip(rows.texts, rows.pairs, strict=True))


def _classes(names: Sequence[str], counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name!r} ({row_count(counts[name])})" for name in names[:MAX_CLASSES])
    return shown if len(names) <= MAX_CLASSES else f"{shown}, ... ({len(names)} classes)"

"""The train, validation, test and unlabeled rows of a sweep, checked, split and with their labels as ids."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayft.config import DataConfig, Source, TaskName
from rayft.data.check import Table, check_source, column_choice_faults, row_count
from rayft.data.load import SplitName, read_source
from rayft.data.quality import quality_notes
from rayft.errors import DataError, Fault

if TYPE_CHECKING:
    from rayft.tasks.base import Task

Ids = NDArray[np.int64]
Labels = NDArray[Any] | list[list[int]]
"""By row: class ids, int64 of shape [rows]; numbers, float32 of shape [rows]; 0 and 1, float32 of shape [rows, labels];
or a list of ids, one for each word."""

MAX_CLASSES = 5
"""How many classes a fault names; the count says how many there are."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        inputs: What the model reads, by name, such as `text` and `text_pair`; each with one value per row.
        labels: What it is to predict; None for unlabeled rows, and where the inputs say it.
    """

    inputs: dict[str, list[Any]]
    labels: Labels | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def taken(self, indices: Ids) -> "Rows":
        """Some of the rows, in the order of the indices."""
        labels = self.labels
        if labels is not None:
            labels = [labels[index] for index in indices] if isinstance(labels, list) else labels[indices]
        return Rows({name: [values[index] for index in indices] for name, values in self.inputs.items()}, labels)


@dataclass(frozen=True)
class Splits:
    """All rows of a sweep.

    Attributes:
        task: The task; that of the config, or what its data has turned out to be.
        label_names: The name of each label id; none where labels are numbers or texts.
        notes: What the user should know: rows left out, duplicates across splits.
    """

    task: TaskName
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


def load_splits(config: DataConfig, seed: int, task: "Task") -> Splits:
    """Reads, checks and splits the data.

    Args:
        config: The `data` section.
        seed: Decides which rows a fraction holds out. The same files and seed give the same splits.
        task: What the rows are for.

    Raises:
        DataError: With everything that is wrong in any file.
    """
    columns = config.columns
    choice_faults = column_choice_faults([*task.input_columns(columns).values(), *task.label_columns(columns)])
    faults = [*choice_faults]
    sources = _sources(config)
    read = {}
    for split, source in sources.items():
        wanted = [*task.input_columns(columns).values()]
        wanted += task.label_columns(columns) if split != "unlabeled" else ()
        read[split] = read_source(source, split, wanted, task)
    task = task.refined(columns, read["train"][0])
    notes: list[str] = []
    tables: dict[SplitName, Table] = {}
    for split, source in sources.items():
        checked = check_source(task, split, read[split], source, config)
        faults += checked.faults
        notes += checked.notes
        if checked.table is not None:
            tables[split] = checked.table
    fractions = _fractions(config)
    if "train" in tables and not choice_faults:
        faults += task.label_faults(tables, columns)
        faults += _fraction_faults(task, tables["train"], config, fractions)
    if faults:
        raise DataError(faults)
    return _assemble(task, tables, config, fractions, seed, notes)


def stratify(
    strata: Ids, fractions: Mapping[SplitName, float], seed: int, *, each: bool = True
) -> dict[SplitName, Ids]:
    """Holds out a fraction of every stratum for each named split; train is what is left.

    Which rows one fraction holds out doesn't depend on the fractions after it.

    Args:
        strata: Each row's stratum, such as its class, of shape [rows].
        fractions: What share of all rows each split gets.
        seed: Decides which rows.
        each: See `held_out_of_strata`.

    Returns:
        Row indices of each split, in file order; together they are every row once.
    """
    generator = np.random.default_rng(seed)
    chosen: dict[SplitName, list[Ids]] = {split: [] for split in ("train", *fractions)}
    counts = held_out_of_strata(np.bincount(strata).tolist(), fractions, each=each)
    for stratum in range(int(strata.max()) + 1):
        left = generator.permutation(np.flatnonzero(strata == stratum))
        for split in fractions:
            count = counts[split][stratum]
            chosen[split].append(left[:count])
            left = left[count:]
        chosen["train"].append(left)
    return {split: np.sort(np.concatenate(parts)) for split, parts in chosen.items()}


def held_out(rows: int, fraction: float) -> int:
    """How many of a stratum's rows a fraction holds out: the nearest whole number."""
    return math.floor(rows * fraction + 0.5)


def held_out_of_strata(
    counts: Sequence[int], fractions: Mapping[SplitName, float], *, each: bool
) -> dict[SplitName, list[int]]:
    """How many rows of each stratum each fraction holds out.

    Args:
        counts: Rows of each stratum.
        fractions: What share of all rows each split gets.
        each: Whether each stratum is rounded by itself, as classes are. If not, what rounding leaves goes on to the
            next, so that many small ones give as much as their rows together.
    """
    if each:
        return {split: [held_out(count, fraction) for count in counts] for split, fraction in fractions.items()}
    taken: dict[SplitName, list[int]] = {}
    left, rest = list(counts), 1.0
    for split, fraction in fractions.items():
        totals = [held_out(total, fraction / rest) for total in accumulate(left)]
        taken[split] = [own - before for before, own in zip([0, *totals], totals, strict=False)]
        left = [count - own for count, own in zip(left, taken[split], strict=True)]
        rest -= fraction
    return taken


def fraction_faults(
    source: str, strata: Ids, names: Sequence[str] | None, fractions: Mapping[SplitName, float]
) -> list[Fault]:
    """Fractions that leave a class, or the rows as a whole, without a row on either side.

    Args:
        source: What messages call the rows.
        strata: Each row's stratum.
        names: Their names, if each is to have rows in each split; None if only the splits as a whole are.
        fractions: What share of all rows each split gets.
    """
    if sum(fractions.values()) >= 1:
        total = " + ".join(str(fraction) for fraction in fractions.values())
        return [Fault(source, f"the fractions must sum to less than 1, but got {total}", "data.validation")]
    counts = np.bincount(strata, minlength=len(names or ())).tolist()
    faults = []
    taken = held_out_of_strata(counts, fractions, each=names is not None)
    for split, fraction in fractions.items():
        without = [index for index, count in enumerate(taken[split]) if count == 0]
        if names is not None and without:
            rule = f"{fraction} holds out no row of {_classes(without, names, counts)}"
            need = f"at this fraction every class needs at least {math.ceil(0.5 / fraction)} rows"
            faults.append(Fault(source, f"{rule}; {need}", f"data.{split}"))
        elif len(without) == len(counts):
            rule = f"{fraction} of {row_count(len(strata))} is none to hold out"
            faults.append(Fault(source, f"{rule}; give more rows, or files", f"data.{split}"))
    left = [count - sum(own) for count, *own in zip(counts, *taken.values(), strict=True)]
    used_up = [index for index, rows in enumerate(left) if rows <= 0]
    total = " and ".join(str(fraction) for fraction in fractions.values())
    if names is not None and used_up:
        rule = f"{total} leaves no row to train on of {_classes(used_up, names, counts)}"
        faults.append(Fault(source, rule, f"data.{next(iter(fractions))}"))
    elif fractions and sum(max(0, rows) for rows in left) == 0:
        rule = f"{total} leaves none of {row_count(len(strata))} to train on"
        faults.append(Fault(source, rule, f"data.{next(iter(fractions))}"))
    return faults


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


def _fraction_faults(
    task: "Task", train: Table, config: DataConfig, fractions: Mapping[SplitName, float]
) -> list[Fault]:
    names = task.label_names(train.labels or [], config.columns)
    strata, strata_names = task.strata(_rows(task, train, names), names)
    return fraction_faults(train.source, strata, strata_names, fractions)


def _assemble(
    task: "Task",
    tables: Mapping[SplitName, Table],
    config: DataConfig,
    fractions: Mapping[SplitName, float],
    seed: int,
    notes: list[str],
) -> Splits:
    names = task.label_names(tables["train"].labels or [], config.columns)
    splits = {split: _rows(task, table, names) for split, table in tables.items()}
    if fractions:
        whole = splits["train"]
        strata, strata_names = task.strata(whole, names)
        for split, indices in stratify(strata, fractions, seed, each=strata_names is not None).items():
            splits[split] = whole.taken(indices)
    return Splits(
        task=task.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        unlabeled=splits.get("unlabeled"),
        label_names=names,
        notes=(*notes, *quality_notes(splits, names)),
    )


def _rows(task: "Task", table: Table, names: Sequence[str]) -> Rows:
    return Rows(table.inputs, None if table.labels is None else task.label_ids(table.labels, names))


def _classes(indices: Sequence[int], names: Sequence[str], counts: Sequence[int]) -> str:
    shown = ", ".join(f"{names[index]!r} ({row_count(counts[index])})" for index in indices[:MAX_CLASSES])
    return shown if len(indices) <= MAX_CLASSES else f"{shown}, ... ({len(indices)} classes)"

"""Ratios, agreement and tables, and the JSON file of a benchmark."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runner import Run

AGREEMENT = 0.05
"""Validation accuracies of one configuration that differ by more than this point to arms that don't do the same."""


@dataclass(frozen=True)
class Target:
    """What is aimed at: the seconds of `arm` divided by those of `base`, at least or at most `bound`."""

    arm: str
    base: str
    bound: float
    at_most: bool = False

    def holds(self, ratio: float) -> bool:
        """Whether a ratio meets the target."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


def paired_ratios(arm: list[Run], base: list[Run]) -> list[float]:
    """The arms' seconds divided, repeat by repeat; repeats in which one failed are left out."""
    return [a.seconds / b.seconds for a, b in zip(arm, base, strict=True) if a.error is None and b.error is None]


def ratio_rows(runs: dict[str, list[Run]], targets: list[Target], bases: list[str]) -> list[dict[str, Any]]:
    """Every arm's ratio to every base, and the targets among them."""
    wanted = {(target.arm, target.base): target for target in targets}
    pairs = [(arm, base) for base in bases for arm in runs if arm != base]
    rows = []
    for arm, base in [*wanted, *(pair for pair in pairs if pair not in wanted)]:
        if arm not in runs or base not in runs:
            continue
        ratios = paired_ratios(runs[arm], runs[base])
        target = wanted.get((arm, base))
        middle = median(ratios) if ratios else None
        met = target.holds(middle) if target and middle is not None else None
        row = {"arm": arm, "base": base, "ratios": ratios, "median": middle}
        rows.append({**row, "target": str(target) if target else None, "met": met})
    return rows


def disagreement(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Each arm's largest distance from the median of the arms' validation accuracies of a configuration."""
    accuracies = {
        name: {trial["index"]: trial["accuracy"] for trial in done[0].trials}
        for name, repeats in runs.items()
        if (done := [run for run in repeats if run.error is None])
    }
    found: dict[str, float] = {}
    for index in sorted({index for of_arm in accuracies.values() for index in of_arm}):
        values = {name: of_arm[index] for name, of_arm in accuracies.items() if index in of_arm}
        middle = median(values.values())
        for name, value in values.items():
            found[name] = max(found.get(name, 0.0), abs(value - middle))
    return found


def seconds_table(title: str, runs: dict[str, list[Run]]) -> Table:
    """Every arm's seconds, what it trained, and how far its accuracies are from the others'."""
    table = Table(title=title)
    for column in ("arm", "median s", "each run", "configurations", "epochs", "best accuracy", "off by at most"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    off = disagreement(runs)
    for name, repeats in runs.items():
        done = [run for run in repeats if run.error is None]
        if not done:
            table.add_row(name, "failed", *[""] * 5)
            continue
        trials = done[0].trials
        table.add_row(
            name,
            f"{median(run.seconds for run in done):.1f}",
            " ".join("failed" if run.error else f"{run.seconds:.1f}" for run in repeats),
            str(len(trials)),
            str(sum(trial["epochs"] for trial in trials)),
            f"{max((trial['accuracy'] for trial in trials), default=float('nan')):.3f}",
            f"{off[name]:.3f}{' !' if off[name] > AGREEMENT else ''}" if name in off else "",
        )
    return table


def ratios_table(rows: list[dict[str, Any]]) -> Table:
    """The paired ratios, those with a target first."""
    table = Table(title="seconds of the arm / seconds of the base, paired")
    for column in ("arm", "base", "median", "each pair", "target", ""):
        table.add_column(column, justify="left" if column in ("arm", "base") else "right")
    for row in rows:
        verdict = {True: "met", False: "missed", None: ""}[row["met"]]
        middle = "no result" if row["median"] is None else f"{row['median']:.2f}"
        each = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        table.add_row(row["arm"], row["base"], middle, each, row["target"] or "", verdict)
    return table


def as_json(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Runs as JSON values."""
    return {name: [asdict(run) for run in repeats] for name, repeats in runs.items()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def console() -> Console:
    """A console that doesn't fold tables where there is no terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)

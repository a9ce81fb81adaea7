"""Run folders with a study as a sweep leaves them, made without training anything."""

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from rayft.config import SweepConfig
from rayft.report.html.facts import collect
from rayft.report.html.write import page
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import SweepStudy

HOSTILE = '<img src=x onerror="window.hacked=1">&amp;</script><script>window.hacked=2</script>'
"""What must be shown as it is, wherever it stands."""


@dataclass(frozen=True)
class Trial:
    """What a trial did.

    Attributes:
        values: Its search metric by epoch.
        end: finish, running, or a kind of failure.
        reason: Why it ended.
        seconds: Of each epoch.
    """

    values: Sequence[float] = ()
    end: str = "finish"
    reason: str | None = None
    seconds: float = 2.0


def make_run(folder: Path, config: SweepConfig, trials: Sequence[Trial], best: dict[str, Any] | None = None) -> Path:
    """Makes a run folder with these trials in its study."""
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.write_config(config)
    (folder / "environment.json").write_text(json.dumps({"study": "x", "python": "3.11", "packages": {"ray": "2.60"}}))
    shutil.copy(_tables(), folder / "study.db")
    study = SweepStudy.of_run(run, config)
    study.enqueue_start_with()
    for trial in trials:
        _run(study, config, trial)
    if best is not None:
        (folder / "best").mkdir()
        (folder / "best/rayft.json").write_text(json.dumps(best))
    return folder


def _run(study: SweepStudy, config: SweepConfig, trial: Trial) -> None:
    number, _ = study.ask()
    for epoch, value in enumerate(trial.values, 1):
        other = "loss" if config.metric != "loss" else "accuracy"
        point = (value, *(trial.seconds * epoch for _ in config.objectives[1:]))
        study.record_epoch(number, epoch, {config.metric: value, other: 1 - value}, seconds=trial.seconds, point=point)
    if trial.end == "finish":
        study.finish(number, trial.reason)
    elif trial.end != "running":
        study.fail(number, trial.end, trial.reason or "what happened")  # type: ignore[arg-type]


def report_of(folder: Path) -> str:
    """The report of a run folder."""
    run = RunFolder(folder)
    config = run.config()
    return page(collect(folder, folder.name, config, SweepStudy.of_run(run, config)))


def best_of(trial: int, epoch: int, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    """A `rayft.json` with what the report reads of it."""
    return {
        "model": "some/model",
        "trial": trial,
        "epoch": epoch,
        "validation": metrics,
        "test": {name: value - 0.01 for name, value in metrics.items()},
        "labels": ["a", "b"],
        "classes": {"validation": {}, "test": {}},
        "rows": {"train": 1200, "validation": 300, "test": 300},
        "verification": {"device": "cpu", "precision": "fp32", "tolerance": 1e-4},
        "versions": {"rayft": "0.1.0", "torch": "2.13"},
        **more,
    }


def classes(names: Sequence[str], predicted: bool = True) -> dict[str, Any]:
    """Figures by class of a model that takes one row in ten for the next class."""
    counts = [[9 * (a == b) + (b == (a + 1) % len(names)) for b in range(len(names))] for a in range(len(names))]
    return {
        name: {"rows": 10, "precision": 0.9, "recall": 0.9, "f1": 0.9} | ({"predicted": row} if predicted else {})
        for name, row in zip(names, counts, strict=True)
    }


@functools.cache
def _tables() -> Path:
    """An SQLite file with Optuna's tables, which take longer to make than most tests."""
    path = Path(tempfile.mkdtemp(prefix="rayft-tables-")) / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    return path

"""The program, run in the test's own process, and a run folder with a trial of every kind for it to look at."""

import sys
from pathlib import Path
from typing import Any

import pytest

from rayft import cli
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import SweepStudy
from tests.sweep.conftest import metrics, sweep

STARTS: list[dict[str, Any]] = [
    {"strategy": "full", "learning_rate": 1e-4, "batch_size": 16, "dropout": 0.1},
    {"strategy": "partial", "learning_rate": 2e-4, "batch_size": 32, "dropout": 0.2, "freeze_depth": 3},
    {"strategy": "full", "learning_rate": 3e-4, "batch_size": 16, "dropout": 0.3},
    {"strategy": "partial", "learning_rate": 4e-4, "batch_size": 16, "dropout": 0.4, "freeze_depth": 6},
    {"strategy": "layerwise", "learning_rate": 5e-4, "batch_size": 16, "dropout": 0.5, "layer_decay": 0.7},
]


def exit_status(*arguments: str) -> int:
    """The exit status of `rayft ARGUMENTS`, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["rayft", *arguments])
        cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else int(code is not None)


def make_run(storage: Path, name: str = "reviews") -> RunFolder:
    """Trial 0 complete, 1 complete and the best, 2 pruned, 3 failed in its second epoch, 4 running without a value."""
    config = sweep(search={"trials": len(STARTS), "start_with": STARTS})
    run = RunFolder.create(str(storage), name, config)
    study = SweepStudy.of_run(run, config)
    study.enqueue_start_with()
    for _ in STARTS:
        study.ask()
    for number, values in enumerate([[0.5, 0.7], [0.6, 0.9], [0.4], [0.8]]):
        for epoch, value in enumerate(values, start=1):
            study.record_epoch(number, epoch, metrics(value), seconds=1.5, digest="ab" if number == 1 else None)
    for number in (0, 1, 2):
        study.finish(number)
    study.fail(3, "diverged", "train loss is nan")
    run.checkpoint(1, 2).mkdir(parents=True)
    return run

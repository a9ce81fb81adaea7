"""Sweeps that are cut off in the middle, by SIGKILL and by Ctrl-C, and go on as if nothing had been."""

import json
import signal
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Project, descendants, wait_for_line

pytestmark = pytest.mark.slow

TRIALS = 5
SWEEP: dict[str, Any] = {
    "training": {"epochs": 3, "batch_size": 8},
    "search_space": {
        "strategy": ["full", "partial", "adversarial"],
        "learning_rate": {"low": 1e-4, "high": 2e-2, "log": True},
        "freeze_depth": {"low": 1, "high": 3, "when": {"strategy": "partial"}},
        "dropout": [0.0, 0.3],
    },
    "search": {"trials": TRIALS, "seed": 7},
}


@pytest.fixture(scope="module")
def uninterrupted(project: Project) -> list[dict[str, Any]]:
    """The trials of a sweep that nothing disturbed."""
    project.write_sweep("whole", **SWEEP)
    project.rayft("sweep", "whole.yaml")
    return project.trials("whole")


def results(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything but the seconds, which differ from run to run."""
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


def test_the_same_seed_gives_the_same_sweep_through_a_kill_and_an_interruption(
    project: Project, uninterrupted: list[dict[str, Any]]
) -> None:
    project.write_sweep("cut", **SWEEP)

    first = project.start("sweep", "cut.yaml")
    wait_for_line(first, "trial 1 epoch 1")
    # Ray's own agents take a minute or so to see that their node is gone; what trains must not live on.
    orphans = [process for process in descendants(first) if not process.name().endswith("Agent")]
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    assert not alive, "Ray outlived the driver that started it"
    recorded = project.trials("cut")
    assert 1 <= len(recorded) < TRIALS

    second = project.start("resume", "runs/cut")
    wait_for_line(second, "trial 2 epoch 1")
    second.send_signal(signal.SIGINT)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 130, output
    assert "rayft resume" in output
    assert "Traceback" not in output
    finished = [trial for trial in recorded if trial["state"] != "running"]
    assert project.trials("cut")[: len(finished)] == finished, "finished trials keep their values and seconds"

    project.rayft("resume", "runs/cut")
    assert results(project.trials("cut")) == results(uninterrupted)
    exported = [json.loads((project.run_folder(run) / "best" / "rayft.json").read_text()) for run in ("whole", "cut")]
    assert exported[0]["trial"] == exported[1]["trial"]
    assert exported[0]["test"] == exported[1]["test"]


def test_a_resumed_sweep_that_is_done_changes_nothing(project: Project, uninterrupted: list[dict[str, Any]]) -> None:
    record = project.run_folder("whole") / "best" / "rayft.json"
    before = record.stat().st_mtime_ns
    project.rayft("resume", "runs/whole")
    assert project.trials("whole") == uninterrupted
    assert record.stat().st_mtime_ns == before


def test_a_run_in_use_is_refused(project: Project) -> None:
    project.write_sweep("busy", **SWEEP)
    process = project.start("sweep", "busy.yaml")
    wait_for_line(process, "trials")
    assert "is in use by process" in project.rayft("resume", "runs/busy", status=2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 130

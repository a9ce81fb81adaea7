"""A whole sweep over all five strategies, started as a user starts it, and everything that it leaves behind."""

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration.conftest import Project, environment

SPACE = {
    "strategy": ["full", "partial", "layerwise", "adversarial", "lora"],
    "learning_rate": {"low": 2e-3, "high": 5e-3, "log": True},
    "freeze_depth": {"low": 1, "high": 3, "when": {"strategy": "partial"}},
}
START = [{"strategy": name} for name in SPACE["strategy"]]


@pytest.fixture(scope="module")
def output(project: Project) -> str:
    project.write_sweep(
        search_space=SPACE,
        training={"epochs": 4, "batch_size": 4},  # which such a model takes to learn anything
        search={"trials": 6, "start_with": START},
        cluster={"concurrent_trials": 2},
    )
    return project.rayft("sweep", "sweep.yaml")


@pytest.fixture
def run(project: Project, output: str) -> Path:
    return project.run_folder("sweep")


def test_the_run_folder_is_the_contract_s(run: Path) -> None:
    assert {"sweep.yaml", "environment.json", "rayft.log", "study.db", "trials", "best"} <= {
        p.name for p in run.iterdir()
    }
    assert not (run / ".ray").exists(), "Ray's own files are gone"
    best = json.loads((run / "best" / "rayft.json").read_text())
    assert {"model", "task", "trial", "epoch", "params", "metric", "validation", "test"} <= best.keys()


def test_every_trial_is_on_record_and_over(project: Project, run: Path) -> None:
    trials = project.trials("sweep")
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    assert {trial["params"]["strategy"] for trial in trials} == set(SPACE["strategy"])
    for trial in trials:
        assert ("freeze_depth" in trial["params"]) == (trial["params"]["strategy"] == "partial")
        assert trial["epochs"] == 4 if trial["state"] == "complete" else trial["epochs"] in (1, 3)


def test_the_winner_is_the_best_trial_and_scores_what_the_search_said(project: Project, run: Path) -> None:
    best = json.loads((run / "best" / "rayft.json").read_text())
    trials = project.trials("sweep")
    assert best["validation"]["accuracy"] == max(trial["value"] for trial in trials)
    assert trials[best["trial"]]["value"] == best["validation"]["accuracy"]
    assert best["validation"]["accuracy"] > 0.6, "three labels that one word tells apart"
    assert best["verification"]["validation"] == pytest.approx(best["validation"], abs=1e-3)
    assert best["test"]["accuracy"] > 0.5


def test_the_model_loads_in_plain_transformers(run: Path) -> None:
    script = (
        "import sys; from transformers import pipeline; "
        "print(pipeline('text-classification', model=sys.argv[1])('the film was very good')[0]['label'])\n"
        "assert 'rayft' not in sys.modules"
    )
    command = [sys.executable, "-P", "-c", script, str(run / "best")]
    printed = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    assert printed.strip() in {"good", "bad", "neutral"}


def test_tensorboard_has_curves_of_every_trial(run: Path) -> None:
    for number in range(6):
        events = EventAccumulator(str(run / "trials" / str(number)))
        events.Reload()
        assert {"train/loss", "train/learning_rate", "validation/accuracy"} <= set(events.Tags()["scalars"])


def test_only_leaders_keep_their_checkpoints(project: Project, run: Path) -> None:
    kept = sorted(path.parent.name for path in run.glob("trials/*/checkpoint-*"))
    best = json.loads((run / "best" / "rayft.json").read_text())
    assert str(best["trial"]) in kept
    assert len(kept) <= 3


def test_the_log_says_what_frozen_layers_gave_is_kept_and_where_there_are_none(run: Path) -> None:
    log = (run / "rayft.log").read_text()
    assert re.search(r"worker group \d: (Cached|No cache of) train behind \d frozen blocks", log), log
    assert "is not kept: something trains in the lowest layers" in log


def test_the_screen_shows_the_trials_the_winner_and_what_to_do_next(output: str) -> None:
    assert "trial 0 started: strategy=full" in output
    assert "runs/sweep/best" in output
    assert "rayft tensorboard runs/sweep" in output
    assert "Traceback" not in output


def test_no_process_is_left(run: Path) -> None:
    left = [p for p in psutil.process_iter(["cmdline"]) if str(run) in " ".join(p.info["cmdline"] or [])]
    assert left == []


def test_a_finished_sweep_can_be_extended(project: Project, run: Path) -> None:
    before = project.trials("sweep")
    project.rayft("resume", "runs/sweep", "--trials", "8")
    after = project.trials("sweep")
    assert after[:6] == before
    assert len(after) == 8
    best = json.loads((run / "best" / "rayft.json").read_text())
    assert best["validation"]["accuracy"] == max(trial["value"] for trial in after)


def test_another_trial_can_be_exported(project: Project, run: Path) -> None:
    winner = json.loads((run / "best" / "rayft.json").read_text())["trial"]
    other = next(int(p.parent.name) for p in run.glob("trials/*/checkpoint-*") if int(p.parent.name) != winner)
    project.rayft("export", "runs/sweep", "--trial", str(other), "--to", "other")
    exported = json.loads((project.folder / "other" / "rayft.json").read_text())
    assert exported["trial"] == other
    assert exported["test"] is None, "the test split is for the winner only"


def test_a_trial_without_checkpoint_is_refused(project: Project, run: Path) -> None:
    kept = {int(path.parent.name) for path in run.glob("trials/*/checkpoint-*")}
    gone = next(trial["number"] for trial in project.trials("sweep") if trial["number"] not in kept)
    assert f"trial {gone}" in project.rayft("export", "runs/sweep", "--trial", str(gone), status=2)


def test_the_study_opens_in_plain_optuna(run: Path) -> None:
    with sqlite3.connect(run / "study.db") as database:
        (trials,) = database.execute("select count(*) from trials").fetchone()
    assert trials >= 6

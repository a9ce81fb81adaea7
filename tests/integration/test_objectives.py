"""A sweep for accuracy and latency over two models, and for accuracy and seconds, as a user runs them."""

import json
import signal
from collections.abc import Callable

import optuna
import pytest

from tests.integration.conftest import Project, wait_for_line


@pytest.fixture(scope="module")
def output(project: Project, model_folder: Callable[[str], str]) -> str:
    project.write_sweep(
        model=[str(project.model), str(model_folder("roberta"))],
        search={"metric": ["accuracy", "latency_ms"], "trials": 4},
        early_stopping=None,
    )
    return project.rayft("sweep", "sweep.yaml")


def test_models_are_timed_before_the_trials_and_trials_have_both_values(project: Project, output: str) -> None:
    lines = output.splitlines()
    timed = [index for index, line in enumerate(lines) if line.endswith(" ms for one row")]
    assert len(timed) == 2 and timed[-1] < next(i for i, line in enumerate(lines) if "trial 0 started" in line)
    latencies = json.loads((project.run_folder("sweep") / "latency.json").read_text())
    trials = project.trials("sweep")
    assert len(trials) == 4
    for trial in trials:
        assert trial["objectives"] == {"accuracy": trial["value"], "latency_ms": latencies[trial["params"]["model"]]}


def test_the_front_is_optuna_s_and_the_winner_is_the_best_in_the_first_objective(project: Project, output: str) -> None:
    run = project.run_folder("sweep")
    study = optuna.load_study(study_name="rayft", storage=f"sqlite:///{run / 'study.db'}")
    front = {trial["number"] for trial in project.trials("sweep") if trial["on_front"]}
    points = {tuple(trial.values) for trial in study.best_trials}
    assert {tuple(study.trials[number].values) for number in front} == points
    best = json.loads((run / "best/rayft.json").read_text())
    assert {one["trial"] for one in best["front"]} == front
    assert best["objectives"]["accuracy"] == max(trial["value"] for trial in project.trials("sweep"))
    assert best["latency_ms"] > 0, "of the exported model itself"
    shown = project.rayft("trials", "runs/sweep", "--front")
    assert sum(line.split()[:1] in [[str(number)] for number in front] for line in shown.splitlines()) == len(front)
    assert "The Pareto front" in (run / "report.html").read_text()


def test_each_trial_of_the_front_can_be_exported(project: Project, output: str) -> None:
    for trial in project.trials("sweep"):
        if trial["on_front"]:
            project.rayft("export", "runs/sweep", "--trial", str(trial["number"]), "--to", f"model-{trial['number']}")
            record = json.loads((project.folder / f"model-{trial['number']}/rayft.json").read_text())
            assert record["objectives"] == trial["objectives"]


def test_an_extended_sweep_goes_on_with_the_same_latencies(project: Project, output: str) -> None:
    before = (project.run_folder("sweep") / "latency.json").read_bytes()
    printed = project.rayft("resume", "runs/sweep", "--trials", "6")
    assert "ms for one row" not in printed.split("trial 4 started")[0]
    assert (project.run_folder("sweep") / "latency.json").read_bytes() == before
    assert len(project.trials("sweep")) == 6


def test_a_sweep_that_was_interrupted_while_models_were_timed_goes_on(project: Project, output: str) -> None:
    project.write_sweep("early", search={"metric": ["accuracy", "latency_ms"], "trials": 1})
    process = project.start("sweep", "early.yaml")
    wait_for_line(process, "ms for one row")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "rayft resume" in printed
    timed = (project.run_folder("early") / "latency.json").read_bytes()
    assert not list(project.run_folder("early").glob(".latency-*"))
    project.rayft("resume", "runs/early")
    assert (project.run_folder("early") / "latency.json").read_bytes() == timed
    assert [trial["state"] for trial in project.trials("early")] == ["complete"]


def test_seconds_are_those_up_to_the_best_epoch_and_asha_lets_the_front_go_on(project: Project) -> None:
    project.write_sweep(
        "seconds",
        search={"metric": ["accuracy", "train_seconds"], "trials": 6},
        training={"epochs": 3, "batch_size": 8},
        early_stopping={"grace_epochs": 1, "reduction_factor": 2},
    )
    project.rayft("sweep", "seconds.yaml")
    trials = project.trials("seconds")
    for trial in trials:
        seconds = trial["objectives"]["train_seconds"]
        assert 0 < seconds <= trial["seconds"] + 1e-9
        assert (seconds == pytest.approx(trial["seconds"])) == (trial["best_epoch"] == trial["epochs"])
    for trial in trials:
        if trial["on_front"]:
            project.rayft("export", "runs/seconds", "--trial", str(trial["number"]), "--to", f"s-{trial['number']}")


@pytest.mark.slow
def test_the_last_stage_judges_by_the_first_objective_and_leaves_the_front_alone(project: Project) -> None:
    search = {"metric": ["accuracy", "train_seconds"], "trials": 3}
    project.write_sweep("final", search=search, final={"top": 1, "seeds": 2}, training={"epochs": 1, "batch_size": 8})
    printed = project.rayft("sweep", "final.yaml")
    best = json.loads((project.run_folder("final") / "best/rayft.json").read_text())
    trials = project.trials("final")
    ranked = sorted(trials[:3], key=lambda trial: (-trial["value"], trial["objectives"]["train_seconds"]))
    assert best["final"]["trial"] == ranked[0]["number"], "of equals, the faster one"
    assert trials[best["trial"]]["role"] == "final" and best["objectives"] == trials[best["trial"]]["objectives"]
    assert {one["trial"] for one in best["front"]} == {t["number"] for t in trials if t["on_front"]} <= {0, 1, 2}
    assert f"{best['final']['trial']}, trained again as trial {best['trial']}" in printed
    study = optuna.load_study(study_name="rayft", storage=f"sqlite:///{project.run_folder('final') / 'study.db'}")
    assert all(trial.params for trial in study.best_trials), "a repeat is no best trial of Optuna's"

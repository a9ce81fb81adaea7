"""What goes wrong in a sweep, and what the sweep makes of it."""

import json
import signal

import pytest

from tests.integration.conftest import Project, wait_for, wait_for_line, workers_of


def test_a_killed_worker_costs_no_result(project: Project) -> None:
    sweep = {"training": {"epochs": 4, "batch_size": 8}, "search": {"trials": 2, "seed": 3}, "early_stopping": None}
    project.write_sweep("calm", **sweep)
    project.rayft("sweep", "calm.yaml")

    project.write_sweep("struck", **sweep)
    process = project.start("sweep", "struck.yaml")
    wait_for_line(process, "trial 0 epoch 2")
    for worker in workers_of(process):
        worker.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output

    calm, struck = project.trials("calm"), project.trials("struck")
    assert [trial["value"] for trial in struck] == [trial["value"] for trial in calm]
    assert [trial["params"] for trial in struck] == [trial["params"] for trial in calm]
    assert {trial["state"] for trial in struck} == {"complete"}


def test_a_diverged_trial_ends_alone(project: Project) -> None:
    project.write_sweep(
        "diverging",
        training={"epochs": 2, "batch_size": 8, "max_grad_norm": None},
        search_space={"learning_rate": [1e-3, 1e30]},
        search={"trials": 3, "start_with": [{"learning_rate": 1e30}, {"learning_rate": 1e-3}]},
    )
    output = project.rayft("sweep", "diverging.yaml")
    first, second, *_ = project.trials("diverging")
    assert first["state"] == "failed"
    assert "epoch 1" in first["reason"], "the reason says where"
    assert second["state"] in {"complete", "pruned"}
    assert first["reason"] in output


@pytest.mark.slow
def test_a_sweep_whose_trials_all_fail_shows_the_first_cause(project: Project) -> None:
    project.write_sweep(
        "hopeless",
        training={"epochs": 2, "batch_size": 8, "max_grad_norm": None},
        search_space={"learning_rate": [1e30]},
    )
    output = project.rayft("sweep", "hopeless.yaml", status=1)
    assert "all 3 trials failed; the first: trial 0" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_model_that_vanishes_ends_the_sweep_at_once_and_it_can_be_resumed(project: Project) -> None:
    project.write_sweep("orphan")
    weights = project.model / "model.safetensors"
    process = project.start("sweep", "orphan.yaml")
    wait_for(lambda: (project.run_folder("orphan") / "encoded" / "manifest.json").exists(), process)
    hidden = weights.rename(project.folder / "hidden.safetensors")
    output, _ = process.communicate(timeout=240)
    hidden.rename(weights)
    assert process.returncode == 1, output
    assert "no worker group can be started" in output
    assert "Traceback" not in output
    project.rayft("resume", "runs/orphan")
    assert {trial["state"] for trial in project.trials("orphan")} <= {"complete", "pruned"}


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("time_limit", "60s"), ("core_hours", 0.016)])
def test_a_limit_ends_a_sweep_with_a_winner(project: Project, key: str, value: object) -> None:
    project.write_sweep(key, search={"trials": 10_000, key: value})
    output = project.rayft("sweep", f"{key}.yaml")
    trials = project.trials(key)
    assert 1 <= len(trials) < 10_000
    assert "running" not in {trial["state"] for trial in trials}
    assert f"search.{key} is reached: " in output
    assert f"and {10_000 - len(trials)} not started; go on with: rayft resume" in output
    assert (project.run_folder(key) / "best" / "rayft.json").exists()


@pytest.mark.slow
def test_a_limit_leaves_time_for_the_last_stage(project: Project) -> None:
    project.write_sweep(
        "both", search={"trials": 10_000, "time_limit": "80s"}, final={"top": 1, "seeds": 2}, training={"epochs": 1}
    )
    output = project.rayft("sweep", "both.yaml")
    trials = project.trials("both")
    assert "search.time_limit is reached: " in output and "not started" in output
    assert [trial["state"] for trial in trials if trial["role"] == "final"] == ["complete"] * 4
    best = json.loads((project.run_folder("both") / "best/rayft.json").read_text())
    assert best["final"]["trial"] < min(trial["number"] for trial in trials if trial["role"] == "final")


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ({"cluster": {"concurrent_trials": 500}}, "cluster.concurrent_trials: must be <= "),
        ({"cluster": {"workers_per_trial": 500}}, "cluster.workers_per_trial: a trial needs 500 workers"),
        (
            {"search_space": {"freeze_depth": [2, 9], "strategy": ["partial"]}},
            "search_space.freeze_depth: must be <= 3",
        ),
    ],
)
def test_what_can_never_be_is_refused_at_once(project: Project, section: dict[str, object], rule: str) -> None:
    path = project.write_sweep("never", **section)
    output = project.rayft("sweep", path.name, status=2)
    assert rule in output
    assert f"{path.name}:" in output, "names the file and the line"
    assert not project.run_folder("never").exists()


@pytest.mark.slow
def test_ctrl_c_before_the_first_epoch_can_be_resumed(project: Project) -> None:
    project.write_sweep("early", search={"trials": 1})
    process = project.start("sweep", "early.yaml")
    wait_for_line(process, "1 trials")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    project.rayft("resume", "runs/early")
    assert [trial["state"] for trial in project.trials("early")] == ["complete"]

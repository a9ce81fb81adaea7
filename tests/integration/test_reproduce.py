"""A sweep run by a program, and each of its trials trained again without Ray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Project, environment


def for_programs(project: Project, *arguments: str) -> Any:
    """Runs the program; returns the one document on its standard output."""
    command = [sys.executable, "-m", "rayft.cli", *arguments, "--json"]
    ended = subprocess.run(command, cwd=project.folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_sweep_s_trials_give_the_same_without_ray(project: Project) -> None:
    space = {"strategy": ["partial"], "freeze_depth": [2], "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    project.write_sweep(search_space=space, training={"dropout": 0.1}, search={"trials": 2})
    best = for_programs(project, "sweep", "sweep.yaml")
    assert json.loads((Path(best["folder"]) / "rayft.json").read_text()).items() <= best.items()

    winner = for_programs(project, "reproduce", "runs/sweep")
    assert winner["trial"] == best["trial"]
    assert winner["precision"] == best["verification"]["precision"]
    other = next(trial for trial in for_programs(project, "trials", "runs/sweep") if trial["number"] != best["trial"])
    again = for_programs(project, "reproduce", best["run"], str(other["number"]), "--tolerance", "1e-6")
    assert len(again["epochs"]) == other["epochs"]
    for epoch in (*winner["epochs"], *again["epochs"]):
        assert epoch["reproduced"] == pytest.approx(epoch["recorded"], abs=1e-6), "the same arithmetic on one machine"

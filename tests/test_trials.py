"""`rayft trials` and what it leaves out."""

import json
from pathlib import Path
from typing import get_args

import pytest

from rayft.completion import STATES
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.trial_record import TrialState
from tests.program import exit_status, make_run
from tests.sweep.conftest import sweep


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_run(tmp_path_factory.mktemp("runs")).path)


def numbers(shown: str) -> list[int]:
    """The trials of a table, in its order."""
    return [int(line.split()[0]) for line in shown.splitlines() if line.split() and line.split()[0].isdecimal()]


def test_the_states_are_the_study_s() -> None:
    assert get_args(TrialState) == STATES


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [1, 0, 2, 3, 4]),
        (["--state", "complete"], [1, 0]),
        (["--state", "failed", "--state", "pruned"], [2, 3]),
        (["--strategy", "full"], [0, 2]),
        (["--strategy", "full", "--strategy", "layerwise"], [0, 2, 4]),
        (["--strategy", "partial", "--state", "complete"], [1]),
        (["--top", "2"], [1, 0]),
        (["--top", "1", "--strategy", "full"], [0]),
        (["--top", "99"], [1, 0, 2, 3, 4]),
    ],
)
def test_the_trials_that_are_asked_for_come_best_first(
    options: list[str], expected: list[int], run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("trials", run, *options) == 0
    assert numbers(capsys.readouterr().out) == expected
    assert exit_status("trials", run, *options, "--json") == 0
    assert [trial["number"] for trial in json.loads(capsys.readouterr().out)] == sorted(expected)


def test_a_filter_that_matches_nothing_says_what_there_is(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = "the run has 2 complete, 1 pruned, 1 failed, 1 running; by strategy 2 full, 2 partial, 1 layerwise\n"
    assert exit_status("trials", run, "--strategy", "lora") == 0
    assert capsys.readouterr().out == f"no trial has strategy lora; {there}"
    assert exit_status("trials", run, "--state", "pruned", "--state", "running", "--strategy", "partial") == 0
    assert capsys.readouterr().out == f"no trial is pruned or running and has strategy partial; {there}"
    assert exit_status("trials", run, "--strategy", "lora", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_run_without_trials_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = RunFolder.create(str(tmp_path), "new", sweep())
    assert exit_status("trials", str(new.path)) == 0
    assert capsys.readouterr().out == "no trial has started\n"


def test_unknown_values_are_all_refused_with_the_choices(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("trials", run, "--state", "done", "--state", "failed", "--strategy", "ful") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[1:] == [
        "  --state: must be one of complete, pruned, failed, running, but got 'done'",
        "  --strategy: must be one of full, partial, layerwise, adversarial, lora, but got 'ful'",
    ]

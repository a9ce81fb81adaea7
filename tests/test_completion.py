"""What the shell offers, asked for as bash does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayft import cli, completion
from tests.test_cli import HEAVY


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in (
        "runs/first/sweep.yaml",
        "runs/second/study.db",
        "runs/second/trials/0/events",
        "runs/second/trials/10/events",
        "runs/second/trials/9/events",
        "runs/notes/todo.txt",
        "runs/.hidden/sweep.yaml",
        "reviews.yaml",
        "reviews.csv",
        "spaces/a.yaml",
        "spaces/b.yml",
        ".hidden.yaml",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


@pytest.mark.parametrize("typed", ["", "r", "runs", "runs/"])
def test_runs_are_folders_that_hold_one(typed: str) -> None:
    assert completion.run_folders(typed) == ["runs/first", "runs/second"]


def test_runs_are_completed_from_where_they_are_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion.run_folders("runs/s") == ["runs/second"]
    assert completion.run_folders("./runs/f") == ["./runs/first"]
    assert completion.run_folders(f"{folder}/runs/f") == [f"{folder}/runs/first"]
    monkeypatch.setenv("HOME", str(folder))
    assert completion.run_folders("~/runs/f") == ["~/runs/first"]
    assert completion.run_folders("runs/.h") == ["runs/.hidden"]
    monkeypatch.chdir(folder / "runs")
    assert completion.run_folders("s") == ["second"]


@pytest.mark.parametrize("typed", ["nowhere/", "runs/x", "s3://bucket/runs/", "~nobody-of-that-name/", "\0/", "runs/*"])
def test_nothing_is_offered_where_there_is_nothing(typed: str) -> None:
    assert completion.run_folders(typed) == []
    assert completion.sweep_files(typed) == []


def test_sweep_files_are_yaml_files_and_not_those_of_runs() -> None:
    assert completion.sweep_files("") == ["reviews.yaml", "spaces/a.yaml", "spaces/b.yml"]
    assert completion.sweep_files("rev") == ["reviews.yaml"]
    assert completion.sweep_files("spaces/a") == ["spaces/a.yaml"]
    assert completion.sweep_files("runs/first/") == ["runs/first/sweep.yaml"]


def offered(line: str) -> list[str]:
    """What bash gets for a command line whose last word is half typed; nothing heavy may be imported for it."""
    words = line.split(" ")
    path = os.pathsep.join([str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    asked = {"_RAYFT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv = ['rayft']; from rayft.cli import app; app(prog_name='rayft')"
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        env={**os.environ, **asked, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    times = [one for one in ended.stderr.splitlines() if one.startswith("import time:")]
    assert len(times) == len(ended.stderr.splitlines())
    assert {one.split("|")[2].strip().split(".")[0] for one in times}.isdisjoint(HEAVY)
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rayft trials ", ["runs/first", "runs/second"]),
        ("rayft resume runs/f", ["runs/first"]),
        ("rayft check re", ["reviews.yaml"]),
        ("rayft sweep spaces/b", ["spaces/b.yml"]),
        ("rayft show runs/second ", ["0", "9", "10"]),
        ("rayft reproduce runs/second 1", ["10"]),
        ("rayft trials runs/second --state p", ["pruned"]),
        ("rayft trials runs/second --strategy l", ["layerwise", "lora"]),
        ("rayft repr", ["reproduce"]),
    ],
)
def test_the_program_offers_them(line: str, expected: list[str]) -> None:
    assert offered(line) == expected

"""A small project as a user has it, and the `rayft` program run on it in processes of its own."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import WORDS

GOOD, BAD, NEUTRAL = WORDS[6:10], WORDS[10:14], WORDS[14:]
DEADLINE = 240.0
"""Seconds after which a test gives up waiting for an event; not a claim about speed."""


@dataclass
class Project:
    """A folder with data, a model and sweep files.

    Attributes:
        folder: The current directory of every command.
        model: The model's folder.
        children: Started programs, to be ended with the test.
    """

    folder: Path
    model: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def write_sweep(self, name: str = "sweep", **sections: Any) -> Path:
        """A sweep of three trials, one at a time, with sections replaced or, if they are mappings, updated."""
        sweep: dict[str, Any] = {
            "model": str(self.model),
            "data": {"train": "train.csv", "validation": 0.3, "test": "test.csv", "max_length": 16},
            "training": {"epochs": 2, "batch_size": 8},
            "search_space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
            "search": {"trials": 3},
            "cluster": {"concurrent_trials": 1},
            "final": None,
        }
        for key, value in sections.items():
            sweep[key] = {**(sweep.get(key) or {}), **value} if isinstance(value, dict) else value
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sweep))
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`rayft ARGUMENTS` in a session of its own, so that signals reach no one else."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rayft.cli", *arguments],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.children.append(process)
        return process

    def rayft(self, *arguments: str, status: int = 0) -> str:
        """Runs the program to its end; returns what it printed."""
        output, _ = self.start(*arguments).communicate(timeout=DEADLINE)
        last = self.children.pop()
        assert last.returncode == status, f"exit status {last.returncode}\n{output}"
        return output

    def trials(self, run: str) -> list[dict[str, Any]]:
        return json.loads(self.rayft("trials", f"runs/{run}", "--json"))

    def run_folder(self, run: str) -> Path:
        return self.folder / "runs" / run


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def wait_for(event: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Waits until the event has happened while a program runs; returns what it gave."""
    deadline = time.monotonic() + DEADLINE
    while not (seen := event()):
        assert process.poll() is None, f"the program ended first:\n{process.stdout.read() if process.stdout else ''}"
        assert time.monotonic() < deadline, "the event didn't happen"
        time.sleep(0.05)
    return seen


def wait_for_line(process: subprocess.Popen[str], text: str) -> list[str]:
    """Reads a program's output up to the first line with the text; returns what was read."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} was never printed:\n{''.join(lines)}")


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes below a program, such as its Ray."""
    return psutil.Process(process.pid).children(recursive=True)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of a program's Ray that train."""
    return [child for child in descendants(process) if "RayTrainWorker" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="session")
def data_rows() -> list[tuple[str, str]]:
    """(text, label): three labels that a word in the text tells apart."""
    generator = random.Random(0)
    rows = []
    for _ in range(400):
        label, words = generator.choice([("good", GOOD), ("bad", BAD), ("neutral", NEUTRAL)])
        filler = generator.choices(WORDS[:5], k=generator.randint(2, 8))
        rows.append((" ".join([*filler, generator.choice(words)]), label))
    return list(dict.fromkeys(rows))


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path], data_rows: list[tuple[str, str]]
) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("project"), model_folder("bert"))
    split = len(data_rows) * 3 // 4
    for name, rows in (("train", data_rows[:split]), ("test", data_rows[split:])):
        with (made.folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    yield made
    for child in made.children:
        if child.poll() is None:
            for process in descendants(child):
                process.kill()
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

"""The study of a run in optuna-dashboard, as README says."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayft.config import SweepConfig
from tests.report.runs import Trial, make_run
from tests.sweep.conftest import sweep

PROGRAM = Path(sys.executable).with_name("optuna-dashboard")


@contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """Serves a run's study; gives the address of the dashboard's own interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), f"sqlite:///{folder / 'study.db'}", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "it doesn't serve"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/api/studies"
    finally:
        process.terminate()
        process.wait()


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("config", "directions"),
    [
        (sweep(), ["maximize"]),
        (sweep(search={"metric": ["accuracy", "train_seconds"]}), ["maximize", "minimize"]),
    ],
)
def test_a_study_opens_as_it_is(tmp_path: Path, config: SweepConfig, directions: list[str]) -> None:
    if not PROGRAM.exists():
        pytest.skip("NOT TESTED: optuna-dashboard isn't installed (pip install optuna-dashboard)")
    folder = make_run(tmp_path / "run", config, [Trial([0.5, 0.7]), Trial([0.6]), Trial([0.4], "diverged")])
    with dashboard(folder) as address:
        (study,) = get(address)["study_summaries"]
        assert study["study_name"] == "rayft"
        assert study["directions"] == directions
        detail = get(f"{address}/{study['study_id']}")
        assert [trial["state"] for trial in detail["trials"]] == ["Complete", "Pruned", "Pruned"]
        assert [trial["number"] for trial in detail["best_trials"]] == [0]
        assert {param["name"] for param in detail["trials"][0]["params"]} >= {"strategy", "learning_rate"}

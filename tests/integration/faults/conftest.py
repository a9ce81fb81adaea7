"""Faults on real processes: what every test of a row shares, and the table of counts at the end."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Project, wait_for

HOOKS = Path(__file__).parent / "hooks"
EPOCHS, TRIALS = 3, 3
SWEEP: dict[str, Any] = {
    "training": {"epochs": EPOCHS, "batch_size": 8},
    "search_space": {
        "strategy": ["full", "partial"],
        "learning_rate": {"low": 1e-4, "high": 2e-2, "log": True},
        "freeze_depth": {"low": 1, "high": 3, "when": {"strategy": "partial"}},
    },
    "search": {"trials": TRIALS, "seed": 7},
    "early_stopping": {"grace_epochs": 1, "reduction_factor": 3},
}
_counts: Counter[tuple[str, str]] = Counter()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `repeat` runs as often as the command line says."""
    if "repeat" in metafunc.fixturenames:
        metafunc.parametrize("repeat", range(metafunc.config.getoption("fault_repeats")))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    row = item.get_closest_marker("fault")
    if row is not None and (report.when == "call" or report.failed or report.skipped):
        _counts[row.args[0], report.outcome] += row.kwargs.get("count", 1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _counts:
        terminalreporter.section("faults: how many held")
        for row in dict.fromkeys(row for row, _ in _counts):
            held, wrong = _counts[row, "passed"], _counts[row, "failed"]
            skipped = _counts[row, "skipped"]
            note = f", {skipped} skipped" if skipped else ""
            terminalreporter.write_line(f"{held:4d} of {held + wrong:4d}  {row}{note}")


@dataclass
class Struck:
    """A project whose programs can be stopped at a chosen place.

    Attributes:
        project: The project.
        flag: The file that says that a program has come there.
        counted: The file with a line for every trained epoch.
    """

    project: Project
    flag: Path
    counted: Path

    def start(self, *arguments: str, at: str | None = None, do: str = "hold") -> subprocess.Popen[str]:
        """Starts a program that counts its epochs and stops at `MODULE:NAME:WHEN:CALL`."""
        for file in self.flag.parent.glob(f"{self.flag.name}*"):
            file.unlink()
        path = os.pathsep.join(filter(None, [str(HOOKS), os.environ.get("PYTHONPATH")]))
        wanted = {"PYTHONPATH": path, "RAYFT_COUNT": str(self.counted)}
        if at is not None:
            wanted["RAYFT_FAULT"] = f"{at}:{do}:{self.flag}"
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            return self.project.start(*arguments)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def wait(self, process: subprocess.Popen[str]) -> int:
        """Waits until a program has come to the place; returns the id of the process that did."""
        wait_for(self.flag.exists, process)
        return int(self.flag.read_text())

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Waits for a program's end; returns its exit status and output."""
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    @property
    def epochs(self) -> int:
        """How many epochs were trained, again or for the first time."""
        return len(self.counted.read_text().split()) if self.counted.exists() else 0

    def outcome(self, run: str) -> dict[str, Any]:
        """Everything of a run that must not depend on what happened to it."""
        trials = [{k: v for k, v in trial.items() if k != "seconds"} for trial in self.project.trials(run)]
        best = json.loads((self.project.run_folder(run) / "best" / "rayft.json").read_text())
        return {"trials": trials, "winner": best["trial"], "epoch": best["epoch"], "test": best["test"]}


@pytest.fixture
def struck(project: Project, tmp_path: Path) -> Struck:
    return Struck(project, tmp_path / "there", tmp_path / "epochs")


@pytest.fixture(scope="module")
def calm(project: Project) -> dict[str, Any]:
    """The outcome of the sweep that nothing disturbed."""
    project.write_sweep("calm", **SWEEP)
    project.rayft("sweep", "calm.yaml")
    return Struck(project, project.folder / "-", project.folder / "-").outcome("calm")


def trained(calm: dict[str, Any]) -> int:
    """How many epochs the undisturbed sweep trained."""
    return sum(trial["epochs"] for trial in calm["trials"])

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from rayft.errors import RunError
from rayft.jobs import fetch
from rayft.jobs.client import Job
from rayft.jobs.fetch import MARKER, fetch_run
from rayft.sweep.remote_folder import RemoteFolder
from rayft.sweep.run_folder import RunFolder

Fetch = Callable[[Path], Path]
"""Fetches a run below a folder."""

JOB = Job("raysubmit_1", "", "SUCCEEDED", None, None, "", 0)


class Server:
    """A job server whose cluster is this machine.

    Attributes:
        submitted: The commands of the jobs that it got.
    """

    submitted: ClassVar[list[str]] = []

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, command: str, runtime_env: object, name: str) -> str:
        self.submitted.append(command)
        return JOB.id

    def job(self, name: str) -> Job:
        return JOB

    def wait(self, job: Job) -> Job:
        return job

    def logs(self, job: Job) -> str:
        command = [sys.executable, *self.submitted[-1].split()[2:]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def delete(self, job_id: str) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    monkeypatch.setattr(Server, "submitted", [])
    monkeypatch.setattr(fetch, "JobServer", Server)
    return Server


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run where it was trained."""
    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "cache"))
    return make_run(tmp_path / "far" / "reviews", "far")


@pytest.fixture(params=["storage", "node"])
def fetch_far(request: pytest.FixtureRequest, far: Path, server: type[Server]) -> Fetch:
    if request.param == "storage":
        return lambda to: fetch_run(far.as_uri(), None, to)
    return lambda to: fetch_run(str(far), "http://127.0.0.1:8265", to)


def make_run(folder: Path, text: str) -> Path:
    for name in ("best/model.safetensors", "trials/0/events.1", "trials/1/events.1", "trials/0/checkpoint-1/weights"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "sweep.yaml").write_text(f"model: {text}\n")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def results(folder: Path) -> set[str]:
    """What a fetched run holds, but for where it came from and its lock."""
    return set(contents(folder)) - {MARKER, ".lock"}


def test_a_run_comes_without_its_checkpoints(fetch_far: Fetch, tmp_path: Path) -> None:
    folder = fetch_far(tmp_path / "runs")
    assert folder == tmp_path / "runs" / "reviews"
    assert results(folder) == {"sweep.yaml", "best/model.safetensors", "trials/0/events.1", "trials/1/events.1"}


def test_a_sweep_of_this_machine_stays_as_it_is(fetch_far: Fetch, server: type[Server], tmp_path: Path) -> None:
    here = make_run(tmp_path / "runs" / "reviews", "here")
    before = contents(here)
    with pytest.raises(RunError, match=r"runs/reviews: wasn't fetched, and would be lost; .* --to OTHER"):
        fetch_far(tmp_path / "runs")
    assert contents(here) == before
    assert server.submitted == [], "a run was sent for nothing"


def test_an_earlier_fetch_is_replaced_with_all_of_it(fetch_far: Fetch, far: Path, tmp_path: Path) -> None:
    fetch_far(tmp_path)
    (far / "best" / "model.safetensors").rename(far / "best" / "adapter.safetensors")
    (far / "trials" / "1" / "events.1").unlink()
    folder = fetch_far(tmp_path)
    assert results(folder) == {"sweep.yaml", "best/adapter.safetensors", "trials/0/events.1"}


def test_what_was_fetched_from_elsewhere_stays(fetch_far: Fetch, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other" / "reviews", "other")
    folder = fetch_run(other.as_uri(), None, tmp_path)
    with pytest.raises(RunError, match=rf"was fetched from {other.as_uri()}, not from .*; .* --to OTHER"):
        fetch_far(tmp_path)
    assert contents(folder)["best/model.safetensors"] == "other"


def test_a_fetched_run_that_was_resumed_here_stays(fetch_far: Fetch, tmp_path: Path) -> None:
    folder = fetch_far(tmp_path)
    (folder / "trials" / "2" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(RunError, match="has been worked on since it was fetched"):
        fetch_far(tmp_path)
    assert (folder / "trials" / "2" / "checkpoint-1").is_dir()


def test_a_run_that_is_in_use_is_left_alone(fetch_far: Fetch, tmp_path: Path) -> None:
    folder = fetch_far(tmp_path)
    (folder / "best" / "model.safetensors").write_text("being exported")
    with RunFolder(folder).lock(), pytest.raises(RunError, match=f"is in use by process {os.getpid()}"):
        fetch_far(tmp_path)
    assert (folder / "best" / "model.safetensors").read_text() == "being exported"


def test_an_empty_folder_may_be_filled(fetch_far: Fetch, tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    assert "sweep.yaml" in results(fetch_far(tmp_path))


def test_what_a_live_sweep_deletes_meanwhile_is_passed_over(
    far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = RemoteFolder._files_below

    def files_below(remote: RemoteFolder, path: str) -> list[object]:
        found = listed(remote, path)
        if path == "trials":
            (far / "trials/0/checkpoint-1/weights").unlink()
            (far / "trials/1/events.1").unlink()
        return found

    monkeypatch.setattr(RemoteFolder, "_files_below", files_below)
    folder = fetch_run(far.as_uri(), None, tmp_path)
    assert results(folder) == {"sweep.yaml", "best/model.safetensors", "trials/0/events.1"}

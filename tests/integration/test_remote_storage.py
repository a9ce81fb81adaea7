"""Sweeps whose run is in an object store: on another machine, after a kill, and with the store away for a while."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayft.sweep.remote_folder import RemoteFolder
from tests.integration.conftest import Project, wait_for_line
from tests.s3_server import BUCKET, KEY, SECRET, S3Server, s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def storage(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A prefix of its own, with the environment that a user would set."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "this-machine"))
    return f"s3://{BUCKET}/{tmp_path.name}"


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on nothing of what was kept locally is there."""
    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "another-machine"))


def trials(project: Project, run: str) -> list[dict[str, Any]]:
    return json.loads(project.rayft("trials", run, "--json"))


def test_a_run_in_a_bucket_is_whole_and_holds_no_secret(
    project: Project, storage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.write_sweep("far", storage=storage)
    output = project.rayft("sweep", "far.yaml")
    assert f"run folder {storage}/far" in output

    another_machine(monkeypatch, tmp_path)
    assert [trial["state"] for trial in trials(project, f"{storage}/far")] != []
    remote = RemoteFolder(f"{storage}/far")
    paths = [path for path, _ in remote.sizes("")]
    assert {"sweep.yaml", "environment.json", "rayft.log", "study.db", "best/rayft.json"} <= set(paths)
    assert any("events" in path for path in paths)
    assert any("checkpoint-" in path for path in paths)
    assert not [path for path in paths if path.startswith((".ray", ".lease"))]
    for path in paths:
        content = remote.read(path)
        assert content is not None
        assert SECRET.encode() not in content and KEY.encode() not in content, path
    assert SECRET not in output

    project.rayft("fetch", f"{storage}/far", "--to", "fetched")
    assert json.loads((project.folder / "fetched/far/best/rayft.json").read_text())["validation"]
    assert trials(project, "fetched/far") == trials(project, f"{storage}/far")

    project.rayft("export", f"{storage}/far", "--to", "again")
    assert (project.folder / "again" / "model.safetensors").exists()


def test_another_machine_goes_on_with_a_killed_sweep(
    project: Project, storage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep = {"training": {"epochs": 4, "batch_size": 8}, "search": {"trials": 3, "seed": 5}, "early_stopping": None}
    project.write_sweep("calm", **sweep)
    project.rayft("sweep", "calm.yaml")

    project.write_sweep("killed", storage=storage, **sweep)
    process = project.start("sweep", "killed.yaml")
    wait_for_line(process, "trial 1 epoch 2")
    remote = RemoteFolder(f"{storage}/killed")
    # What the study knows reaches the bucket within seconds; the kill comes after that.
    while remote.read("study.db") is None:
        time.sleep(0.2)
    process.kill()
    process.wait()
    another_machine(monkeypatch, tmp_path)
    assert "is in use" not in project.rayft("resume", f"{storage}/killed")

    def told(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in trial.items() if key != "seconds"} for trial in found]

    assert told(trials(project, f"{storage}/killed")) == told(project.trials("calm"))


def test_two_machines_never_work_on_one_run(
    project: Project, storage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.write_sweep("busy", storage=storage, training={"epochs": 40, "batch_size": 8}, early_stopping=None)
    process = project.start("sweep", "busy.yaml")
    wait_for_line(process, "trial 0 epoch 1")
    another_machine(monkeypatch, tmp_path)
    assert "is in use by process" in project.rayft("resume", f"{storage}/busy", status=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130


def test_a_store_that_is_away_for_a_while_costs_time_and_nothing_else(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        project.write_sweep("patient", storage=f"s3://{BUCKET}/patient", training={"epochs": 3, "batch_size": 8})
        process = project.start("sweep", "patient.yaml")
        wait_for_line(process, "trial 0 epoch 1")
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(30)  # the length of the outage, not a wait for something
        server.process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert RemoteFolder(f"s3://{BUCKET}/patient/patient").read("best/rayft.json") is not None


@pytest.mark.parametrize(
    ("storage", "rule"),
    [
        (f"s3://me:{SECRET}@bucket/runs", "storage: must hold no credentials"),
        ("s3://no-such-bucket-at-all/runs", "storage: "),
        ("nonsense://bucket/runs", "storage: 'nonsense://bucket/runs' "),
    ],
)
def test_storage_that_cannot_be_used_is_the_users_error(
    project: Project, server: S3Server, monkeypatch: pytest.MonkeyPatch, storage: str, rule: str
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    path = project.write_sweep("wrong", storage=storage)
    output = project.rayft("sweep", path.name, status=2)
    assert rule in output and "wrong.yaml:" in output
    assert "Traceback" not in output and SECRET not in output

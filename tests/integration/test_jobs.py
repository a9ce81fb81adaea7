"""Sweeps as jobs of a cluster with a head and two workers, from a machine that isn't part of it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import Project, environment, wait_for, wait_for_line

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "0123456789abcdef" * 4


@dataclass
class Cluster:
    """A head and two workers, each with a CPU.

    Attributes:
        server: The job server's address.
        home: The home folder of all nodes.
    """

    server: str
    home: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster-home")
    port, dashboard = free_port(), free_port()
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(), "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": python}
    head = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=0"]
    worker = [f"--address=127.0.0.1:{port}", "--num-cpus=1"]
    processes = []
    try:
        for number, options in enumerate((head, worker, worker)):
            log = home / f"node-{number}.log"
            command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options]
            with log.open("w") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
            processes.append(process)
            wait_for(lambda log=log: "Ray runtime started" in log.read_text(), process)
        yield Cluster(f"http://127.0.0.1:{dashboard}", home)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(timeout=60)


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A home without a token file; the token comes from the environment."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("laptop-home")))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def on(cluster: Cluster, *arguments: str) -> list[str]:
    return [*arguments, "--address", cluster.server]


def job_of(output: str) -> str:
    found = re.search(r"^job (raysubmit_\w+)", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_a_job_is_followed_to_its_end_and_its_run_comes_home(project: Project, cluster: Cluster) -> None:
    project.write_sweep("sent", cluster={"concurrent_trials": 2}, search={"trials": 4})
    submit = on(cluster, "submit", "sent.yaml", "--environment", "cluster")
    output = project.rayft(*submit)
    assert "data/train/0-train.csv" in output and "MB" in output, "says what it sends"
    assert "trial 0 epoch 1" in output, "follows"
    assert TOKEN not in output

    listed = json.loads(project.rayft(*on(cluster, "jobs", "--json")))
    assert [(job["name"], job["state"], job["exit_status"]) for job in listed] == [("sent", "SUCCEEDED", 0)]
    assert "sent" in project.rayft(*on(cluster, "jobs"))
    assert "trial 0 epoch 1" in project.rayft(*on(cluster, "logs", "sent", "--no-follow"))

    assert "fetched home/sent" in project.rayft(*on(cluster, "fetch", "sent", "--to", "home"))
    best = json.loads((project.folder / "home/sent/best/rayft.json").read_text())
    assert (project.folder / "home/sent/best/model.safetensors").exists()
    assert list((project.folder / "home/sent/trials").glob("*/events*"))
    trials = json.loads(project.rayft("trials", "home/sent", "--json"))
    assert len(trials) == 4
    assert max(trial["value"] for trial in trials) == best["validation"]["accuracy"]
    assert (cluster.home / "runs" / "sent").is_dir()


def test_ctrl_c_leaves_the_job_and_a_stop_leaves_a_run_that_can_be_resumed(project: Project, cluster: Cluster) -> None:
    project.write_sweep("long", training={"epochs": 60, "batch_size": 8}, search={"trials": 2}, early_stopping=None)
    submit = on(cluster, "submit", "long.yaml", "--environment", "cluster")
    process = project.start(*submit)
    lines = wait_for_line(process, "trial 0 epoch 1")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    job = job_of("".join(lines))
    assert f"rayft stop {job}" in output

    follower = project.start(*on(cluster, "logs", job))
    wait_for_line(follower, "trial 0 epoch 2")
    stopped = project.rayft(*on(cluster, "stop", job))
    assert "STOPPED" in stopped
    follower.communicate(timeout=120)
    assert follower.returncode == 130

    resume = re.search(r"--resume (\S+)", stopped)
    assert resume, stopped
    options = ["--resume", resume[1], "--environment", "cluster", "--json"]
    again = json.loads(project.rayft(*on(cluster, "submit", "long.yaml", *options)).splitlines()[-1])
    assert again["run"] == resume[1]
    follower = project.start(*on(cluster, "logs", again["job"]))
    wait_for_line(follower, "trial 0 epoch")
    project.rayft(*on(cluster, "stop", again["job"]))
    follower.communicate(timeout=120)


def test_a_mistake_in_the_file_never_leaves_this_machine(project: Project, cluster: Cluster) -> None:
    project.write_sweep("typo", training={"epoch": 3})
    output = project.rayft(*on(cluster, "submit", "typo.yaml"), status=2)
    assert "did you mean" in output or "epochs" in output
    assert "job raysubmit" not in output


def test_a_job_that_fails_gives_its_exit_status(project: Project, cluster: Cluster) -> None:
    project.write_sweep("greedy", cluster={"concurrent_trials": 500})
    output = project.rayft(*on(cluster, "submit", "greedy.yaml", "--environment", "cluster"), status=2)
    assert "cluster.concurrent_trials: must be <= 2" in output
    assert "Traceback" not in output


def test_without_the_token_nobody_gets_in(project: Project, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    output = project.rayft(*on(cluster, "jobs"), status=2)
    assert "token" in output and "Traceback" not in output
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "token" in project.rayft(*on(cluster, "jobs"), status=2)


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("ray://127.0.0.1:10001", "submit to the job server"),
        ("127.0.0.1:8265", "must be a job server such as http://"),
        ("http://me:pass@127.0.0.1:8265", "must hold no credentials"),
        ("http://127.0.0.1:1", "no job server answers"),
    ],
)
def test_an_address_of_no_job_server_is_a_clear_error(project: Project, address: str, rule: str) -> None:
    project.write_sweep("nowhere")
    output = project.rayft("submit", "nowhere.yaml", "--address", address, status=2)
    assert rule in output
    assert "Traceback" not in output and "me:pass" not in output

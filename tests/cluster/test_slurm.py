"""The script of `sbatch`, with programs in place of Slurm's, Ray's and rayft's that note how they were called."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.conftest import CLUSTER, DEADLINE, environment, lives, read, wait_until, write_program

NOTE = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["NOTES"])
def note(name, **more):
    kept = {key: value for key, value in os.environ.items() if key.startswith("RAY")}
    path = folder / f"{name}-{os.getpid()}"
    path.with_suffix(".part").write_text(json.dumps({"arguments": sys.argv[1:], "environment": kept, **more}))
    path.with_suffix(".part").rename(path)
"""
# Runs what comes after its options, as a child: signals reach that only because this passes them on. The nodes are all
# this machine, but each has its own /tmp.
SRUN = """
note("srun")
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
here = f"/tmp/rayft-{os.environ['SLURM_JOB_ID']}"
if any(word.startswith("--exclude=") for word in sys.argv):
    command = [word.replace(here, f"{here}-worker") for word in command]
elif command[0] == "rm":
    command.append(f"{here}-worker")
child = subprocess.Popen(command)
signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
sys.exit(child.wait())
"""
RAY = """
if sys.argv[1] == "get-auth-token":
    path = pathlib.Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text("made")
    sys.exit()
options = dict(word.partition("=")[::2] for word in sys.argv[2:])
if os.environ.get("FAILS") == ("head" if "--head" in options else "worker"):
    sys.exit(3)
if "--head" in options:
    import socket
    server = socket.create_server(("127.0.0.1", int(options["--port"])))
note("head" if "--head" in options else "worker")
while True:
    time.sleep(3600)
"""
# In place of the python that waits for the nodes
PYTHON = """
note("python", stdin=sys.stdin.read())
wanted = 1 + int(sys.argv[3] != "1")
while "NEVER_UP" in os.environ or len([*folder.glob("head-*[0-9]"), *folder.glob("worker-*[0-9]")]) < wanted:
    time.sleep(0.05)
"""
RAYFT = """
def stop(number, frame):
    note("stopped")
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
note("rayft")
if os.environ.get("SWEEP") == "short":
    sys.exit(int(os.environ["STATUS"]))
while True:
    time.sleep(3600)
"""


class Job:
    """The script as `sbatch` would run it.

    Args:
        folder: A new folder, which is the current one and the home.
        nodes: How many nodes the job has; all are this machine.
    """

    def __init__(self, folder: Path, nodes: int, arguments: tuple[str, ...], **settings: str) -> None:
        self.notes = folder / "notes"
        self.notes.mkdir()
        programs = folder / "venv" / "bin"
        for name, code in {"srun": SRUN, "ray": RAY, "python": PYTHON, "rayft": RAYFT}.items():
            write_program(programs / name, NOTE + code)
        (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
        self.id = free_job_id()
        slurm = {"SLURM_JOB_ID": str(self.id), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CPUS_PER_TASK": "4"}
        self.process = psutil.Popen(
            ["bash", CLUSTER / "slurm.sh", *arguments],
            cwd=folder,
            env=environment(folder, NOTES=str(self.notes), SLURMD_NODENAME="node1", RAYFT_HEAD_IP="127.0.0.1")
            | {**slurm, "RAYFT_VENV": "venv", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def calls(self, program: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.notes.glob(f"{program}-*[0-9]")]

    def wait_for(self, program: str) -> dict[str, Any]:
        return wait_until(lambda: self.calls(program), f"{program} was called")[0]

    def end(self) -> tuple[int, str]:
        """Waits for the script's own end; its status and what it printed."""
        output, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, output


def free_job_id() -> int:
    """One whose port nobody listens on."""
    for number in range(7000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 10000 + 3 * number)) != 0:
                return 70000 + number
    raise AssertionError("no port is free")


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*arguments: str, nodes: int = 2, **settings: str) -> Job:
        jobs.append(Job(tmp_path, nodes, arguments, **settings))
        return jobs[-1]

    yield start
    for started in jobs:
        if lives(started.process):
            for process in [*started.process.children(recursive=True), started.process]:
                process.kill()
            started.process.wait()


def test_its_directives_come_first_and_have_it_told_in_time() -> None:
    script = read("slurm.sh")
    directives, rest = script.split("set -euo pipefail", 1)
    assert "#SBATCH" not in rest
    assert all(line.startswith("#") for line in directives.strip().splitlines())
    assert "#SBATCH --signal=B:TERM@120\n" in directives
    assert "#SBATCH --ntasks-per-node=1\n" in directives
    assert not re.search(r"^#SBATCH.*[ \t]#", directives, re.M), "comments have lines of their own"


def test_a_sweep_runs_on_all_nodes_and_its_status_is_the_jobs(job: Callable[..., Job], tmp_path: Path) -> None:
    started = job("sweep", "reviews.yaml", "--trials", "4", SWEEP="short", STATUS="1")
    status, output = started.end()
    assert status == 1
    assert "sbatch cluster/slurm.sh resume RUN" in output
    port = 10000 + 3 * (started.id % 7000)
    (sweep,) = started.calls("rayft")
    assert sweep["arguments"] == ["sweep", "reviews.yaml", "--trials", "4", "--address", f"127.0.0.1:{port}"]
    (head,), (worker,) = started.calls("head"), started.calls("worker")
    assert {"--head", f"--port={port}", "--dashboard-host=127.0.0.1", "--num-cpus=4"} <= set(head["arguments"])
    assert f"--address=127.0.0.1:{port}" in worker["arguments"]
    for call in (sweep, head, worker):
        assert call["environment"]["RAY_AUTH_MODE"] == "token"
    (waiting,) = started.calls("python")
    assert waiting["arguments"] == ["-", f"127.0.0.1:{port}", "2"]
    compile(waiting["stdin"], "waiting", "exec")
    on = [" ".join(call["arguments"]) for call in started.calls("srun")]
    assert len([call for call in on if "--nodelist=node1" in call and "--nodes=1 " in call]) == 1
    assert len([call for call in on if "--exclude=node1" in call and "--nodes=1 " in call]) == 1
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_one_node_is_enough(job: Callable[..., Job]) -> None:
    started = job("resume", "runs/reviews", nodes=1, SWEEP="short", STATUS="0")
    status, output = started.end()
    assert (status, started.calls("worker")) == (0, [])
    assert "resume RUN" not in output
    assert started.calls("rayft")[0]["arguments"][:2] == ["resume", "runs/reviews"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_slurms_signal_reaches_the_sweep_and_nothing_is_left(job: Callable[..., Job], number: signal.Signals) -> None:
    started = job("sweep", "reviews.yaml")
    started.wait_for("rayft")
    below = started.process.children(recursive=True)
    assert len(below) >= 5, "two of srun, two of ray, and rayft"
    started.process.send_signal(number)
    status, _ = started.end()
    assert status == 130, "as rayft ends when it is interrupted"
    assert len(started.calls("stopped")) == 1
    assert [process for process in below if lives(process)] == []
    assert list(Path("/tmp").glob(f"rayft-{started.id}*")) == []


def test_a_signal_while_the_cluster_comes_up_ends_it(job: Callable[..., Job]) -> None:
    started = job("sweep", "reviews.yaml", NEVER_UP="yes")
    started.wait_for("worker")
    started.wait_for("python")
    below = started.process.children(recursive=True)
    started.process.send_signal(signal.SIGTERM)
    status, _ = started.end()
    assert status == 143
    assert [process for process in below if lives(process)] == []
    assert started.calls("rayft") == []


@pytest.mark.parametrize("fails", ["head", "worker"])
def test_a_node_that_fails_to_come_up_ends_the_job(job: Callable[..., Job], fails: str) -> None:
    started = job("sweep", "reviews.yaml", FAILS=fails)
    status, output = started.end()
    assert status == 1
    assert "ended while" in output
    assert started.calls("rayft") == []


def test_without_slurm_or_a_command_it_says_what_it_is_for(tmp_path: Path) -> None:
    write_program(tmp_path / "venv" / "bin" / "ray", "raise SystemExit(9)")
    (tmp_path / "venv" / "bin" / "activate").write_text("")
    for arguments, said in (([], "usage: "), (["sweep", "reviews.yaml"], "sbatch")):
        done = subprocess.run(
            ["bash", CLUSTER / "slurm.sh", *arguments],
            cwd=tmp_path,
            env=environment(tmp_path, RAYFT_VENV="venv"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import CLUSTER, DEADLINE, environment, lives, wait_until, write_program

# A node as the script sees it: it comes up, fails or does neither, and has below it a daemon that never ends by itself
# and a job's program with a session of its own.
RAY = """
import os, pathlib, signal, subprocess, sys, time
if sys.argv[1] == "get-auth-token":
    path = pathlib.Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text("made")
    sys.exit()
assert os.environ["RAY_AUTH_MODE"] == "token"
if os.environ.get("FAILS") in sys.argv:
    sys.exit("out of luck")
if os.environ.get("SLOW") in sys.argv and not os.path.exists(os.environ["PIDS"] + "-slow"):
    open(os.environ["PIDS"] + "-slow", "w").close()
    sys.exit("Exception: The current node timed out during startup.")
below = [subprocess.Popen(["sleep", "86000"], start_new_session=own) for own in (False, True)]
with open(os.environ["PIDS"], "a") as file:
    file.write(f"{os.getpid()} {below[0].pid} {below[1].pid}\\n")
if os.environ.get("STUCK") in sys.argv:
    time.sleep(86000)
print("Ray runtime started.")
time.sleep(86000)
"""

NODES = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
print(json.dumps([[resources.get("CPU"), resources.get("GPU")] for resources in alive]))
"""


@dataclass
class Machine:
    """A user's, on which nothing of Ray's has been used.

    Attributes:
        home: The home, and where the script keeps its state.
        settings: The environment.
    """

    home: Path
    settings: dict[str, str]

    def local_nodes(self, *arguments: str, status: int = 0, **settings: str) -> str:
        """Runs the script to its end; returns what it printed."""
        with (self.home / "output").open("w+") as output:  # not a pipe, which a process that is left would keep open
            done = subprocess.run(
                [CLUSTER / "local_nodes.sh", *arguments],
                env={**self.settings, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=2 * DEADLINE,
                check=False,
            )
            output.seek(0)
            printed = output.read()
        assert done.returncode == status, printed
        return printed

    @property
    def state(self) -> Path:
        return self.home / f"rayft-local-nodes-{os.getuid()}"

    def recorded(self) -> list[psutil.Process]:
        """The `ray start` of each node that runs, as the script has noted it."""
        pids = [int(line.split()[1]) for line in (self.state / "nodes").read_text().splitlines()]
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]

    def noted(self) -> list[psutil.Process]:
        """Every process of nodes that stand in for Ray's, if they are still there."""
        noted = self.home / "pids"
        pids = [int(pid) for pid in noted.read_text().split()] if noted.exists() else []
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    # Ray's sockets have long names, and a socket's path may have 107 characters.
    ray_folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    ports = {f"RAYFT_NODES_{kind}": str(free_port()) for kind in ("PORT", "DASHBOARD_PORT", "CLIENT_PORT")}
    limits = {"RAYFT_NODES_START_SECONDS": str(int(DEADLINE)), "RAYFT_NODES_CPUS": "1"}
    made = Machine(
        tmp_path, environment(tmp_path, RAY_TMPDIR=ray_folder, RAY_USAGE_STATS_ENABLED="0", **ports, **limits)
    )
    yield made
    if made.state.exists():
        made.local_nodes("stop")
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture
def stand_in(machine: Machine) -> Machine:
    """The machine with something in place of `ray`."""
    programs = machine.home / "programs"
    write_program(programs / "ray", RAY)
    machine.settings |= {"PATH": f"{programs}:{machine.settings['PATH']}", "PIDS": str(machine.home / "pids")}
    machine.settings["RAYFT_NODES_STOP_SECONDS"] = "1"
    return machine


@pytest.fixture
def another() -> Iterator[psutil.Process]:
    """A process that looks like those of the nodes, in a session of its own as they are."""
    process = psutil.Popen(["sleep", "86000"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_stop_ends_every_process_of_the_nodes_and_no_other(stand_in: Machine, another: psutil.Process) -> None:
    stand_in.local_nodes("start", "2")
    processes = stand_in.noted()
    assert len(processes) == 9, "three nodes with what is below them"
    assert all(lives(process) for process in processes)
    assert set(stand_in.recorded()) < set(processes)
    stand_in.local_nodes("stop")
    assert [process for process in processes if lives(process)] == []
    assert lives(another)
    assert not stand_in.state.exists()


def test_what_a_node_left_behind_that_was_killed_is_ended_as_well(stand_in: Machine) -> None:
    stand_in.local_nodes("start", "1")
    processes = stand_in.noted()
    head, *_ = stand_in.recorded()
    daemon = next(child for child in head.children() if os.getsid(child.pid) == head.pid)
    head.kill()
    wait_until(lambda: not lives(head), "the head was gone")
    assert lives(daemon)
    stand_in.local_nodes("start", "1", status=1)
    stand_in.local_nodes("stop")
    left = [process for process in processes if lives(process)]
    assert all(os.getsid(process.pid) == process.pid for process in left), "a job's program lost its node before"
    for process in left:
        process.kill()


def test_the_token_and_the_state_are_the_users_alone(stand_in: Machine) -> None:
    stand_in.local_nodes("start", "1")
    assert (stand_in.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert stand_in.state.stat().st_mode & 0o777 == 0o700


def test_a_token_that_is_there_stays(stand_in: Machine) -> None:
    token = stand_in.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(0o644)
    stand_in.local_nodes("start", "1")
    assert token.read_text() == "mine"
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_token_from_the_environment_is_enough(stand_in: Machine) -> None:
    stand_in.local_nodes("start", "1", RAY_AUTH_TOKEN="mine")
    assert not (stand_in.home / ".ray").exists()


def test_a_second_start_is_refused_and_changes_nothing(stand_in: Machine) -> None:
    stand_in.local_nodes("start", "1")
    before = stand_in.noted()
    assert "running already" in stand_in.local_nodes("start", "2", status=1)
    assert stand_in.noted() == before
    assert all(lives(process) for process in before)


def test_stop_without_nodes_is_no_error(stand_in: Machine) -> None:
    assert "no nodes" in stand_in.local_nodes("stop")
    stand_in.local_nodes("start", "1")
    stand_in.local_nodes("stop")
    assert "no nodes" in stand_in.local_nodes("stop")


@pytest.mark.parametrize("node", ["--head", "--node-ip-address=127.0.0.4"])
def test_a_start_that_fails_leaves_nothing(stand_in: Machine, node: str) -> None:
    printed = stand_in.local_nodes("start", "2", status=1, FAILS=node)
    assert "out of luck" in printed, "what the node said"
    assert not stand_in.state.exists()
    if node != "--head":
        assert [process for process in stand_in.noted() if lives(process)] == []


def test_a_node_that_never_comes_up_ends_the_start(stand_in: Machine) -> None:
    printed = stand_in.local_nodes(
        "start", "1", status=1, STUCK="--node-ip-address=127.0.0.3", RAYFT_NODES_START_SECONDS="3"
    )
    assert "not up after 3 s" in printed
    assert [process for process in stand_in.noted() if lives(process)] == []
    assert not stand_in.state.exists()


def test_a_node_that_ray_had_no_patience_with_is_started_again(stand_in: Machine) -> None:
    stand_in.local_nodes("start", "2", SLOW="--node-ip-address=127.0.0.3")
    assert len(stand_in.noted()) == 9
    assert len((stand_in.state / "nodes").read_text().splitlines()) == 4
    processes = stand_in.noted()
    stand_in.local_nodes("stop")
    assert [process for process in processes if lives(process)] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_start_leaves_nothing(stand_in: Machine, number: signal.Signals) -> None:
    starting = psutil.Popen(
        [CLUSTER / "local_nodes.sh", "start", "1"],
        env={**stand_in.settings, "STUCK": "--head"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(stand_in.noted()) == 3, "the head was under way")
    processes = stand_in.noted()
    starting.send_signal(number)
    assert starting.wait(timeout=DEADLINE) != 0
    assert [process for process in processes if lives(process)] == []
    assert not stand_in.state.exists()


def test_a_pid_that_another_process_has_got_since_is_left_alone(stand_in: Machine, another: psutil.Process) -> None:
    stand_in.local_nodes("start", "1")
    for process in stand_in.noted():
        process.kill()
    nodes = stand_in.state / "nodes"
    wait_until(lambda: not any(lives(process) for process in stand_in.noted()), "the nodes were gone")
    name, _, started = nodes.read_text().splitlines()[0].split()
    nodes.write_text(f"{name} {another.pid} {started}\n")
    stand_in.local_nodes("stop")
    assert lives(another)


def test_after_a_reboot_the_record_is_of_no_process(stand_in: Machine, another: psutil.Process) -> None:
    stand_in.state.mkdir(mode=0o700)
    started = Path(f"/proc/{another.pid}/stat").read_text().rpartition(")")[2].split()[19]
    (stand_in.state / "nodes").write_text(f"head {another.pid} {started}\n")
    (stand_in.state / "boot_id").write_text("another boot\n")
    stand_in.local_nodes("stop")
    assert lives(another)
    assert not stand_in.state.exists()


def test_a_folder_that_others_could_have_made_is_not_trusted(stand_in: Machine, another: psutil.Process) -> None:
    elsewhere = stand_in.home / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "nodes").write_text(f"head {another.pid} 1\n")
    stand_in.state.symlink_to(elsewhere)
    assert "move it away" in stand_in.local_nodes("stop", status=1)
    assert "move it away" in stand_in.local_nodes("start", "1", status=1)
    stand_in.state.unlink()
    stand_in.state.mkdir()
    stand_in.state.chmod(0o755)
    assert "move it away" in stand_in.local_nodes("start", "1", status=1)
    stand_in.state.rmdir()


def test_a_port_in_use_is_named(stand_in: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for setting in ("RAYFT_NODES_PORT", "RAYFT_NODES_DASHBOARD_PORT", "RAYFT_NODES_CLIENT_PORT"):
            printed = stand_in.local_nodes("start", "1", status=1, **{setting: port})
            assert f"port {port} is in use; set {setting}" in printed
    assert not stand_in.state.exists()


@pytest.mark.parametrize(
    "arguments", [(), ("start",), ("start", "0"), ("start", "two"), ("start", "1", "2"), ("stop", "1")]
)
def test_anything_else_shows_how_it_is_used(stand_in: Machine, arguments: tuple[str, ...]) -> None:
    assert "local_nodes.sh start N" in stand_in.local_nodes(*arguments, status=2)


@pytest.mark.parametrize("value", ["none", "70000", "0"])
def test_a_port_must_be_one(stand_in: Machine, value: str) -> None:
    assert "must be a port" in stand_in.local_nodes("start", "1", status=1, RAYFT_NODES_PORT=value)


def ask(machine: Machine, path: str, token: str | None, **body: str) -> tuple[int, str]:
    """The status and the text of the job API's answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{machine.settings['RAYFT_NODES_DASHBOARD_PORT']}{path}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    if body:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def sleeping(seconds: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] == ["sleep", seconds] and lives(process)
    ]


@pytest.mark.slow
def test_real_nodes_come_up_guarded_and_go_again(machine: Machine) -> None:
    seconds = str(86000 + os.getpid() % 400)
    look_alike = psutil.Popen(["sleep", seconds], start_new_session=True)
    try:
        printed = machine.local_nodes("start", "2")
        address = f"127.0.0.2:{machine.settings['RAYFT_NODES_PORT']}"
        assert f"--address {address}" in printed

        for given in (address, "auto"):
            nodes = subprocess.run(
                [sys.executable, "-c", NODES, given],
                env={**machine.settings, "RAY_AUTH_MODE": "token"},
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=True,
            )
            assert json.loads(nodes.stdout.splitlines()[-1]) == [[1.0, None]] * 3

        token_file = machine.home / ".ray" / "auth_token"
        assert token_file.stat().st_mode & 0o777 == 0o600
        token = token_file.read_text()
        assert ask(machine, "/api/jobs/", None)[0] == 401
        assert ask(machine, "/api/jobs/", "0" * 64)[0] == 403
        assert ask(machine, "/api/jobs/", None, entrypoint="true")[0] == 401
        status, jobs = ask(machine, "/api/jobs/", token)
        assert (status, [job["type"] for job in json.loads(jobs)]) == (200, ["DRIVER", "DRIVER"]), "the two above"
        assert ask(machine, "/api/jobs/", token, entrypoint=f"sleep {seconds}")[0] == 200
        wait_until(lambda: len(sleeping(seconds)) == 2, "the job ran")

        leaders = machine.recorded()
        assert len(leaders) == 3
        processes = [*leaders, *(child for leader in leaders for child in leader.children(recursive=True))]
        names = " ".join(" ".join(process.cmdline()) for process in processes)
        assert names.count("raylet/raylet ") == 3
        assert names.count("gcs/gcs_server ") == 1
        (job,) = [process for process in sleeping(seconds) if process != look_alike]
        assert job in processes
        listening = {
            connection.laddr.ip
            for process in processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == int(machine.settings["RAYFT_NODES_DASHBOARD_PORT"])
        }
        assert listening == {"127.0.0.1"}

        assert "running already" in machine.local_nodes("start", "1", status=1)
        machine.local_nodes("stop")
        assert [process for process in processes if lives(process)] == []
        assert sleeping(seconds) == [look_alike]
        assert not machine.state.exists()
        assert not (Path(machine.settings["RAY_TMPDIR"]) / "ray" / "ray_current_cluster").exists()
    finally:
        look_alike.kill()
        look_alike.wait()

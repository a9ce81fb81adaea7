"""A cluster of a head and two workers that loses one of them, and what ASHA's stops leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import environment, wait_for, wait_for_line
from tests.integration.faults.conftest import HOOKS, SWEEP, Struck
from tests.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.faults

RAY = str(Path(sys.executable).parent / "ray")
HOLDING = "no dashboard, and workers that can be held"
APART = "nodes that share nothing"
LEFT_BEHIND = """
import json, sys, time, ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 10
while True:
    groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
    free, total = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
    if (not groups and free == total) or time.monotonic() > deadline:
        break
    time.sleep(0.2)
print(json.dumps({"placement_groups": groups, "free": free, "total": total}))
"""


@dataclass
class Cluster:
    """A head without CPUs and two workers with one each.

    Attributes:
        address: Of the head.
        nodes: The `ray start` of each node, the head's first.
        env: What its nodes and programs on it have in their environment.
    """

    address: str
    nodes: list[subprocess.Popen[str]]
    env: dict[str, str]


@pytest.fixture(params=["dashboard", "no dashboard"])
def cluster(request: pytest.FixtureRequest, struck: Struck, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    tmp_path = struck.flag.parent
    monkeypatch.setenv("HOME", str(tmp_path))
    env = environment()  # workers have their node's environment, not the driver's
    if request.param in (HOLDING, APART):
        hold = f"rayft.training.gradients:BatchGradients.compute:before:50:hold:{struck.flag}"
        env |= {"PYTHONPATH": str(HOOKS), "RAYFT_FAULT": hold}
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    dashboard = "true" if request.param == "dashboard" else "false"
    head = ["--head", f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--include-dashboard={dashboard}"]
    address = f"127.0.0.1:{ports[0]}"
    made = Cluster(address, [], env)
    try:
        for options in ([*head, "--num-cpus=0"], *[[f"--address={address}", "--num-cpus=1"]] * 2):
            log = tmp_path / f"node-{len(made.nodes)}.log"
            if request.param == APART:
                env = env | {"RAYFT_CACHE": str(tmp_path / f"cache-of-node-{len(made.nodes)}")}
            with log.open("w") as file:
                command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options]
                made.nodes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True, text=True)
                )
            wait_for(lambda log=log: "Ray runtime started" in log.read_text(), made.nodes[-1])
        yield made
    finally:
        for node in reversed(made.nodes):
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
                node.wait(timeout=60)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that the driver and, if they are started after it, the nodes have in their environment."""
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/runs"


def descend(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.fault("a node lost")
@pytest.mark.parametrize("cluster", [HOLDING], indirect=True)
@pytest.mark.parametrize("how", ["killed", "drained"])
def test_a_lost_node_costs_no_result(
    struck: Struck, calm: dict[str, Any], cluster: Cluster, how: str, repeat: int
) -> None:
    name = f"node-{how}-{repeat}"
    struck.project.write_sweep(name, **{**SWEEP, "cluster": {"concurrent_trials": 1, "max_failures": 5}})
    process = struck.start("sweep", f"{name}.yaml", "--address", cluster.address)
    worker = psutil.Process(struck.wait(process))
    node = next(node for node in cluster.nodes[1:] if worker.pid in [child.pid for child in descend(node)])
    if how == "killed":
        for child in descend(node):
            child.kill()
        node.kill()
    else:
        node.send_signal(signal.SIGTERM)  # `ray start --block` drains its node then
    node.wait(timeout=60)
    status, output = struck.finish(process)
    assert status == 0, output
    assert struck.outcome(name) == calm


@pytest.fixture
def second_ray() -> Iterator[None]:
    """Another Ray on this machine, of which a sweep must know nothing."""
    code = (
        "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False); print('up', flush=True); input()"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    )
    wait_for_line(process, "up")
    yield
    process.communicate("\n", timeout=60)


@pytest.mark.fault("ASHA's stops leave nothing behind", count=25)
@pytest.mark.usefixtures("second_ray")
def test_nothing_is_left_behind_by_stopped_trials(struck: Struck, cluster: Cluster) -> None:
    name = f"many-{len(cluster.env)}-{os.getpid()}-{cluster.address.rpartition(':')[2]}"
    search = {"trials": 50, "seed": 3, "sampler": "random", "metric": "loss"}  # which has no ties
    struck.project.write_sweep(name, **{**SWEEP, "search": search, "cluster": {"concurrent_trials": 2}})
    process = struck.start("sweep", f"{name}.yaml", "--address", cluster.address)
    wait_for_line(process, "trial 0 epoch 1")
    status, output = struck.finish(process)
    assert status == 0, output
    states = [trial["state"] for trial in struck.project.trials(name)]
    assert states.count("pruned") >= 25
    env = {**cluster.env, "HOME": os.environ["HOME"]}
    command = [sys.executable, "-c", LEFT_BEHIND, cluster.address]
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    left = json.loads(printed.splitlines()[-1])
    assert left["placement_groups"] == []
    assert left["free"] == left["total"]
    children = [" ".join(child.cmdline()) for node in cluster.nodes for child in descend(node)]
    assert not [command for command in children if "RayTrainWorker" in command]


@pytest.mark.fault("a node lost, of nodes that share nothing but a bucket")
@pytest.mark.parametrize("cluster", [APART], indirect=True)
def test_a_checkpoint_of_one_node_is_read_on_another(
    struck: Struck, calm: dict[str, Any], storage: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, repeat: int
) -> None:
    name = f"apart-{repeat}"
    struck.project.write_sweep(name, **{**SWEEP, "storage": storage, "cluster": {"concurrent_trials": 1}})
    process = struck.start("sweep", f"{name}.yaml", "--address", cluster.address)
    worker = psutil.Process(struck.wait(process))
    node = next(node for node in cluster.nodes[1:] if worker.pid in [child.pid for child in descend(node)])
    for child in descend(node):
        child.kill()
    node.kill()
    node.wait(timeout=60)
    status, output = struck.finish(process)
    assert status == 0, output
    struck.project.rayft("fetch", f"{storage}/{name}")
    assert struck.outcome(name) == calm
    caches = struck.flag.parent.glob("cache-of-node-*/runs/*/*/encoded/manifest.json")
    assert len(list(caches)) == 2, "each node that trained has its own copy of the data"


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [APART], indirect=True)
def test_a_trials_workers_may_be_on_different_nodes(struck: Struck, storage: str, cluster: Cluster) -> None:
    struck.flag.with_name(f"{struck.flag.name}.taken").touch()  # nobody is to be held
    spread = {"training": {"epochs": 2, "batch_size": 8}, "cluster": {"workers_per_trial": 2}}
    struck.project.write_sweep("spread", **{**SWEEP, **spread, "storage": storage})
    process = struck.project.start("sweep", "spread.yaml", "--address", cluster.address)
    status, output = struck.finish(process)
    assert status == 0, output
    caches = struck.flag.parent.glob("cache-of-node-*/runs/*/*/encoded/manifest.json")
    assert len(list(caches)) == 2

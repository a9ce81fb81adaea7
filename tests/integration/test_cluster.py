"""Trials on several workers, and sweeps on a cluster that others use as well."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayft.sweep.ray_environment import TOKEN
from tests.integration.conftest import Project, environment, wait_for

LEFT_BEHIND = """
import json, sys, ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
free, total = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
print(json.dumps({"placement_groups": groups, "free_cpus": free, "cpus": total}))
"""


def test_two_workers_give_what_one_gives(project: Project) -> None:
    sweep = {
        "training": {"epochs": 2, "batch_size": 8, "dropout": 0.0},
        "search_space": {
            "strategy": ["full", "adversarial"],
            "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
        },
        "search": {"trials": 2, "metric": "loss", "start_with": [{"strategy": "full"}, {"strategy": "adversarial"}]},
        "early_stopping": None,
    }
    project.write_sweep("one", **sweep)
    project.write_sweep("two", **sweep, cluster={"workers_per_trial": 2})
    project.rayft("sweep", "one.yaml")
    project.rayft("sweep", "two.yaml")
    one, two = project.trials("one"), project.trials("two")
    assert [trial["params"] for trial in two] == [trial["params"] for trial in one]
    assert [trial["value"] for trial in two] == pytest.approx([trial["value"] for trial in one], rel=1e-3)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray head of its own, as `ray start` makes it, without a dashboard."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    options = [f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    log = (tmp_path / "head.log").open("w+")
    process = subprocess.Popen([*ray, *options], stdout=log, stderr=log, env=environment(), start_new_session=True)
    try:
        wait_for(lambda: "started" in (tmp_path / "head.log").read_text(), process)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        log.close()


@pytest.mark.slow
def test_a_sweep_leaves_a_cluster_as_it_was(project: Project, head: str) -> None:
    project.write_sweep("shared", search={"trials": 8, "metric": "loss"}, cluster={"concurrent_trials": 2})
    project.rayft("sweep", "shared.yaml", "--address", head)
    assert "pruned" in {trial["state"] for trial in project.trials("shared")}, "ASHA stopped some"
    mode = "token" if TOKEN.exists() else "disabled"
    printed = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND, head],
        env={**environment(), "RAY_AUTH_MODE": mode},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    left = json.loads(printed.splitlines()[-1])
    assert left["placement_groups"] == []
    assert left["free_cpus"] == left["cpus"]


def test_no_cluster_at_the_address_is_a_clear_error(project: Project) -> None:
    project.write_sweep("nowhere")
    output = project.rayft("sweep", "nowhere.yaml", "--address", "127.0.0.1:1", status=2)
    assert "--address" in output
    assert "Traceback" not in output
    assert not project.run_folder("nowhere").exists()

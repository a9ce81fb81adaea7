import subprocess
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.conftest import RAY_UP, ROOT, load

CLOUDS = ["aws.yaml", "gcp.yaml"]
COMMANDS = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
COMMANDS += ["head_start_ray_commands", "worker_start_ray_commands"]

# The parameters of a machine that ours set: EC2's RunInstances and Compute Engine's instances.insert (REST v1).
NODE_CONFIG = {
    "aws": {"InstanceType", "ImageId", "BlockDeviceMappings", "MetadataOptions"}
    | {"InstanceMarketOptions", "IamInstanceProfile"},
    "gcp": {"machineType", "disks", "scheduling", "serviceAccounts"},
}
SPOT: dict[str, dict[str, Any]] = {
    "aws": {"InstanceMarketOptions": {"MarketType": "spot"}},
    "gcp": {
        "scheduling": {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "automaticRestart": False,
            "onHostMaintenance": "TERMINATE",
        }
    },
}


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does before it starts anything; returns the config with Ray's defaults."""
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def node_types(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head's type and the others."""
    types = load(name)["available_node_types"]
    head = types.pop(load(name)["head_node_type"])
    return head, list(types.values())


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_it(name: str) -> None:
    prepared = validate(load(name))
    assert prepared["max_workers"] >= 1
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize(
    ("name", "section", "key"),
    [
        *((name, (), "setup_commands") for name in RAY_UP),
        *((name, ("auth",), "ssh_user") for name in RAY_UP),
        *((name, ("available_node_types", "gpu_worker"), "max_workers") for name in CLOUDS),
    ],
)
def test_ray_refuses_a_misspelt_key(name: str, section: tuple[str, ...], key: str) -> None:
    config = load(name)
    at = config
    for step in section:
        at = at[step]
    at["mispelt"] = at.pop(key)
    with pytest.raises(jsonschema.ValidationError, match="mispelt"):
        validate(config)


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_is_on_demand_and_takes_no_trials(name: str) -> None:
    head, _ = node_types(name)
    assert not SPOT[name.removesuffix(".yaml")].keys() & head["node_config"].keys()
    assert "spot" not in str(head).lower()
    assert "preempt" not in str(head).lower()
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0, "Ray makes no second machine of the head's type"


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_on_spot_machines_and_scale(name: str) -> None:
    _, workers = node_types(name)
    assert workers
    for worker in workers:
        assert SPOT[name.removesuffix(".yaml")].items() <= worker["node_config"].items()
        assert 0 < worker["min_workers"] < worker["max_workers"] <= load(name)["max_workers"]


def test_workers_have_gpus() -> None:
    (aws,), (gcp,) = node_types("aws.yaml")[1], node_types("gcp.yaml")[1]
    assert aws["node_config"]["InstanceType"].startswith(("g", "p"))
    assert aws["resources"] == {}, "Ray asks AWS"
    assert gcp["resources"]["GPU"] >= 1
    assert gcp["node_config"]["machineType"].startswith(("g2-", "g4-", "a2-", "a3-", "a4-"))


@pytest.mark.parametrize("name", CLOUDS)
def test_machines_have_only_known_parameters(name: str) -> None:
    head, workers = node_types(name)
    for node_type in (head, *workers):
        assert node_type["node_config"].keys() <= NODE_CONFIG[name.removesuffix(".yaml")]


@pytest.mark.parametrize("name", RAY_UP)
def test_every_node_gets_the_token_and_rayft(name: str) -> None:
    config = load(name)
    mounts = config["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert {"pyproject.toml", "constraints.txt", "README.md", "rayft"} == set(mounts.values())
    for remote, local in mounts.items():
        assert remote == f"~/rayft/{local}"
        assert (ROOT / local).exists()
    install = "pip install --quiet --constraint ~/rayft/constraints.txt ~/rayft"
    assert any(command.endswith(install) for command in config["setup_commands"])


@pytest.mark.parametrize("name", RAY_UP)
def test_commands_are_bash(name: str) -> None:
    prepared = validate(load(name))
    commands = [command for key in COMMANDS for command in prepared[key]]
    assert len(commands) > 6
    for command in commands:
        done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize("name", RAY_UP)
def test_the_same_steps_everywhere(name: str) -> None:
    """The files are copies where they say the same, and must not drift apart."""
    one, other = load("aws.yaml"), load(name)
    for key in ("file_mounts", "rsync_exclude", "head_start_ray_commands", "worker_start_ray_commands"):
        assert other[key] == one[key]
    assert set(other["setup_commands"]) <= set(one["setup_commands"])

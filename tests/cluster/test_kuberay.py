import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import KUBERAY, ROOT, load, ray_cluster_spec, read
from tests.cluster.kuberay import MANIFESTS, faults

FILES = [*KUBERAY, "kuberay_storage.yaml"]


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all mappings with keys of the format's own, and not of the user's."""
    if isinstance(value, dict):
        if path and path[-1] not in ("nodeSelector", "rayStartParams", "limits", "requests", "labels"):
            yield path
        for key, item in value.items():
            yield from mappings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from mappings(item, (*path, index))


def pods(name: str) -> dict[str, dict[str, Any]]:
    """Each group's pod."""
    spec = ray_cluster_spec(name)
    workers = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]["spec"], **workers}


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_one_of_the_format(name: str) -> None:
    manifest = load(name)
    assert faults(manifest, MANIFESTS[manifest["kind"]]) == []


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_key_is_found_wherever_it_is(name: str) -> None:
    manifest = load(name)
    paths = list(mappings(manifest))
    assert len(paths) > (30 if name in KUBERAY else 2)
    for path in paths:
        changed = copy.deepcopy(manifest)
        at = changed
        for key in path:
            at = at[key]
        at["mispelt"] = at.pop(next(iter(at))) if at else None
        assert any("mispelt is unknown" in fault for fault in faults(changed, MANIFESTS[manifest["kind"]])), path


def test_parameters_of_ray_start_must_be_strings() -> None:
    manifest = load("kuberay_cluster.yaml")
    manifest["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert faults(manifest, MANIFESTS["RayCluster"]) == [".spec.headGroupSpec.rayStartParams.num-cpus must be a string"]


@pytest.mark.parametrize("name", KUBERAY)
def test_the_head_is_on_demand_and_workers_are_on_spot_nodes_with_gpus(name: str) -> None:
    head, *workers = pods(name).values()
    assert head["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert ray_cluster_spec(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert workers
    for worker in workers:
        assert worker["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
        assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] >= 1
        assert "nvidia.com/gpu" in [toleration["key"] for toleration in worker["tolerations"]]


@pytest.mark.parametrize("name", KUBERAY)
def test_the_autoscaler_may_bring_lost_workers_back(name: str) -> None:
    spec = ray_cluster_spec(name)
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", KUBERAY)
def test_all_pods_have_the_image_of_the_dockerfile_and_the_shared_folder(name: str) -> None:
    claim = load("kuberay_storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(name).values():
        (container,) = pod["containers"]
        assert container["image"] in read("Dockerfile")
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_job_runs_a_sweep_that_its_pods_have_and_is_not_started_over() -> None:
    spec = load("kuberay_job.yaml")["spec"]
    assert spec["entrypoint"].split()[:3] == ["rayft", "sweep", "/sweep/sweep.yaml"]
    assert {"name": "sweep", "mountPath": "/sweep", "readOnly": True} in (
        pods("kuberay_job.yaml")["head"]["containers"][0]["volumeMounts"]
    )
    assert spec["backoffLimit"] == 0


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_is_the_version_that_rayft_was_tested_with(name: str) -> None:
    assert f"ray=={ray_cluster_spec(name)['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_dockerfile_copies_what_is_there() -> None:
    copied = [line.split()[1:-1] for line in read("Dockerfile").splitlines() if line.startswith("COPY ")]
    assert copied == [["pyproject.toml", "constraints.txt", "README.md"], ["rayft"]]
    assert all((ROOT / name).exists() for names in copied for name in names)

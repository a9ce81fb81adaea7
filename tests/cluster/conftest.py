"""The files of `cluster/`, and programs that stand in for others."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DEADLINE = 300.0
"""Seconds after which a test gives up waiting for an event; not a claim about speed."""

RAY_UP = ("on_premise.yaml", "aws.yaml", "gcp.yaml")
KUBERAY = ("kuberay_cluster.yaml", "kuberay_job.yaml")
SCRIPTS = ("local_nodes.sh", "slurm.sh")
OTHERS = ("README.md", "Dockerfile", "kuberay_storage.yaml")


def read(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """The only document of a YAML file."""
    (document,) = yaml.safe_load_all(read(name))
    assert isinstance(document, dict)
    return document


def ray_cluster_spec(name: str) -> dict[str, Any]:
    """What a KubeRay manifest says of its cluster."""
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def write_program(path: Path, python: str) -> None:
    """An executable that runs the Python code, whatever `python` is on the PATH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{python}")
    path.chmod(0o755)


def environment(home: Path, programs: Path | None = None, **settings: str) -> dict[str, str]:
    """Of a user whose home is a new folder, who has this environment activated, and has set nothing of Ray's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY", "SLURM", "OMP_", "MKL_"))}
    folders = [str(folder) for folder in (programs, Path(sys.executable).parent) if folder is not None]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    return {**kept, "PATH": path, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), **settings}


def wait_until(event: Callable[[], Any], what: str) -> Any:
    """Waits for an event; returns what it gave."""
    deadline = time.monotonic() + DEADLINE
    while not (seen := event()):
        assert time.monotonic() < deadline, f"it never happened that {what}"
        time.sleep(0.05)
    return seen


def lives(process: psutil.Process) -> bool:
    """Whether it runs: it isn't over, and no other process has its pid."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

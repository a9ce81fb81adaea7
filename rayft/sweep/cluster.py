"""Connects to Ray, and works out how many trials fit side by side."""

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from rayft.config import ClusterConfig
from rayft.errors import SWEEP_FILE, ClusterError, Fault, SweepFailedError
from rayft.sweep.ray_environment import protect_token

CONNECT_SECONDS = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """How a sweep uses its cluster.

    Attributes:
        groups: Worker groups, which is trials side by side.
        workers: Workers per group.
        cpus: CPUs per worker.
        gpus: GPUs per worker, which may be a fraction.
    """

    groups: int
    workers: int
    cpus: int
    gpus: float


@contextmanager
def connected(address: str | None, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Connects this process to a cluster, or starts Ray on this machine, for as long as the block runs.

    Args:
        address: The cluster's address, or None for this machine alone.
        meanwhile: Called while Ray comes up.

    Raises:
        ClusterError: There is no cluster at the address, or it is one that a sweep can't run from here.
    """
    if address is not None and address.startswith("ray://"):
        rule = "ray:// runs the sweep far from its run folder and its screen; run rayft on the cluster itself"
        raise ClusterError([Fault("--address", f"{rule}, but got {address!r}")])
    if address is not None:
        _check_reachable(address)
    # Not on the main thread, where Ray would put up a SIGTERM handler of its own, which exits in mid-sweep; and the
    # main thread has seconds of imports to do meanwhile. Ray's processes die with the thread that started them, so it
    # stays.
    with ThreadPoolExecutor(1, "ray") as starter:
        started = starter.submit(_start, address)
        meanwhile()
        try:
            started.result()
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            rule = f"no Ray cluster answers at {address!r}: {str(error).splitlines()[0]}"
            raise ClusterError([Fault("--address", rule)]) from None
        rays = logging.getLogger("ray")
        screen, rays.handlers = rays.handlers, logging.getLogger("rayft").handlers  # what Ray says is for the run's log
        try:
            protect_token()
            yield
        except RayError as error:
            logger.exception("Ray failed")
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise SweepFailedError(f"Ray failed: {reason}; the run can be resumed") from None
        finally:
            ray.shutdown()
            rays.handlers = screen


def _start(address: str | None) -> None:
    # "local" and not None: a stale /tmp/ray/ray_current_cluster would be joined otherwise.
    local = {} if address else {"num_cpus": cpu_count(), "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes before it gives up on an address where nothing listens."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # auto, or a name that Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        rule = f"no Ray cluster answers at {address!r}: {error}"
        raise ClusterError([Fault("--address", rule)]) from None


def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def plan(nodes: list[dict[str, float]], cluster: ClusterConfig, trials: int) -> Placement:
    """Fits worker groups into the cluster.

    Args:
        nodes: Each node's resources, as Ray names them.
        cluster: What the sweep asks for.
        trials: No more groups than these.

    Raises:
        ClusterError: The cluster can never give what is asked for.
    """
    gpus = cluster.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if cluster.workers_per_trial > 1 and 0 < gpus < 1:
        workers = f"a trial has {cluster.workers_per_trial} workers"
        rule = f"must be a whole number where {workers}, since NCCL takes one worker for a GPU"
        raise ClusterError([Fault(SWEEP_FILE, f"{rule}; got {gpus:g}", "cluster.gpus_per_worker")])
    has = f"it has {len(nodes)} nodes with {_total(nodes, 'CPU'):g} CPUs and {_total(nodes, 'GPU'):g} GPUs"
    each = f"{cluster.cpus_per_worker} CPUs and {gpus:g} GPUs"
    fitting = sum(_workers_on(node, cluster.cpus_per_worker, gpus) for node in nodes)
    groups = fitting // cluster.workers_per_trial
    if groups == 0:
        rule = f"a trial needs {cluster.workers_per_trial} workers of {each}, more than the cluster has: {has}"
        raise ClusterError([Fault(SWEEP_FILE, rule, "cluster.workers_per_trial")])
    if cluster.concurrent_trials != "auto":
        if cluster.concurrent_trials > groups:
            workers = f"{cluster.workers_per_trial} workers of {each} each"
            rule = f"must be <= {groups}, since {has} and a trial takes {workers}; got {cluster.concurrent_trials}"
            raise ClusterError([Fault(SWEEP_FILE, rule, "cluster.concurrent_trials")])
        groups = cluster.concurrent_trials
    return Placement(min(groups, trials), cluster.workers_per_trial, cluster.cpus_per_worker, gpus)


def node_resources() -> list[dict[str, float]]:
    """The resources of every node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _workers_on(node: dict[str, float], cpus: int, gpus: float) -> int:
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    if gpus == 0:
        return by_cpu
    if gpus < 1:  # a fraction never spans two GPUs
        return min(by_cpu, int(node.get("GPU", 0)) * math.floor(1 / gpus + 1e-9))
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus))


def _total(nodes: list[dict[str, float]], resource: str) -> float:
    return sum(node.get(resource, 0) for node in nodes)

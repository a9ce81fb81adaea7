"""How long a sweep may go on: by the clock, or by the processors that it holds."""

from dataclasses import dataclass

from rayft.config import SearchConfig
from rayft.errors import SWEEP_FILE, ClusterError, Fault
from rayft.sweep.cluster import Placement


@dataclass(frozen=True)
class Limit:
    """The first of the sweep's limits to be reached.

    Attributes:
        key: As the sweep file has it, such as `search.core_hours`.
        seconds: From the sweep's start.
    """

    key: str
    seconds: float


def first_limit(search: SearchConfig, placement: Placement) -> Limit | None:
    """Which limit ends the sweep, given what it holds of the cluster; None if there is none.

    Raises:
        ClusterError: GPU hours are limited, and no GPU is used.
    """
    workers = placement.groups * placement.workers
    limits = []
    if search.time_limit is not None:
        limits.append(Limit("search.time_limit", search.time_limit))
    if search.core_hours is not None:
        limits.append(Limit("search.core_hours", search.core_hours * 3600 / (workers * placement.cpus)))
    if search.gpu_hours is not None:
        if not placement.gpus:
            rule = "the sweep uses no GPU, so it would never end by it; search.core_hours or search.time_limit would"
            raise ClusterError([Fault(SWEEP_FILE, rule, "search.gpu_hours")])
        limits.append(Limit("search.gpu_hours", search.gpu_hours * 3600 / (workers * placement.gpus)))
    return min(limits, key=lambda limit: limit.seconds, default=None)

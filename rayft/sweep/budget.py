"""How long a sweep may go on: by the clock, or by the processors that it holds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rayft.config import SearchConfig, SweepConfig
from rayft.errors import SWEEP_FILE, ClusterError, Fault
from rayft.sweep.cluster import Placement
from rayft.sweep.final import is_wanted, run_seconds
from rayft.sweep.trial_record import Role, TrialRecord

EXPORT_SECONDS = 10.0
"""What exporting the winner and proving it takes beside the scoring: starting a process, and loading the model."""
STAGE_SECONDS = 5.0
"""What it takes to end the search and begin the last stage, beside the epoch that each group is in."""
LOOK_SECONDS = 1.0
"""How often it is worked out anew what has to be set aside."""


@dataclass(frozen=True)
class Limit:
    """The first of the sweep's limits to be reached.

    Attributes:
        key: As the sweep file has it, such as `search.core_hours`.
        seconds: From when the command began, for time_limit; else from when the workers were asked for.
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


class Clock:
    """Says when a stage has to end, so that the sweep ends in time and with a winner.

    The search leaves time for the last stage, if there is to be one, and both for the export. Before there is any value
    to win with, the limit itself counts.

    Args:
        config: The sweep.
        limit: Its first limit, if it has any.
        groups: Trials side by side.
        records: Gives all trials.
        began: When the command began, in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        config: SweepConfig,
        limit: Limit | None,
        groups: int,
        records: Callable[[], Sequence[TrialRecord]],
        began: float,
    ) -> None:
        self._config, self._groups, self._records = config, groups, records
        self.limit = limit
        self._by_clock = limit is not None and limit.key == "search.time_limit"
        self._began = began if self._by_clock else time.monotonic()
        self._looked: float | None = None
        self._set_aside: dict[Role, float] = {"search": 0.0, "final": 0.0}

    def is_up(self, role: Role) -> bool:
        """Whether a stage has to end now."""
        if self.limit is None:
            return False
        now = time.monotonic()
        if self._looked is None or now - self._looked >= LOOK_SECONDS:
            self._looked, records = now, self._records()
            export = export_seconds(records) if self._by_clock else 0.0
            self._set_aside = {"search": export + final_seconds(self._config, records, self._groups), "final": export}
        return now - self._began > self.limit.seconds - self._set_aside[role]


def export_seconds(records: Sequence[TrialRecord]) -> float:
    """About what the export takes; 0 without anything to export.

    Scoring validation and test takes no longer than an epoch of training, which computes three times as much per row.
    """
    longest = _longest_epoch(records)
    return EXPORT_SECONDS + longest if longest else 0.0


def final_seconds(config: SweepConfig, records: Sequence[TrialRecord], groups: int) -> float:
    """About what is left of the last stage takes with so many trials side by side; 0 if there is to be none."""
    runs = run_seconds(config, records) if is_wanted(config, records) else []
    done = sum(record.role == "final" and record.state in ("complete", "failed") for record in records)
    left = runs[done:]
    return STAGE_SECONDS + _longest_epoch(records) + max(sum(left) / groups, max(left)) if left else 0.0


def _longest_epoch(records: Sequence[TrialRecord]) -> float:
    return max((record.seconds / record.epochs for record in records if record.epochs), default=0.0)

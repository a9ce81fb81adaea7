"""What the parts of a running sweep share."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rayft.config import SweepConfig, Value
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord
from rayft.training.results import EpochResult


class Watcher(Protocol):
    """Who is told what happens while a sweep runs, such as the screen and TensorBoard's events."""

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """A trial begins, or goes on."""

    def epoch(self, number: int, result: EpochResult) -> None:
        """A trial has finished an epoch."""

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial is complete, pruned or failed."""


@dataclass(frozen=True)
class OpenSweep:
    """A sweep that this process works on.

    Attributes:
        config: Its configuration.
        run: Its run folder.
        study: Its record.
        watchers: Told what happens.
        to_run: Trials that are still to run.
        note: Shows the user something that they should read.
        began: When the command began, in seconds of `time.monotonic`.
    """

    config: SweepConfig
    run: RunFolder
    study: SweepStudy
    watchers: tuple[Watcher, ...]
    to_run: int
    note: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)

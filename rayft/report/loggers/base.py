"""What every logger is, and what it is told of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rayft.config import SweepConfig, Value
from rayft.sweep.run_folder import ENVIRONMENT, RunFolder
from rayft.training.results import EpochResult

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord

PROJECT = "rayft"
"""The experiment of MLflow, or the project of Weights & Biases, where the environment names none."""

LONGEST_WAIT = 30.0
"""Seconds that the end of a sweep waits for a logger to get through."""


class RunLogger(Protocol):
    """A `Watcher` that may raise anything and take its time, and is closed at the end."""

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""

    def epoch(self, number: int, result: EpochResult) -> None:
        """See `Watcher`."""

    def trial_ended(self, record: "TrialRecord") -> None:
        """See `Watcher`."""

    def close(self) -> None:
        """Leaves the trials that still run so that they can go on later."""


@dataclass(frozen=True)
class SweepFacts:
    """What the runs of a sweep have in common.

    Attributes:
        name: The sweep's, as people know it.
        run: Its own name among all runs of that name.
        fixed: The strategy and the model, for trials that search neither.
    """

    name: str
    run: str
    fixed: Mapping[str, Value]

    @classmethod
    def of(cls, run: RunFolder, config: SweepConfig) -> "SweepFacts":
        """Those of a sweep.

        Raises:
            RunError: The run's file of its environment is gone.
            OSError: Remote storage, which has it, can't be reached.
        """
        run.obtain(ENVIRONMENT)
        fixed = {"strategy": config.training.strategy, "model": config.models[0]}
        return cls(run.path.name, run.study_name, fixed)


def of_epoch(result: EpochResult) -> dict[str, float]:
    """An epoch's metrics, as a logger names them."""
    values = {f"validation/{name}": value for name, value in result.metrics.items()}
    return values | {"train/loss": result.train_loss, "train/samples_per_second": result.samples_per_second}


def of_best(record: "TrialRecord") -> dict[str, float]:
    """Those of the best epoch."""
    return {f"best/{name}": value for name, value in record.measured.items()}


def of_end(record: "TrialRecord") -> dict[str, Value]:
    """How a trial ended, and what it was for."""
    ended: dict[str, Value] = {"state": record.state, "role": record.role}
    return ended | ({"final_of": record.final_of, "seed": record.seed} if record.role == "final" else {})

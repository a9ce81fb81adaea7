"""ASHA, and how its rungs are rebuilt from the record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from rayft.config import Mode, SweepConfig
from rayft.sweep.ranking import Point
from rayft.sweep.trial_record import TrialRecord


@dataclass(frozen=True)
class _Numbered:
    """A trial as ASHA's rungs know it: by its number in the study, whatever Tune calls it now."""

    number: int

    @property
    def trial_id(self) -> str:
        return str(self.number)


class _NumberedAsha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """Ray's ASHA, in which a trial that goes on under a new Tune id is the same trial.

    It would stand in a rung twice otherwise, or be judged at a rung that it has passed.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook for a new trial."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's hook for an epoch that isn't the last."""
        return str(super().on_trial_result(tune_controller, _numbered(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune's hook for the last epoch."""
        super().on_trial_complete(tune_controller, _numbered(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tune's hook for a trial that never ended."""
        super().on_trial_remove(tune_controller, _numbered(trial))


class ParetoAsha(FIFOScheduler):  # type: ignore[misc]
    """ASHA for several objectives: trials are ranked at each rung by non-dominated sorting, not by one value.

    As in MO-ASHA (Schmucker et al. 2021), but that trials of one front all go on, so that none is stopped that no other
    one beats. A trial is stopped if the better fronts have their share, one in `reduction_factor`, filled already.

    Args:
        modes: For each objective, whether less or more of it is better.
        epochs: The longest that a trial trains.
        grace_epochs: The first rung.
        reduction_factor: One in this many goes on at each rung, each of which is so many times the one before.
    """

    def __init__(self, modes: Sequence[Mode], epochs: int, grace_epochs: int, reduction_factor: int) -> None:
        super().__init__()
        self._modes, self._epochs, self._factor = modes, epochs, reduction_factor
        self._rungs: dict[int, dict[int, Point]] = {}
        rung = grace_epochs
        while rung < epochs:
            self._rungs[rung] = {}
            rung *= reduction_factor

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's hook for an epoch."""
        if "point" not in result:  # it tells of a failure
            return str(TrialScheduler.CONTINUE)
        epoch, number = result["epoch"], _numbered(trial).number
        if epoch >= self._epochs:
            return str(TrialScheduler.STOP)
        rung = self._rungs.get(epoch)
        if rung is None or number in rung:
            return str(TrialScheduler.CONTINUE)
        rung[number] = result["point"]
        fronts = front_numbers([*rung.values()], self._modes)
        better = sum(front < fronts[-1] for front in fronts)
        return str(TrialScheduler.STOP if better >= len(rung) / self._factor else TrialScheduler.CONTINUE)


def make_scheduler(config: SweepConfig) -> TrialScheduler:
    """Ray's ASHA on epochs (Li et al. 2020), one of our own for several objectives, or no early stopping."""
    stopping = config.early_stopping
    if stopping is None:
        return FIFOScheduler()
    if len(config.objectives) > 1:
        return ParetoAsha(config.modes, config.training.epochs, stopping.grace_epochs, stopping.reduction_factor)
    return _NumberedAsha(
        time_attr="epoch",
        metric=config.metric,
        mode=config.mode,
        max_t=config.training.epochs,
        grace_period=stopping.grace_epochs,
        reduction_factor=stopping.reduction_factor,
    )


def replay(scheduler: TrialScheduler, config: SweepConfig, record: TrialRecord) -> bool:
    """Shows a trial's recorded epochs to the scheduler, as if they came in now; what it has seen, it passes over.

    Returns:
        Whether the scheduler stops the trial at its last epoch.
    """
    trial = _Numbered(record.number)
    scheduler.on_trial_add(None, trial)
    decision = TrialScheduler.CONTINUE
    for epoch, value in sorted(record.values.items()):
        result = {"epoch": epoch, config.metric: value, "point": record.point_at(epoch)}
        decision = scheduler.on_trial_result(None, trial, result)
    return bool(decision == TrialScheduler.STOP)


def _numbered(trial: Any) -> _Numbered:
    return trial if isinstance(trial, _Numbered) else _Numbered(trial.config["assignment"].trial)


def front_numbers(points: Sequence[Point], modes: Sequence[Mode]) -> list[int]:
    """Each point's front: 0 for those that none dominates, 1 for those that only these do, and so on.

    The non-dominated sorting of NSGA-II (Deb et al. 2002).
    """
    signs = np.array([-1.0 if mode == "max" else 1.0 for mode in modes])
    values = np.array([tuple(point) for point in points]).reshape(len(points), len(modes)) * signs
    below = (values[:, None] <= values[None]).all(axis=2) & (values[:, None] < values[None]).any(axis=2)
    fronts, left, number = np.zeros(len(points), dtype=int), np.ones(len(points), dtype=bool), 0
    while left.any():
        front = left & ~below[left].any(axis=0)
        fronts[front], left, number = number, left & ~front, number + 1
    found: list[int] = fronts.tolist()
    return found

"""ASHA, and how its rungs are rebuilt from the record."""

from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from rayft.config import SweepConfig
from rayft.sweep.study import TrialRecord


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


def make_scheduler(config: SweepConfig) -> TrialScheduler:
    """Ray's ASHA on epochs (Li et al. 2020), or no early stopping."""
    stopping = config.early_stopping
    if stopping is None:
        return FIFOScheduler()
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
        decision = scheduler.on_trial_result(None, trial, {"epoch": epoch, config.metric: value})
    return bool(decision == TrialScheduler.STOP)


def _numbered(trial: Any) -> _Numbered:
    return trial if isinstance(trial, _Numbered) else _Numbered(trial.config["assignment"].trial)

"""ASHA, and how its rungs are rebuilt from the record."""

from dataclasses import dataclass

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from rayft.config import SweepConfig
from rayft.sweep.study import TrialRecord


@dataclass(frozen=True)
class _PastTrial:
    """The one attribute of a Tune trial that the scheduler reads."""

    trial_id: str


def make_scheduler(config: SweepConfig) -> TrialScheduler:
    """Ray's ASHA on epochs (Li et al. 2020), or no early stopping."""
    stopping = config.early_stopping
    if stopping is None:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=config.search.metric,
        mode=config.search.direction,
        max_t=config.training.epochs,
        grace_period=stopping.grace_epochs,
        reduction_factor=stopping.reduction_factor,
    )


def replay(scheduler: TrialScheduler, config: SweepConfig, record: TrialRecord, trial_id: str | None = None) -> bool:
    """Shows a trial's recorded epochs to the scheduler, as if they came in now.

    Args:
        scheduler: What `make_scheduler` gave.
        config: The sweep.
        record: The trial.
        trial_id: Tune's id of a trial that goes on; without it, the trial is over.

    Returns:
        Whether the scheduler stops the trial at its last epoch.
    """
    trial = _PastTrial(trial_id or f"past-{record.number}")
    scheduler.on_trial_add(None, trial)
    decision = TrialScheduler.CONTINUE
    for epoch, value in sorted(record.values.items()):
        decision = scheduler.on_trial_result(None, trial, {"epoch": epoch, config.search.metric: value})
    return bool(decision == TrialScheduler.STOP)

"""Each trial as a run in Weights & Biases."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayft.config import Value
from rayft.report.loggers.base import LONGEST_WAIT, PROJECT, SweepFacts, of_best, of_end, of_epoch
from rayft.training.results import EpochResult

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord


class WandbRuns:
    """Each trial as a run in Weights & Biases; one that goes on after a resume has the same id."""

    def __init__(self, facts: SweepFacts) -> None:
        import wandb

        # Silence is also what keeps it from asking for a key, in the middle of the progress view.
        wandb.setup(wandb.Settings(silent=True))
        # What it measures of the process and reads of its code would be the driver's, and the same for all trials.
        own = {"console": "off", "x_disable_stats": True, "disable_git": True, "disable_code": True}
        # Without a limit the program's end, too, waits for a server that is away.
        limits = {"init_timeout": LONGEST_WAIT, "finish_timeout": LONGEST_WAIT / 2, "finish_timeout_raises": True}
        self._settings = wandb.Settings(silent=True, **own, **limits)
        self._facts = facts
        self._runs: dict[int, Any] = {}

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Begins the trial's run, or goes on in the one that it has."""
        import wandb

        if number in self._runs:
            return
        self._runs[number] = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=self._facts.name,
            name=f"{self._facts.name}/{number}",
            id=f"{self._facts.run}-{number}",
            resume="allow",
            reinit="create_new",
            config={"sweep": self._facts.name, "trial": number, **self._facts.fixed, **params},
            settings=self._settings,
        )

    def epoch(self, number: int, result: EpochResult) -> None:
        """Logs an epoch's metrics."""
        self._runs[number].log(of_epoch(result), step=result.epoch)

    def trial_ended(self, record: "TrialRecord") -> None:
        """Logs the best epoch's metrics and how the trial ended."""
        self.trial_started(record.number, record.params)
        run = self._runs.pop(record.number)
        run.summary.update({**of_end(record), **of_best(record)})
        run.finish(exit_code=int(record.state == "failed"))

    def close(self) -> None:
        """Ends the runs of trials that were cut off; their ids take them up again."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)

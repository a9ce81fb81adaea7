"""Writes what happens to the study, TensorBoard, the log and the screen."""

import logging
import shutil
from typing import Any, Protocol

from ray import tune

from rayft.config import SweepConfig
from rayft.report.tensorboard import TrialEvents
from rayft.sweep.exchange import LEADERS
from rayft.sweep.protocol import Commit, EpochDone, GroupLost, Outcome, TrialFailed
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.searcher import DriverOnly, StudySearcher
from rayft.sweep.study import SweepStudy, TrialRecord, leaders

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who is shown the sweep while it runs."""

    def trial_started(self, number: int, params: dict[str, Any]) -> None: ...  # noqa: D102
    def epoch(self, number: int, epoch: int, value: float) -> None: ...  # noqa: D102
    def trial_ended(self, record: TrialRecord) -> None: ...  # noqa: D102


class Recorder(DriverOnly, tune.Callback):  # type: ignore[misc]
    """Tune's callback, and the one writer of the record.

    Attributes:
        lost: Why the sweep can't go on, once a worker group can't be started.
    """

    def __init__(
        self, config: SweepConfig, run: RunFolder, study: SweepStudy, searcher: StudySearcher, watcher: Watcher
    ) -> None:
        self._config = config
        self._run = run
        self._study = study
        self._searcher = searcher
        self._watcher = watcher
        self._events = TrialEvents(run.path, config)
        self.lost: str | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or is taken up again."""
        number = trial.config["assignment"].trial
        params = self._study.record(number).params
        self._events.trial_started(number, params)
        self._watcher.trial_started(number, params)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, before Tune carries out what ASHA decided on it."""
        outcome: Outcome = result["outcome"]
        if isinstance(outcome, EpochDone | TrialFailed):
            self.record_commits(outcome.commits)
        if isinstance(outcome, GroupLost):
            self.lost = outcome.reason
        if not isinstance(outcome, EpochDone):
            return
        number, done = trial.config["assignment"].trial, outcome.result
        self._study.record_epoch(number, done.epoch, done.metrics, done.seconds)
        self._events.epoch(number, done)
        self._watcher.epoch(number, done.epoch, done.metrics[self._config.search.metric])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial trained to its end, was stopped by ASHA, or failed on its own account."""
        self._searcher.release(trial.config["slot"])
        number = trial.config["assignment"].trial
        outcome: Outcome = trial.last_result["outcome"]
        if isinstance(outcome, TrialFailed):
            logger.error("trial %d failed (%s): %s\n%s", number, outcome.kind, outcome.reason, outcome.detail)
            self._ended(self._study.fail(number, outcome.kind, outcome.reason))
        elif isinstance(outcome, EpochDone):
            self._ended(self._study.finish(number))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's actor was lost more often than `cluster.max_failures` allows."""
        self._searcher.release(trial.config["slot"])
        number = trial.config["assignment"].trial
        logger.error("trial %d lost its actor: %s", number, trial.get_error())
        self._ended(self._study.fail(number, "infrastructure", "the trial's actor was lost"))

    def record_commits(self, commits: tuple[Commit, ...]) -> None:
        """Notes checkpoints that are complete on disk."""
        for commit in commits:
            self._study.record_checkpoint(commit.trial, commit.epoch, commit.digest)

    def _ended(self, record: TrialRecord) -> None:
        self._events.trial_ended(record)
        self._watcher.trial_ended(record)
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints of ended trials that don't lead, and of the leaders all but the best epoch's."""
        records = self._study.records()
        keep = {r.number: r.best_epoch for r in leaders(records, self._config.search.direction, LEADERS)}
        for record in records:
            if record.state == "running":
                continue
            for folder in self._run.trial(record.number).glob("checkpoint-*"):
                if folder != self._run.checkpoint(record.number, keep.get(record.number) or 0):
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Flushes the events."""
        self._events.close()

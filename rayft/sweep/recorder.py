"""Writes what happens to the study, TensorBoard, the log and the screen."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ray import tune

from rayft.config import SweepConfig
from rayft.report.tensorboard import TrialEvents
from rayft.sweep.exchange import LEADERS
from rayft.sweep.protocol import EpochDone, GroupLost, Outcome, TrialFailed
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
        stopped_by: Why the sweep can't go on, if it can't.
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
        self.stopped_by: str | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or is taken up again."""
        with self._stopping_on_error():
            number = trial.config["assignment"].trial
            params = self._study.record(number).params
            self._events.trial_started(number, params)
            self._watcher.trial_started(number, params)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, before Tune carries out what ASHA decided on it."""
        outcome: Outcome = result["outcome"]
        if not isinstance(outcome, EpochDone):
            return
        with self._stopping_on_error():
            number, done = trial.config["assignment"].trial, outcome.result
            self._study.record_epoch(number, done.epoch, done.metrics, done.seconds, outcome.digest)
            self._events.epoch(number, done)
            self._watcher.epoch(number, done.epoch, done.metrics[self._config.search.metric])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial trained to its end, was stopped by ASHA, failed on its own account, or lost its group."""
        slot, number = trial.config["slot"], trial.config["assignment"].trial
        outcome: Outcome = trial.last_result["outcome"]
        with self._stopping_on_error():
            if isinstance(outcome, GroupLost):
                logger.error("worker group %d is lost: %s", slot, outcome.reason)
                if not self._searcher.give_back(slot, number):
                    self.stopped_by = f"no worker group can be started: {outcome.reason}"
            elif isinstance(outcome, TrialFailed):
                logger.error("trial %d failed (%s): %s\n%s", number, outcome.kind, outcome.reason, outcome.detail)
                self._ended(slot, self._study.fail(number, outcome.kind, outcome.reason))
            elif isinstance(outcome, EpochDone):
                self._ended(slot, self._study.finish(number))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's actor was lost more often than `cluster.max_failures` allows."""
        with self._stopping_on_error():
            number = trial.config["assignment"].trial
            logger.error("trial %d lost its actor: %s", number, trial.get_error())
            record = self._study.fail(number, "infrastructure", "the trial's actor was lost")
            self._ended(trial.config["slot"], record)

    @contextmanager
    def _stopping_on_error(self) -> Iterator[None]:
        # Tune takes an exception in a callback for the trial's, and goes on with a record that lacks it.
        try:
            yield
        except Exception as error:
            logger.exception("the record can't be written")
            self.stopped_by = f"the record can't be written: {type(error).__name__}: {error}".splitlines()[0]

    def _ended(self, slot: int, record: TrialRecord) -> None:
        self._events.trial_ended(record)
        self._watcher.trial_ended(record)
        self.drop_checkpoints()
        self._searcher.release(slot)  # last: what fails before it must not give the slot to a second trial

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints of ended trials that don't lead, and of the leaders all but the best epoch's."""
        # A running trial may lead and still fail: those that have ended are ranked among themselves.
        ended = [record for record in self._study.records() if record.state != "running"]
        keep = {r.number: r.best_epoch for r in leaders(ended, self._config.search.direction, LEADERS)}
        for record in ended:
            for folder in self._run.trial(record.number).glob("checkpoint-*"):
                if folder.name != f"checkpoint-{keep.get(record.number)}":
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Flushes the events."""
        self._events.close()

"""Writes what happens to the study, and tells those who watch."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from rayft.sweep.exchange import LEADERS
from rayft.sweep.open_sweep import OpenSweep
from rayft.sweep.protocol import EpochDone, GroupLost, Outcome, TrialFailed
from rayft.sweep.ranking import leaders, pareto_front
from rayft.sweep.run_folder import checkpoint_path
from rayft.sweep.searcher import DriverOnly, StudySearcher
from rayft.sweep.trial_record import TrialRecord

logger = logging.getLogger(__name__)


class Recorder(DriverOnly, tune.Callback):  # type: ignore[misc]
    """Tune's callback, and the one writer of the record.

    Attributes:
        stopped_by: Why the sweep can't go on, if it can't.
    """

    def __init__(self, sweep: OpenSweep, searcher: StudySearcher) -> None:
        self._modes = sweep.config.modes
        self._max_failures = sweep.config.cluster.max_failures
        self._lost_actors: Counter[int] = Counter()
        self._run = sweep.run
        self._study = sweep.study
        self._watchers = sweep.watchers
        self._searcher = searcher
        self._leaders = self._kept(self._ended_trials())
        self.stopped_by: str | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or is taken up again."""
        with self._stopping_on_error():
            number = trial.config["assignment"].trial
            params = self._study.record(number).params
            for watcher in self._watchers:
                watcher.trial_started(number, params)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, before Tune carries out what ASHA decided on it."""
        outcome: Outcome = result["outcome"]
        if not isinstance(outcome, EpochDone):
            return
        with self._stopping_on_error():
            number, done = trial.config["assignment"].trial, outcome.result
            for note in outcome.notes:
                logger.info("worker group %d: %s", trial.config["slot"], note)
            self._study.record_epoch(number, done.epoch, done.metrics, done.seconds, outcome.digest, outcome.point)
            for watcher in self._watchers:
                watcher.epoch(number, done)

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
                if outcome.kind == "storage":  # it stays open, to go on when the sweep is resumed
                    self.stopped_by = f"trial {number} can't read or write its files: {outcome.reason}"
                else:
                    self._ended(slot, self._study.fail(number, outcome.kind, outcome.reason))
            elif isinstance(outcome, EpochDone):
                self._ended(slot, self._study.finish(number))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's actor was lost; the trial goes on with a new one, `cluster.max_failures` times."""
        slot, number = trial.config["slot"], trial.config["assignment"].trial
        with self._stopping_on_error():
            logger.error("trial %d lost its actor: %s", number, trial.get_error())
            self._lost_actors[number] += 1
            if self._lost_actors[number] > self._max_failures:
                self._ended(slot, self._study.fail(number, "infrastructure", "the trial's actor was lost"))
            else:
                self._searcher.hand_out_again(slot, number)

    @contextmanager
    def _stopping_on_error(self) -> Iterator[None]:
        # Tune takes an exception in a callback for the trial's, and goes on with a record that lacks it.
        try:
            yield
        except Exception as error:
            logger.exception("the record can't be written")
            self.stopped_by = f"the record can't be written: {type(error).__name__}: {error}".splitlines()[0]

    def _ended(self, slot: int, record: TrialRecord) -> None:
        for watcher in self._watchers:
            watcher.trial_ended(record)
        # A running trial may lead and still fail: those that have ended are ranked among themselves. Only the trials
        # that this end touches are looked at, so that it takes no longer the more trials there are.
        before = self._leaders
        self._leaders = self._kept([*before, record])
        self._clear([*before, record])
        self._searcher.release(slot)  # last: what fails before it must not give the slot to a second trial

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints of ended trials that don't lead, and of the leaders all but the best epoch's.

        At a trial's end that is done for those that it touches; here for all, with those that the searcher ended and
        the checkpoints that were written late.
        """
        ended = self._ended_trials()
        self._leaders = self._kept(ended)
        self._clear(ended)

    def _kept(self, ended: list[TrialRecord]) -> list[TrialRecord]:
        """The trials that keep a checkpoint: the search's leaders and front, and each configuration's best last run."""
        finals: dict[int | None, list[TrialRecord]] = {}
        for record in ended:
            if record.role == "final":
                finals.setdefault(record.final_of, []).append(record)
        kept = [one for own in finals.values() for one in leaders(own, self._modes[0], 1)]
        search = [record for record in ended if record.role == "search"]
        kept += leaders(search, self._modes[0], LEADERS)
        numbers = {record.number for record in kept}
        return kept + [record for record in pareto_front(search, self._modes) if record.number not in numbers]

    def _clear(self, ended: list[TrialRecord]) -> None:
        kept = {checkpoint_path(record.number, record.best_epoch or 0) for record in self._leaders}
        for record in ended:
            for path in self._run.checkpoints(record.number):
                if path not in kept:
                    self._run.discard(path)

    def _ended_trials(self) -> list[TrialRecord]:
        return [record for record in self._study.records() if record.state != "running"]

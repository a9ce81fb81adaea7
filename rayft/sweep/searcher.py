"""Hands Tune the next trial: an unfinished one of the record first, then a new one from Optuna."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from rayft.config import SweepConfig
from rayft.search_space import model_of, resolve
from rayft.sweep.protocol import Assignment
from rayft.sweep.scheduler import replay
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import Role

LATER = None
"""What a searcher answers while it has no trial to give."""


class DriverOnly:
    """For objects that Tune would pickle into files of its own, which rayft neither reads nor trusts."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()


class StudySearcher(DriverOnly, Searcher):  # type: ignore[misc]
    """Ask and tell on the sweep's own study; what is told is the recorder's part.

    Args:
        study: The record.
        scheduler: Shown what is on record, so that its decisions go on where they were.
        config: The sweep.
        slots: Worker groups; no more trials than these run at a time.
        role: Which trials it hands out: the search's, or those of the last stage, all of which are open already.
        latencies: What each model takes for one row, where that is searched for.
    """

    def __init__(
        self,
        study: SweepStudy,
        scheduler: TrialScheduler,
        config: SweepConfig,
        slots: int,
        role: Role = "search",
        latencies: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(metric=config.metric, mode=config.mode)
        self._study = study
        self._scheduler = scheduler
        self._config = config
        self._latencies = latencies or {}
        self._free_slots = list(range(slots))
        self._running: set[int] = set()
        records = [record for record in study.records() if record.role == role]
        self._unfinished = [record.number for record in records if record.state == "running"]
        new = max(0, config.search.trials - len(records)) if role == "search" else 0
        self.remaining = new + len(self._unfinished)
        for record in records:
            if record.state != "running":
                replay(scheduler, config, record)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's hook: the configuration of the next trial, None for later, FINISHED for never."""
        if not self._free_slots:
            return LATER
        while self._unfinished:
            number = self._unfinished.pop(0)
            self.remaining -= 1
            record = self._study.record(number)
            # The decision on the last recorded epoch may not have been carried out.
            if replay(self._scheduler, self._config, record) or record.epochs >= self._config.training.epochs:
                self._study.finish(number)
                continue
            return self._configure(number, self._study.reopen(number), record.epochs)
        if self.remaining == 0:
            # A trial that is running may still be given back, and come to another group.
            return LATER if self._running else str(Searcher.FINISHED)
        self.remaining -= 1
        number, params = self._study.ask()
        return self._configure(number, params, 0)

    def release(self, slot: int) -> None:
        """A trial is over and has left its slot."""
        self._running.remove(slot)
        self._free_slots.append(slot)

    def give_back(self, slot: int, number: int) -> bool:
        """A trial's slot is lost: the trial goes on in another one; returns whether there is any."""
        self._running.remove(slot)
        self._unfinished.append(number)
        self.remaining += 1
        return bool(self._free_slots or self._running)

    def hand_out_again(self, slot: int, number: int) -> None:
        """A trial lost its actor, not its slot, where an epoch of it may be under way: it comes next, and there."""
        self._running.remove(slot)
        self._free_slots.insert(0, slot)
        self._unfinished.insert(0, number)
        self.remaining += 1

    def _configure(self, number: int, params: dict[str, Any], reported: int) -> dict[str, Any]:
        slot = self._free_slots.pop(0)
        self._running.add(slot)
        record = self._study.record(number)
        model, hp = model_of(self._config, params), resolve(self._config, params)
        assignment = Assignment(
            number,
            model,
            hp,
            seed=record.seed,
            keeps=record.role == "final",
            latency_ms=self._latencies.get(model),
        )
        return {"slot": slot, "assignment": assignment, "reported": reported}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's hook; the recorder does the telling, since it also hears what Tune keeps from searchers."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's hook for a snapshot; the study is the record, so the file stays empty."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Tune's hook; nothing is restored from Tune's files."""

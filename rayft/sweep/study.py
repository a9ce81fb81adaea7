"""The Optuna study as the record of a sweep: every trial's parameters, values, state, seconds and checkpoints."""

import contextlib
import logging
import math
import sqlite3
import warnings
from collections.abc import Iterator
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from rayft.config import SweepConfig
from rayft.errors import Fault, RunError
from rayft.search_space import Params, starting_points, suggest
from rayft.sweep.ranking import FailureKind, Point, best_epoch
from rayft.sweep.run_folder import RunFolder, checkpoint_path
from rayft.sweep.samplers import make_sampler
from rayft.sweep.storage import Direction, SweepStorage
from rayft.sweep.trial_record import TrialRecord, TrialState

STUDY_NAME = "rayft"
STUDY_FILE = "study.db"
WAY_OUT = "put a copy of it back, or start a new run"

# Where the search itself is at fault, the sampler is told to keep away; where a machine or the code is, it isn't told.
AVOIDABLE: frozenset[FailureKind] = frozenset({"out_of_memory", "diverged"})


class SweepStudy:
    """Reads and writes the study of one sweep.

    Reads the database once; what other processes write later isn't seen. Each method that writes is one transaction.

    Args:
        config: The sweep.
        url: The study's database, such as `sqlite:////runs/NAME/study.db`.
        name: The study's name, since a database may hold those of many sweeps.
        create: Whether to make the study if there is none.

    Raises:
        ConfigError: The database can't be opened.
        KeyError: There is no such study, and it isn't to be made.
    """

    def __init__(self, config: SweepConfig, url: str, name: str = STUDY_NAME, *, create: bool = True) -> None:
        self._config = config
        self._mode = config.mode
        self._has_several = len(config.objectives) > 1
        with _quiet_optuna():
            directions: list[Direction] = ["maximize" if mode == "max" else "minimize" for mode in config.modes]
            self._storage = SweepStorage(url, name, directions, create=create)
            self._study = optuna.load_study(study_name=name, storage=self._storage)
        self._started = sum(trial.state != OptunaState.WAITING for trial in self._storage.trials())
        self._open: dict[int, optuna.Trial] = {}

    @classmethod
    def of_run(cls, run: RunFolder, config: SweepConfig) -> Self:
        """A run's study: the file in its folder, or its own one in the database that the sweep names.

        Raises:
            RunError: It is damaged, or gone while there are trials of it.
        """
        url, name, where = config.search.study, STUDY_NAME, str(run.path / STUDY_FILE)
        if url is None:
            check_file(run)
            url = f"sqlite:///{run.path / STUDY_FILE}"
        else:
            name = run.study_name
            where = f"the study {name} in the database of search.study"
        has_trials = run.has_trials
        try:
            study = cls(config, url, name, create=not has_trials)
        except KeyError:
            study = None
        if study is None or (has_trials and not study.records()):  # the sweep would start anew without a word
            raise RunError([Fault(where, f"is missing or empty, but there are trials; {WAY_OUT}")])
        return study

    def enqueue_start_with(self) -> None:
        """Puts `search.start_with` first in line, but for what an earlier run of the sweep has put there."""
        with _quiet_optuna():
            for start in starting_points(self._config):
                self._study.enqueue_trial(start, skip_if_exists=True)

    def ask(self) -> tuple[int, Params]:
        """Opens a new trial; returns its number and searched values."""
        with _quiet_optuna(), self._storage.transaction():
            self._study.sampler = make_sampler(self._config, self._started)
            trial = self._study.ask()
            params = suggest(self._config, trial)
        self._started += 1
        self._open[trial.number] = trial
        return trial.number, params

    def open_final(self, of: int | None, params: Params, seed: int) -> int:
        """Opens a trial of the last stage; returns its number.

        Its values are no parameters of Optuna's: the sampler must not take a default or a repeat for a proposal.
        """
        with _quiet_optuna(), self._storage.transaction():
            trial_id = self._storage.create_new_trial(self._study._study_id)
            trial = optuna.Trial(self._study, trial_id)
            trial.set_user_attr("final", {"of": of, "params": params, "seed": seed})
        self._open[trial.number] = trial
        return trial.number

    def reopen(self, number: int) -> Params:
        """The searched values of a trial that a killed driver left open, drawing those it had not drawn yet."""
        self._open.pop(number, None)
        record = self.record(number)
        if record.role == "final":
            return record.params
        with _quiet_optuna(), self._storage.transaction():
            self._study.sampler = make_sampler(self._config, number)
            return suggest(self._config, self._trial(number))

    def record_epoch(
        self,
        number: int,
        epoch: int,
        metrics: dict[str, float],
        seconds: float,
        digest: str | None = None,
        point: Point | None = None,
    ) -> None:
        """Adds one finished epoch; one that is on record already stays as it is, unless it has a new checkpoint.

        Args:
            number: The trial.
            epoch: From 1.
            metrics: Every validation metric.
            seconds: What it took.
            digest: Of its checkpoint, if it has one.
            point: The value of each objective, if there are several.
        """
        assert all(map(math.isfinite, metrics.values())), f"trial {number} epoch {epoch}: {metrics}"
        known = self._storage.trial(number)
        epochs: dict[str, Any] = known.user_attrs.get("epochs", {})
        earlier = epochs.get(str(epoch))
        if earlier is not None and digest in (None, earlier["checkpoint"]):
            return
        trial = self._trial(number)
        entry = {"metrics": metrics, "seconds": seconds, "checkpoint": digest}
        if self._has_several:
            assert point is not None
            entry["point"] = [float(value) for value in point]
        with self._storage.transaction():
            # Optuna takes no values by epoch where there are several objectives; otherwise what it was told stays.
            if not self._has_several and epoch not in known.intermediate_values:
                trial.report(metrics[self._config.metric], step=epoch)
            trial.set_user_attr("epochs", {**epochs, str(epoch): entry})

    def finish(self, number: int, reason: str | None = None) -> TrialRecord:
        """Closes a trial that trained to its end, or that was stopped before it."""
        record = self.record(number)
        with _quiet_optuna(), self._storage.transaction():
            if reason:
                self._trial(number).set_user_attr("reason", reason)
            if record.epochs >= self._config.training.epochs and record.role == "search":
                self._study.tell(number, record.point)
            else:  # a repeat must be no best trial of Optuna's, in which it would have no parameters
                self._study.tell(number, state=OptunaState.PRUNED)
        self._open.pop(number, None)
        return self.record(number)

    def fail(self, number: int, kind: FailureKind, reason: str) -> TrialRecord:
        """Closes a trial that can't go on."""
        trial = self._trial(number)
        with _quiet_optuna(), self._storage.transaction():
            trial.set_user_attr("failure", kind)
            trial.set_user_attr("reason", reason)
            if kind in AVOIDABLE:
                trial.set_constraint("failure", 1.0)  # ranks it behind every other trial
            # Samplers see PRUNED trials (and their constraint), and never see FAIL.
            self._study.tell(number, state=OptunaState.PRUNED if kind in AVOIDABLE else OptunaState.FAIL)
        self._open.pop(number, None)
        return self.record(number)

    def records(self) -> list[TrialRecord]:
        """Every trial that was started, by number."""
        return [self._to_record(trial) for trial in self._storage.trials() if trial.state != OptunaState.WAITING]

    def trials(self) -> list[FrozenTrial]:
        """Every trial as Optuna has it, with those that wait."""
        return self._storage.trials()

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return self._to_record(self._storage.trial(number))

    def _trial(self, number: int) -> optuna.Trial:
        """The handle that writes to an open trial: that of `ask`, or after a resume one on the same row."""
        if number not in self._open:
            self._open[number] = optuna.Trial(self._study, self._storage.trial(number)._trial_id)
        return self._open[number]

    def _state_of(self, trial: FrozenTrial) -> TrialState:
        attrs = trial.user_attrs
        if not trial.state.is_finished():
            return "running"
        if attrs.get("failure") or trial.state == OptunaState.FAIL:
            return "failed"
        is_whole = "final" in attrs and len(attrs.get("epochs", {})) >= self._config.training.epochs
        return "complete" if trial.state == OptunaState.COMPLETE or is_whole else "pruned"

    def _to_record(self, trial: FrozenTrial) -> TrialRecord:
        attrs = trial.user_attrs
        epochs = {int(epoch): entry for epoch, entry in attrs.get("epochs", {}).items()}
        values = {epoch: entry["metrics"][self._config.metric] for epoch, entry in sorted(epochs.items())}
        others = self._config.objectives[1:]
        further = {epoch: dict(zip(others, epochs[epoch]["point"][1:], strict=True)) for epoch in values if others}
        best = best_epoch(values, self._mode)
        digest = None if best is None else epochs[best]["checkpoint"]
        final = attrs.get("final")
        return TrialRecord(
            number=trial.number,
            state=self._state_of(trial),
            params=dict(trial.params if final is None else final["params"]),
            value=None if best is None else values[best],
            best_epoch=best,
            epochs=len(values),
            values=values,
            further=further,
            metrics={} if best is None else epochs[best]["metrics"],
            seconds=sum(entry["seconds"] for entry in epochs.values()),
            checkpoint=None if digest is None or best is None else checkpoint_path(trial.number, best),
            digest=digest,
            reason=attrs.get("reason"),
            role="search" if final is None else "final",
            final_of=None if final is None else final["of"],
            seed=0 if final is None else final["seed"],
        )


def check_file(run: RunFolder) -> None:
    """Refuses a damaged study, and an empty one in the place of one that has been there.

    Raises:
        RunError: The study must be restored.
    """
    path = run.path / STUDY_FILE
    if not path.exists() or path.stat().st_size == 0:
        if run.has_trials:  # SQLite would make a new one, and the sweep start anew without a word
            raise RunError([Fault(str(path), f"is missing or empty, but there are trials; {WAY_OUT}")])
        return
    try:
        # Not read-only: what a killed process has left half-written is rolled back here.
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=60)) as database:
            found = database.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise RunError([Fault(str(path), f"is damaged ({found.splitlines()[0]}); {WAY_OUT}")])


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield

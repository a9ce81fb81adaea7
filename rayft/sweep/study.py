"""The Optuna study as the record of a sweep: every trial's parameters, values, state, seconds and checkpoints."""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from rayft.config import Mode, SweepConfig
from rayft.errors import SWEEP_FILE, ConfigError, Fault
from rayft.search_space import Params, starting_points, suggest

TrialState = Literal["complete", "pruned", "failed", "running"]
FailureKind = Literal["out_of_memory", "diverged", "error", "infrastructure"]

STUDY_NAME = "rayft"

# Where the search itself is at fault, the sampler is told to keep away; where a machine or the code is, it isn't told.
AVOIDABLE: frozenset[FailureKind] = frozenset({"out_of_memory", "diverged"})


@dataclass(frozen=True)
class TrialRecord:
    """What the study holds of one trial.

    Attributes:
        number: The trial's number, from 0.
        state: How it stands; `pruned` is what ASHA or the time limit stopped.
        params: The searched hyperparameters and their values.
        value: The search metric of the best epoch, None before the first epoch.
        best_epoch: The epoch (from 1) that `value` comes from.
        epochs: Finished epochs.
        values: The search metric by epoch.
        metrics: Every validation metric of the best epoch.
        seconds: Time spent in finished epochs.
        checkpoint: The best epoch's checkpoint, relative to the run folder, if it led the sweep when it was reported;
            deleted again once three other trials are better.
        digest: That checkpoint's SHA-256, as the worker that wrote it reported.
        reason: Why the trial failed or was stopped.
    """

    number: int
    state: TrialState
    params: Params
    value: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    values: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    checkpoint: str | None = None
    digest: str | None = None
    reason: str | None = None


def checkpoint_path(number: int, epoch: int) -> str:
    """Where a trial's checkpoint lies, relative to the run folder."""
    return f"trials/{number}/checkpoint-{epoch}"


def is_better(value: float, than: float, mode: Mode) -> bool:
    """Whether a value of the metric beats another."""
    return value > than if mode == "max" else value < than


def leaders(records: list[TrialRecord], mode: Mode, count: int) -> list[TrialRecord]:
    """The best trials that have a value, best first; of equals, the earlier one."""
    scored = [record for record in records if record.value is not None and record.state != "failed"]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(scored, key=lambda record: (sign * (record.value or 0.0), record.number))[:count]


def make_sampler(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one trial.

    Each trial has a sampler of its own, seeded from the sweep's seed and the trial's number: what is proposed is then a
    function of the record alone, and a resumed sweep proposes what an uninterrupted one would have.
    """
    own_seed = seed * 1_000_003 % 2**31 + number
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own_seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own_seed, warn_independent_sampling=False)
    if name == "qmc":
        # One scrambled sequence for all trials: the study holds the position in it. What has no place in the sequence,
        # such as a conditional hyperparameter, is drawn by each trial for itself.
        alone = optuna.samplers.RandomSampler(seed=own_seed)
        return optuna.samplers.QMCSampler(
            seed=seed, scramble=True, independent_sampler=alone, warn_independent_sampling=False
        )
    return optuna.samplers.TPESampler(seed=own_seed, multivariate=True, group=True, constant_liar=True)


class SweepStudy:
    """Reads and writes the study of one sweep.

    Args:
        config: The sweep.
        url: The study's storage, such as `sqlite:////runs/NAME/study.db`.
        name: The study's name, since a database may hold those of many sweeps.
    """

    def __init__(self, config: SweepConfig, url: str, name: str = STUDY_NAME) -> None:
        self._config = config
        self._mode = config.search.direction
        with _quiet_optuna():
            self._study = optuna.create_study(
                study_name=name,
                storage=_open_storage(url),
                direction="maximize" if self._mode == "max" else "minimize",
                load_if_exists=True,
            )
        self._asked: dict[int, optuna.Trial] = {}

    def enqueue_start_with(self) -> None:
        """Puts `search.start_with` first in line, but for what an earlier run of the sweep has put there."""
        with _quiet_optuna():
            for start in starting_points(self._config):
                self._study.enqueue_trial(start, skip_if_exists=True)

    def ask(self) -> tuple[int, Params]:
        """Opens a new trial; returns its number and searched values."""
        number = sum(t.state != OptunaState.WAITING for t in self._study.get_trials(deepcopy=False))
        with _quiet_optuna():
            self._study.sampler = make_sampler(self._config.search.sampler, self._config.search.seed, number)
            trial = self._study.ask()
            params = suggest(self._config, trial)
        self._asked[trial.number] = trial
        return trial.number, params

    def reopen(self, number: int) -> Params:
        """The searched values of a trial that a killed driver left open, drawing those it had not drawn yet."""
        with _quiet_optuna():
            self._study.sampler = make_sampler(self._config.search.sampler, self._config.search.seed, number)
            self._asked.pop(number, None)
            trial = self._trial(number)
            if "failure" in trial.user_attrs:  # the driver was killed within `fail`
                trial.set_user_attr("failure", None)
                trial.set_user_attr("reason", None)
            return suggest(self._config, trial)

    def record_epoch(
        self, number: int, epoch: int, metrics: dict[str, float], seconds: float, digest: str | None = None
    ) -> None:
        """Adds one finished epoch; one that is on record already stays as it is, unless it has a new checkpoint.

        Args:
            number: The trial.
            epoch: From 1.
            metrics: Every validation metric.
            seconds: What it took.
            digest: Of its checkpoint, if it has one.
        """
        assert all(map(math.isfinite, metrics.values())), f"trial {number} epoch {epoch}: {metrics}"
        trial = self._trial(number)
        epochs: dict[str, Any] = dict(trial.user_attrs.get("epochs", {}))
        known = epochs.get(str(epoch))
        if known is not None and digest in (None, known["checkpoint"]):
            return
        # The sampler's value goes first: an epoch that is on record is never reported again.
        if epoch not in self._frozen(number).intermediate_values:
            trial.report(metrics[self._config.search.metric], step=epoch)
        entry = {"metrics": metrics, "seconds": seconds, "checkpoint": digest}
        trial.set_user_attr("epochs", {**epochs, str(epoch): entry})

    def finish(self, number: int, reason: str | None = None) -> TrialRecord:
        """Closes a trial that trained to its end, or that was stopped before it."""
        record = self.record(number)
        trial = self._trial(number)
        if reason:
            trial.set_user_attr("reason", reason)
        with _quiet_optuna():
            if record.epochs >= self._config.training.epochs:
                self._study.tell(number, record.value)
            else:
                self._study.tell(number, state=OptunaState.PRUNED)
        return self.record(number)

    def fail(self, number: int, kind: FailureKind, reason: str) -> TrialRecord:
        """Closes a trial that can't go on."""
        trial = self._trial(number)
        trial.set_user_attr("failure", kind)
        trial.set_user_attr("reason", reason)
        if kind in AVOIDABLE:
            trial.set_constraint("failure", 1.0)  # ranks it behind every other trial
        with _quiet_optuna():
            # Samplers see PRUNED trials (and their constraint), and never see FAIL.
            self._study.tell(number, state=OptunaState.PRUNED if kind in AVOIDABLE else OptunaState.FAIL)
        return self.record(number)

    def records(self) -> list[TrialRecord]:
        """Every trial that was started, by number."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._to_record(trial) for trial in trials if trial.state != OptunaState.WAITING]

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return self._to_record(self._frozen(number))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _trial(self, number: int) -> optuna.Trial:
        """The handle that writes to a trial: that of `ask`, or after a resume one on the same row."""
        if number not in self._asked:
            self._asked[number] = optuna.Trial(self._study, self._frozen(number)._trial_id)
        return self._asked[number]

    def _to_record(self, trial: FrozenTrial) -> TrialRecord:
        attrs = trial.user_attrs
        epochs = {int(epoch): entry for epoch, entry in attrs.get("epochs", {}).items()}
        values = {epoch: entry["metrics"][self._config.search.metric] for epoch, entry in sorted(epochs.items())}
        best = best_epoch(values, self._mode)
        digest = None if best is None else epochs[best]["checkpoint"]
        return TrialRecord(
            number=trial.number,
            state=_state_of(trial),
            params=dict(trial.params),
            value=None if best is None else values[best],
            best_epoch=best,
            epochs=len(values),
            values=values,
            metrics={} if best is None else epochs[best]["metrics"],
            seconds=sum(entry["seconds"] for entry in epochs.values()),
            checkpoint=None if digest is None or best is None else checkpoint_path(trial.number, best),
            digest=digest,
            reason=attrs.get("reason"),
        )


def best_epoch(values: dict[int, float], mode: Mode) -> int | None:
    """The epoch of the best value, of equals the earliest; None without any."""
    best: int | None = None
    for epoch, value in sorted(values.items()):
        if best is None or is_better(value, values[best], mode):
            best = epoch
    return best


def _state_of(trial: FrozenTrial) -> TrialState:
    if not trial.state.is_finished():
        return "running"
    if trial.user_attrs.get("failure") or trial.state == OptunaState.FAIL:
        return "failed"
    if trial.state == OptunaState.COMPLETE:
        return "complete"
    return "pruned"


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    # A reader (`rayft trials`) must never make the writer fail: SQLite waits for a lock instead of giving up.
    connect = {"timeout": 60} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": connect})
    except (ImportError, ArgumentError, NoSuchModuleError) as error:  # a driver that isn't installed, or no URL at all
        reason = str(error).splitlines()[0]
        raise ConfigError([Fault(SWEEP_FILE, f"can't be opened: {reason}", "search.study")]) from None


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    import warnings

    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield

"""All that is on record of one trial, for `rayft show`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayft.config import MetricName, SweepConfig, Value
from rayft.report.curve import Chart, CurvePoint, curve_of
from rayft.report.selection import front_of
from rayft.report.tables import STATE_STYLES, format_duration, format_scores, format_value, ranked, repetition
from rayft.search_space import model_of, resolve, values_read
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.trial_record import TrialRecord, TrialState

_WIDTH = 80


@dataclass(frozen=True)
class Given:
    """A hyperparameter's value in a trial, and whether the search chose it."""

    value: Value
    searched: bool


@dataclass(frozen=True)
class TrialView:
    """One trial.

    Attributes:
        number: Its number.
        state: How it stands.
        reason: Why it failed or was stopped.
        again: In the last stage, what it repeats, and with which seed; else None.
        place: Its place among the search's trials, from 1; None if it can't win.
        trials: How many trials the search has.
        model: What it fine-tunes.
        hyperparameters: Those that its strategy and task read, in the order of the configuration.
        metric: The search metric.
        value: That of the best epoch.
        objectives: All that is searched for, at the best epoch.
        on_front: Whether no other trial of the search beats it in all of these.
        best_epoch: From 1.
        epochs: Finished epochs.
        longest: The epochs that a trial trains at most.
        seconds: Spent in them.
        metrics: Every validation metric of the best epoch.
        checkpoint: The best epoch's, relative to the run; None if there is none, or none any more.
        curve: The search metric by epoch.
    """

    number: int
    state: TrialState
    reason: str | None
    again: str | None
    place: int | None
    trials: int
    model: str
    hyperparameters: Mapping[str, Given]
    metric: MetricName
    value: float | None
    objectives: Mapping[str, float]
    on_front: bool
    best_epoch: int | None
    epochs: int
    longest: int
    seconds: float
    metrics: Mapping[str, float]
    checkpoint: str | None
    curve: tuple[CurvePoint, ...]


def view_trial(config: SweepConfig, run: RunFolder, records: Sequence[TrialRecord], record: TrialRecord) -> TrialView:
    """Gathers what is on record.

    Args:
        config: The sweep.
        run: Its run folder.
        records: All of its trials.
        record: The trial.
    """
    read = values_read(config, resolve(config, record.params))
    searched = [other for other in records if other.role == "search"]
    can_win = record in searched and record.value is not None and record.state != "failed"
    order = [other.number for other in ranked(searched, config.modes)]
    kept = record.checkpoint if record.checkpoint in run.checkpoints(record.number) else None
    return TrialView(
        number=record.number,
        state=record.state,
        reason=record.reason,
        again=repetition(record).rstrip(":") if record.role == "final" else None,
        place=order.index(record.number) + 1 if can_win else None,
        trials=len(searched),
        model=model_of(config, record.params),
        hyperparameters={name: Given(value, name in record.params) for name, value in read.items()},
        metric=config.metric,
        value=record.value,
        objectives=record.objectives(config.metric),
        on_front=record.number in front_of(records, config),
        best_epoch=record.best_epoch,
        epochs=record.epochs,
        longest=config.training.epochs,
        seconds=record.seconds,
        metrics=record.metrics,
        checkpoint=kept,
        curve=curve_of(record, records),
    )


def print_trial(view: TrialView, console: Console) -> None:
    """Shows a trial in no more than 80 columns, where there is no terminal too."""
    about = Table.grid(padding=(0, 2))
    about.add_column(style="bold", no_wrap=True)
    about.add_column(overflow="fold")
    about.add_row("trial", f"{view.number}" + (f", place {view.place} of {view.trials}" if view.place else ""))
    if view.again is not None:
        about.add_row("last stage", Text(view.again))
    about.add_row("state", Text(view.state, style=STATE_STYLES[view.state]))
    reason = view.reason or ("early stopping: others were better by then" if view.state == "pruned" else None)
    if reason is not None:
        about.add_row("reason", Text(reason))
    about.add_row("model", Text(Path(view.model).name))
    about.add_row("time", f"{format_duration(view.seconds)} in {view.epochs} of {view.longest} epochs")
    if view.value is not None:
        about.add_row("best epoch", f"{view.best_epoch}")
        about.add_row("validation", format_scores(view.metrics))
        if len(view.objectives) > 1:
            beaten = "; on the Pareto front" if view.on_front else ""
            about.add_row("searched for", f"{format_scores(view.objectives)}{beaten}")
    about.add_row("checkpoint", Text(view.checkpoint or "none: only those of the leading trials are kept"))
    chart = None if view.best_epoch is None else Chart(view.curve, view.metric, view.best_epoch)
    for part in (about, _hyperparameter_table(view.hyperparameters), chart or "no epoch is finished"):
        console.print(part, width=min(console.width, _WIDTH))


def _hyperparameter_table(given: Mapping[str, Given]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("hyperparameter", "value", ""):
        table.add_column(title, overflow="fold")
    for name, one in given.items():
        exact = repr(one.value) if isinstance(one.value, float) else format_value(one.value)
        table.add_row(name, exact, "searched" if one.searched else Text("fixed", style="dim"))
    return table

"""Trials and the winner as tables for people, and as plain values for programs."""

import io
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayft.config import MODEL, Mode, SweepConfig, Value
from rayft.sweep.ranking import ranking
from rayft.sweep.trial_record import TrialRecord

if TYPE_CHECKING:
    from rayft.jobs.client import Job

STATE_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}

JOB_STYLES = {"SUCCEEDED": "green", "STOPPED": "yellow", "FAILED": "red", "RUNNING": "cyan"}

_PIPE_WIDTH = 200


def output_console(file: IO[str] | None = None) -> Console:
    """A console that shows plain, unwrapped text where there is no terminal.

    Args:
        file: Where to write; standard output if None.
    """
    target = file or sys.stdout
    # rich takes 80 columns where it finds no terminal, which would break the rows of a piped table in two
    return Console(file=target, width=None if target.isatty() else _PIPE_WIDTH, highlight=False, emoji=False)


def progress_console(quiet: bool, as_json: bool) -> Console:
    """Where a command shows what it is doing, when its result is a program's to read or nobody wants to see it."""
    if quiet:
        return Console(file=io.StringIO(), quiet=True)
    return output_console(sys.stderr if as_json else None)


def trials_table(records: Sequence[TrialRecord], config: SweepConfig, front: Collection[int] = ()) -> Table:
    """All trials, the best first.

    Args:
        records: The trials in any order.
        config: The sweep.
        front: Where there are several objectives, the numbers of the trials that no other one beats in all.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several = len(config.objectives) > 1
    for title in ("trial", "state", *config.objectives, *(["front"] if several else []), "epochs", "time"):
        table.add_column(title, justify="left" if title == "state" else "right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for record in ranked(records, config.modes):
        about = Text(format_params(record.params))
        if record.role == "final":
            about = Text.assemble((repetition(record), "dim"), " ", about)
        if record.reason is not None:
            about.append(f"\n{record.reason}", style="red" if record.state == "failed" else "dim")
        table.add_row(
            str(record.number),
            Text(record.state, style=STATE_STYLES[record.state]),
            *(format_metric(record.objectives(config.metric).get(name)) for name in config.objectives),
            *(["*" if record.number in front else ""] if several else []),
            str(record.epochs),
            format_duration(record.seconds),
            about,
        )
    return table


def winner_table(best: Mapping[str, Any], folder: Path) -> Table:
    """The exported model: which trial it is, how it scores and where it lies.

    Args:
        best: The content of the folder's `rayft.json`.
        folder: The exported model folder.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    again = "" if best["final"] is None else f", trained again as trial {best['trial']}"
    table.add_row("best trial", f"{searched_as(best)}{again}, epoch {best['epoch']}")
    table.add_row("parameters", Text(format_params(best["params"])))
    for split in ("validation", "test"):
        if best[split] is not None:
            table.add_row(split, format_scores(best[split]))
    if best["latency_ms"] is not None:
        table.add_row("latency", f"{best['latency_ms']:.2f} ms for one row")
    low, high = best["interval"]["95%"]
    about = f"{best['metric']} {format_metric(low)} to {format_metric(high)} on {best['interval']['split']}"
    table.add_row("95 % interval", f"{about} (bootstrap over rows)")
    if front := best["front"]:
        about = f"{len(front)} trials that no other one beats in all; best/ has the best {best['metric']}, and "
        table.add_row("Pareto front", f"{about}`rayft export RUN --trial N` makes a model of another")
        for one in front:
            table.add_row("", f"trial {one['trial']}: {format_scores(one['objectives'])}")
    for sentence in (best["final"] or {}).get("words", ()):
        table.add_row("last stage", sentence)
    table.add_row("model", Text(str(folder)))
    return table


def searched_as(best: Mapping[str, Any]) -> int:
    """The trial of the search that a `rayft.json` is of, which may have been trained again under another number."""
    return int(best["trial"] if best["final"] is None else best["final"]["trial"])


def trials_json(records: Sequence[TrialRecord], config: SweepConfig, front: Collection[int]) -> list[dict[str, Any]]:
    """What `rayft trials --json` prints: one object per trial, by number.

    Args:
        records: The trials.
        config: The sweep.
        front: The numbers of the trials that no other one beats in all objectives.
    """
    names = [
        "number",
        "state",
        "params",
        "value",
        "best_epoch",
        "epochs",
        "seconds",
        "reason",
        "role",
        "final_of",
        "seed",
    ]
    ordered = sorted(records, key=lambda record: record.number)
    return [
        {name: getattr(record, name) for name in names}
        | {"objectives": record.objectives(config.metric), "on_front": record.number in front}
        for record in ordered
    ]


def ranked(records: Sequence[TrialRecord], modes: Sequence[Mode]) -> list[TrialRecord]:
    """The trials from best to worst, the search's before those of the last stage.

    Those that failed or have no value yet come last among each, by number.
    """
    searched = [record for record in records if record.role == "search"]
    again = [record for record in records if record.role == "final"]
    return [one for part in (searched, again) for one in _best_first(part, modes)]


def _best_first(records: Sequence[TrialRecord], modes: Sequence[Mode]) -> list[TrialRecord]:
    best = ranking(records, modes)
    placed = {record.number for record in best}
    return best + sorted((r for r in records if r.number not in placed), key=lambda record: record.number)


def repetition(record: TrialRecord) -> str:
    """What a run of the last stage trains again."""
    what = "the default" if record.final_of is None else f"trial {record.final_of}"
    return f"{what} again, seed +{record.seed}:"


def format_params(params: Mapping[str, Value]) -> str:
    """`strategy=partial learning_rate=2.1e-05 ...`, model and strategy first."""
    names = sorted(params, key=lambda name: (name != MODEL, name != "strategy"))
    return " ".join(f"{name}={_shown(name, params[name])}" for name in names)


def _shown(name: str, value: Value) -> str:
    """A value as it is listed; of a model's folder its name is enough to tell it from others."""
    return Path(value).name if name == MODEL and isinstance(value, str) else format_value(value)


def format_value(value: Value) -> str:
    """A hyperparameter as the YAML would say it, with floats cut to three digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_metric(value: float | None) -> str:
    """Four decimals, or a dash where there is no value."""
    return "-" if value is None else f"{value:.4f}"


def format_scores(values: Mapping[str, float]) -> str:
    """`accuracy 0.9012, loss 0.2345`."""
    return ", ".join(f"{name} {format_metric(value)}" for name, value in values.items())


def format_duration(seconds: float) -> str:
    """`45s`, `3m12s` or `1h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def jobs_table(jobs: Sequence["Job"], now: float) -> Table:
    """A cluster's jobs in the order given.

    Args:
        jobs: The jobs.
        now: Seconds since 1970, for those that run.
    """
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in ("job", "run", "state", "time", "message"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for job in jobs:
        seconds = "" if job.started is None else format_duration((job.ended or now) - job.started)
        table.add_row(job.id, job.name, Text(job.state.lower(), JOB_STYLES.get(job.state, "")), seconds, job.message)
    return table

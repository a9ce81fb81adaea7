"""What a running sweep shows: a live view in a terminal, one line per event elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayft.config import SweepConfig, Value
from rayft.report.tables import STATE_STYLES, format_duration, format_metric, format_params, format_scores
from rayft.sweep.ranking import is_better
from rayft.training.results import EpochResult

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord

_RUNNING_SHOWN = 8
"""Rows of running trials in the live view; a larger cluster's would push the rest off the screen."""


@dataclass
class _Trial:
    """Where a trial stands, and its best epoch's value."""

    params: Mapping[str, Value]
    epoch: int = 0
    value: float | None = None


class Progress:
    """Follows a sweep and shows it.

    Its methods may be called from any thread. As a context manager it leaves the terminal as it was, however the sweep
    ends.
    """

    def __init__(self, config: SweepConfig, console: Console) -> None:
        """Shows nothing yet.

        Args:
            config: The sweep.
            console: Where to show it, such as `tables.output_console()`.
        """
        self._config = config
        self._console = console
        self._live = Live(self, console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        # Never held while printing: the live view's own thread takes the console's lock first, and then this one.
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._n_trials = 0
        self._ended_now = 0
        self._states: Counter[str] = Counter()
        self._running: dict[int, _Trial] = {}
        self._best_ended: tuple[int, _Trial] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def started(self, n_trials: int, done: "Sequence[TrialRecord]") -> None:
        """Begins to show the sweep.

        Args:
            n_trials: How many trials it may have, with those that are done.
            done: The trials that an earlier run of a resumed sweep ended.
        """
        with self._lock:
            self._began = time.monotonic()
            self._n_trials = n_trials
            for record in done:
                self._count_end(record)
        self.note(f"{n_trials} trials, {len(done)} done before" if done else f"{n_trials} trials")
        if self._live is not None:
            self._live.start()

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """A trial begins, or goes on after a resume or the loss of a worker."""
        with self._lock:
            self._running.setdefault(number, _Trial(params))
        self._event(f"trial {number} started: {format_params(params)}")

    def epoch(self, number: int, result: EpochResult) -> None:
        """A trial has finished an epoch."""
        value = result.metrics[self._config.metric]
        with self._lock:
            trial = self._running[number]
            trial.epoch = result.epoch
            if trial.value is None or is_better(value, trial.value, self._config.mode):
                trial.value = value
        self._event(f"trial {number} epoch {result.epoch}: {self._config.metric} {format_metric(value)}")

    def trial_ended(self, record: "TrialRecord") -> None:
        """A trial is complete, pruned or failed."""
        with self._lock:
            self._count_end(record)
            self._ended_now += 1
            epochs = f"{record.epochs} epoch{'' if record.epochs == 1 else 's'}"
            line = f"trial {record.number} {record.state} after {epochs}"
            if record.value is not None:
                line += f", {format_scores(record.objectives(self._config.metric))}"
            reason = f" ({record.reason})" if record.reason else ""
            summary = f"{self._counts()}; best {self._best_line()}; {self._pace()}"
        if record.state == "failed":  # a failure stays on the screen, above the live view
            self._print(f"{line}{reason}", style="red")
            self._event(summary)
        else:
            self._event(f"{line}{reason}; {summary}")

    def note(self, text: str) -> None:
        """Something that the user should read, whatever the view."""
        self._print(text)

    def stop(self) -> None:
        """Ends the live view; may be called again."""
        if self._live is not None:
            self._live.stop()

    def __rich__(self) -> Table:
        """The live view as it stands."""
        view = Table.grid(padding=(0, 2))
        view.add_column(style="bold", no_wrap=True)
        view.add_column(overflow="ellipsis", no_wrap=True)
        with self._lock:
            view.add_row("sweep", self._pace())
            view.add_row("trials", self._counts(styled=True))
            view.add_row("best", Text(self._best_line()))
            running = sorted(self._running)
            for row, number in enumerate(running[:_RUNNING_SHOWN]):
                view.add_row("running" if row == 0 else "", Text(self._running_line(number)))
            if len(running) > _RUNNING_SHOWN:
                view.add_row("", f"and {len(running) - _RUNNING_SHOWN} more")
        return view

    def _event(self, line: str) -> None:
        """A line that the live view says in its own way."""
        if self._live is None:
            self._print(line)

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def _count_end(self, record: "TrialRecord") -> None:
        self._states[record.state] += 1
        self._running.pop(record.number, None)
        if record.state != "failed" and record.value is not None:  # a failed one has no checkpoint to win with
            ended = (record.number, _Trial(record.params, record.epochs, record.value))
            self._best_ended = self._better(ended, self._best_ended)

    def _counts(self, styled: bool = False) -> Text:
        counts = {**self._states, "running": len(self._running)}
        parts = [
            Text(f"{counts[state]} {state}", style=style if styled else "")
            for state, style in STATE_STYLES.items()
            if counts.get(state)
        ]
        parts.append(Text(f"{max(0, self._n_trials - sum(counts.values()))} to go"))
        return Text(", ").join(parts)

    def _best_line(self) -> str:
        best = self._best_ended
        for candidate in self._running.items():
            best = self._better(candidate, best)
        if best is None:
            return "none yet"
        number, trial = best
        params = format_params(trial.params)
        return f"{self._config.metric} {format_metric(trial.value)}, trial {number}, {params}"

    def _better(self, one: tuple[int, _Trial], than: tuple[int, _Trial] | None) -> tuple[int, _Trial] | None:
        """The better of two numbered trials, of equals the earlier; one without a value isn't any."""
        if one[1].value is None:
            return than
        if than is None or than[1].value is None:
            return one
        if one[1].value == than[1].value:
            return min(one, than, key=lambda trial: trial[0])
        return one if is_better(one[1].value, than[1].value, self._config.mode) else than

    def _running_line(self, number: int) -> str:
        trial = self._running[number]
        epochs = f"epoch {trial.epoch}/{self._config.training.epochs}"
        return f"trial {number} {epochs} {format_metric(trial.value)} {format_params(trial.params)}"

    def _pace(self) -> str:
        """Time gone, time left and trials per minute, as far as this run can tell."""
        elapsed = time.monotonic() - self._began
        left = [self._config.search.time_limit - elapsed] if self._config.search.time_limit else []
        parts = [f"{format_duration(elapsed)} gone"]
        if self._ended_now:
            to_end = self._n_trials - sum(self._states.values())
            left.append(to_end * elapsed / self._ended_now)
            parts.append(f"{60 * self._ended_now / elapsed:.1f} trials a minute")
        if left:
            parts.insert(1, f"about {format_duration(max(0.0, min(left)))} left")
        return ", ".join(parts)

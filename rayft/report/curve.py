"""A metric by epoch as a chart of text, beside the sweep's median."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from rayft.report.tables import format_metric
from rayft.sweep.trial_record import TrialRecord

_WIDTH = 40
"""Columns of the longest bar, where the console has room for it."""
_LEAST = 12
"""Columns that hold two values, the ends of the scale."""
_ROWS = 24
"""Of more epochs, so many are shown."""


@dataclass(frozen=True)
class CurvePoint:
    """One epoch.

    Attributes:
        epoch: From 1.
        value: The trial's.
        median: Of all trials of the search that trained so long, this one among them if it is one.
        trials: How many these are.
    """

    epoch: int
    value: float
    median: float
    trials: int


def curve_of(record: TrialRecord, records: Sequence[TrialRecord]) -> tuple[CurvePoint, ...]:
    """A trial's value in each epoch beside the median of its sweep's.

    Args:
        record: The trial.
        records: All of the sweep's.
    """
    points = []
    searched = [other for other in records if other.role == "search"]
    for epoch, value in sorted(record.values.items()):
        others = [other.values[epoch] for other in searched if epoch in other.values] or [value]
        points.append(CurvePoint(epoch, value, median(others), len(others)))
    return tuple(points)


@dataclass(frozen=True)
class Chart:
    """A bar for each epoch, with a mark where the median is; of many epochs some.

    Attributes:
        points: At least one.
        metric: What it is of.
        best: The epoch that is always shown.
    """

    points: Sequence[CurvePoint]
    metric: str
    best: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar, mark = ("#", "|") if options.ascii_only else ("█", "│")
        both = [value for point in self.points for value in (point.value, point.median)]
        low, high = min(both), max(both)
        column = max(len("median"), *(len(format_metric(value)) for value in both))
        first = max(len(self.metric), column)
        head = f"epoch  {self.metric:>{first}}  {'median':>{column}}  trials  "
        width = max(_LEAST, min(_WIDTH, options.max_width - len(head)))
        ends = format_metric(low), format_metric(high)
        yield Text(f"{head}{ends[0]}{ends[1]:>{width - len(ends[0])}}", style="bold", no_wrap=True)
        for point in self._shown():
            end, middle = (_column(value, low, high, width) for value in (point.value, point.median))
            cells = [bar if place <= end else " " for place in range(max(end, middle) + 1)]
            cells[middle] = mark
            row = f"{point.epoch:5}  {format_metric(point.value):>{first}}  {format_metric(point.median):>{column}}"
            yield Text(f"{row}  {point.trials:6}  {''.join(cells)}", no_wrap=True)
        yield Text(f"{'':{len(head)}}{bar} this trial   {mark} the median of all trials", style="dim", no_wrap=True)

    def _shown(self) -> list[CurvePoint]:
        last = len(self.points) - 1
        if last < _ROWS:
            return list(self.points)
        kept = {round(row * last / (_ROWS - 1)) for row in range(_ROWS)}
        return [point for place, point in enumerate(self.points) if place in kept or point.epoch == self.best]


def _column(value: float, low: float, high: float, width: int) -> int:
    return round((value - low) / (high - low) * (width - 1)) if high > low else width - 1

"""Parallel coordinates that have a place for what a trial doesn't search.

Optuna's leave out each trial that lacks one of the hyperparameters, which in a space with conditions is all of them.
And plotly's own kind of trace compiles code in the browser, which the page's security policy forbids.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rayft.config import Value
from rayft.report.html.facts import Facts
from rayft.report.html.parts import NONE_SCORED, Figure, Layout, Section, Table, Trace, is_wide, number, plain
from rayft.report.html.view import Distributions, choice_of, distributions
from rayft.report.tables import format_duration, format_value
from rayft.sweep.trial_record import TrialRecord

LEVELS = 6
"""Shades of the lines."""
MOST_CLEAR = 100
"""Of more trials all but the best are faint: so many lines hide each other."""
BEST = 30
"""How many these are."""
ABSENT = -0.14
"""The height of what a trial doesn't search."""
SHOWN_AS_TEXT = 10
_MOST_TICKS = 8

Place = Callable[[Value], float]
Ticks = list[tuple[float, str]]


def parallel(facts: Facts) -> Section:
    """A line for each trial through its values, darker the better it is."""
    title = "Parallel coordinates"
    if not facts.scored or not facts.param_names:
        missing = NONE_SCORED if not facts.scored else "No hyperparameter was searched."
        return Section("parallel", title, missing=missing)
    spaces = distributions(facts)
    axes = [(name, *_axis(facts, name, spaces)) for name in facts.param_names]
    axes.append((facts.config.metric, *_score_axis(facts)))
    sometimes = {name for name in facts.param_names if any(name not in r.params for r in facts.scored)}
    lines = {record.number: _line(facts, record, axes) for record in facts.scored}
    bands = _bands(len(facts.scored))
    traces = [
        _trace(facts.scored[start:stop], lines, level / max(1, len(bands) - 1))
        for level, (start, stop) in enumerate(bands)
    ][::-1]
    winner = _trace([facts.winner], lines, 0.0)
    winner |= {"line": {"color": "@c1", "width": 4}, "opacity": 1.0, "name": "the winner"}
    figure = Figure(
        "parallel-figure",
        "A line for each trial through its values",
        [*traces, winner],
        _layout(axes, sometimes),
        height=440,
        min_width=max(320, 125 * len(axes)),
    )
    text = (
        "A line for each trial with a score: the better it ranks, the stronger its colour. The thick one is the winner."
    )
    if sometimes:
        text += " What a trial doesn't search, such as a hyperparameter of another strategy, passes below the axis."
    return Section("parallel", title, [text], figures=[figure], tables=[leading(facts)])


def _bands(n: int) -> list[tuple[int, int]]:
    """Ranks that share a shade, best first."""
    clear = n if n <= MOST_CLEAR else BEST
    starts = [0, *([BEST] if clear < n else [])]
    size = math.ceil((n - starts[-1]) / (LEVELS - len(starts) + 1))
    starts += range(starts[-1] + size, n, size)
    return [*itertools.pairwise([*starts, n])]


def leading(facts: Facts) -> Table:
    """The best trials with a column for each hyperparameter."""
    titles = ["trial", facts.config.metric, "epochs", "time", *facts.param_names]
    rows = [
        [
            str(record.number),
            number(record.value),
            str(record.epochs),
            format_duration(record.seconds),
            *(facts.shown(n, record.params[n]) if n in record.params else "-" for n in facts.param_names),
        ]
        for record in facts.scored[:SHOWN_AS_TEXT]
    ]
    return Table(
        titles, rows, f"The best {len(rows)} as text" if len(rows) > 1 else "The only one as text", folded=True
    )


def _axis(facts: Facts, name: str, spaces: Distributions) -> tuple[Place, Ticks]:
    """Where an axis has a value, from 0 to 1, and its ticks."""
    space = spaces[name]
    if isinstance(space, CategoricalDistribution):
        step = 1 / max(1, len(space.choices) - 1)
        heights = {
            choice: index * step if len(space.choices) > 1 else 0.5 for index, choice in enumerate(space.choices)
        }
        ticks = [
            (height, choice if isinstance(choice, str) else format_value(choice)) for choice, height in heights.items()
        ]
        return (lambda value: heights[choice_of(facts, name, value, space)]), ticks[
            :: math.ceil(len(ticks) / _MOST_TICKS)
        ]
    assert isinstance(space, IntDistribution | FloatDistribution)
    return _scale(space.low, space.high, space.log, format_value, whole=isinstance(space, IntDistribution))


def _score_axis(facts: Facts) -> tuple[Place, Ticks]:
    values = [record.value for record in facts.scored if record.value is not None]
    low, high = min(values), max(values)
    return _scale(low, high, facts.lower_is_better and is_wide(values), number)


def _scale(low: float, high: float, log: bool, shown: Callable[[Any], str], whole: bool = False) -> tuple[Place, Ticks]:
    if low == high:
        return (lambda value: 0.5), [(0.5, shown(int(low) if whole else low))]
    up: Callable[[float], float] = math.log if log else float
    down: Callable[[float], float] = math.exp if log else float
    first, last = up(low), up(high)
    ticks: dict[str, float] = {}
    for height in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = down(first + height * (last - first))
        if whole:
            value = round(value)
        ticks.setdefault(shown(value), (up(value) - first) / (last - first))
    return (lambda value: (up(float(value or 0)) - first) / (last - first)), [(y, text) for text, y in ticks.items()]


def _line(facts: Facts, record: TrialRecord, axes: list[tuple[str, Place, Ticks]]) -> list[float]:
    heights = [place(record.params[name]) if name in record.params else ABSENT for name, place, _ in axes[:-1]]
    return [*heights, axes[-1][1](record.value)]


def _trace(records: list[TrialRecord], lines: dict[int, list[float]], from_best: float) -> Trace:
    """Lines of trials of like rank, as one."""
    x: list[int | None] = []
    y: list[float | None] = []
    trials: list[int] = []
    for record in records:
        line = lines[record.number]
        x += [*range(len(line)), None]
        y += [*line, None]
        trials += [record.number] * (len(line) + 1)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "trials": trials,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": f"@scale:{1 - from_best:.2f}", "width": 1.5},
        "opacity": 0.9 if len(lines) <= MOST_CLEAR or from_best == 0 else 0.25,
        "showlegend": False,
    }


def _layout(axes: list[tuple[str, Place, Ticks]], sometimes: set[str]) -> Layout:
    """Upright axes with their ticks, which plotly has no more than one of.

    Args:
        axes: From the left.
        sometimes: Those that some trials have no value on.
    """
    marks = [
        {
            "x": x,
            "y": y,
            "text": text,
            "showarrow": False,
            "xanchor": "right" if x == len(axes) - 1 else "left",
            "xshift": -4 if x == len(axes) - 1 else 4,
            "font": {"size": 11, "color": "@ink"},
            "bgcolor": "@veil",
        }
        for x, (name, _, ticks) in enumerate(axes)
        for y, text in [*ticks, *([(ABSENT, "not searched")] if name in sometimes else [])]
    ]
    upright = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": "@ink", "width": 1}}
        for x in range(len(axes))
    ]
    names = [plain(name.replace("_", " ")).replace(" ", "<br>") for name, _, _ in axes]
    return {
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": names,
            "side": "top",
            "showgrid": False,
            "zeroline": False,
            "range": [-0.35, len(axes) - 0.65],
            "tickangle": 0,
            "fixedrange": True,
            "showline": False,
        },
        "yaxis": {"visible": False, "range": [-0.2 if sometimes else -0.04, 1.06], "fixedrange": True},
        "shapes": upright,
        "annotations": marks,
        "margin": {"t": 64, "b": 12, "l": 12, "r": 12},
        "hovermode": "closest",
    }

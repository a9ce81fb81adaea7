"""The score over the search space: one hyperparameter at a time, and two together."""

import math
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rayft.config import Value
from rayft.report.html.facts import Facts
from rayft.report.html.parts import (
    NONE_SCORED,
    Figure,
    Layout,
    Section,
    Trace,
    axis,
    count,
    dot_size,
    log_ticks,
    plain,
    score_axis,
)
from rayft.report.html.view import distributions, plain_values, quiet, study_of
from rayft.sweep.trial_record import TrialRecord

MOST_SLICES = 12
MOST_FREE = 40
"""Of more trials neighbours differ by chance: the surface is then of the best score in each cell of a grid."""
CELLS = 12
"""Of that grid, on either side."""


def slices(facts: Facts, shares: dict[str, float]) -> Section:
    """Each hyperparameter against the score."""
    title = "Each hyperparameter against the score"
    names = sorted(_searched(facts), key=lambda name: -shares.get(name, 0.0))[:MOST_SLICES]
    if not names:
        return Section("slices", title, missing=NONE_SCORED if facts.param_names else "No hyperparameter was searched.")
    sometimes = any(name not in record.params for record in facts.scored for name in names)
    text = ["A hyperparameter that only some trials search is shown for these."] if sometimes else []
    return Section("slices", title, text, figures=[_slice(facts, name, place) for place, name in enumerate(names)])


def _slice(facts: Facts, name: str, place: int) -> Figure:
    from optuna.visualization import plot_slice

    own = [record for record in facts.scored if name in record.params]
    with quiet():
        data, layout = plain_values(plot_slice(study_of(facts, own), params=[name]))
    dots: Trace = {"type": "scatter", "mode": "markers", "y": data[0]["y"], "trials": [record.number for record in own]}
    kind = layout["xaxis"].get("type")
    ticks: Layout = {"type": kind} if kind else {}
    dots["x"] = data[0]["x"]
    if kind == "category":
        dots["x"] = [_unquoted(x) for x in dots["x"]]
        ticks |= {"categoryorder": "array", "categoryarray": [_unquoted(x) for x in layout["xaxis"]["categoryarray"]]}
    elif kind == "log":
        ticks = log_ticks(dots["x"])
    dots["marker"] = {"size": dot_size(len(own)), "color": "@c0", "opacity": 0.7}
    dots["hovertemplate"] = "%{text}<extra></extra>"
    y = score_axis(facts.config.metric, dots["y"], facts.lower_is_better)
    label = f"{facts.config.metric} by {name}"
    return Figure(f"slice-{place}", label, [dots], {"xaxis": axis(name, **ticks), "yaxis": y, "showlegend": False}, 260)


def _unquoted(shown: str) -> str:
    """A category without the quotes that Optuna puts around it."""
    return shown[1:-1] if len(shown) > 1 and shown[0] == shown[-1] and shown[0] in "'\"" else shown


def contour(facts: Facts, shares: dict[str, float]) -> Section:
    """The score over the two hyperparameters that matter most."""
    title = "Two hyperparameters together"
    pair = _pair(facts, shares)
    if pair is None:
        reason = (
            "This takes two hyperparameters, one of them a number, that vary among at least four trials with a score."
        )
        return Section("contour", title, missing=reason)
    own = [record for record in facts.scored if all(name in record.params for name in pair)]
    many = len(own) > MOST_FREE
    which = "the two that matter most" if shares else "the first two that vary, since what matters most isn't known yet"
    what = f"The surface is the best score found near each place; the dots are the best {MOST_FREE} trials."
    few = f"The dots are {count(len(own), 'trial')}, and between them the surface is a guess."
    text = f"{pair[0]} and {pair[1]}: {which}. {what if many else few}"
    return Section("contour", title, [text], figures=[_surface(facts, own, pair, many)])


def _surface(facts: Facts, own: list[TrialRecord], pair: tuple[str, str], many: bool) -> Figure:
    from optuna.visualization import plot_contour

    spaces = distributions(facts)
    cells = [_in_cell(record, pair, spaces) for record in own] if many else own
    with quiet():
        surface, _ = plain_values(plot_contour(study_of(facts, cells), params=list(pair)))
        shown, optunas = plain_values(plot_contour(study_of(facts, own[:MOST_FREE]), params=list(pair)))
    area, dots = surface[0], shown[1]
    area |= {"colorscale": "@scale", "reversescale": facts.lower_is_better, "line": {"width": 0}, "hoverinfo": "skip"}
    area |= {"colorbar": _colorbar(facts.config.metric), "contours": {"coloring": "heatmap"}}
    dots |= {"trials": [record.number for record in own[:MOST_FREE]], "hovertemplate": "%{text}<extra></extra>"}
    dots |= {"marker": {"color": "@bg", "size": 8, "line": {"color": "@ink", "width": 1.5}}, "showlegend": False}
    layout: Layout = {"margin": {"t": 64}}
    for side in ("x", "y"):
        given = optunas[f"{side}axis"]
        ticks = log_ticks(area[side]) if given.get("type") == "log" else {"type": given.get("type")}
        layout[f"{side}axis"] = axis(given["title"]["text"], showgrid=False, **ticks)
    return Figure("contour-figure", f"{facts.config.metric} over {' and '.join(pair)}", [area, dots], layout, 440)


def _in_cell(record: TrialRecord, names: tuple[str, str], spaces: dict[str, BaseDistribution]) -> TrialRecord:
    """The trial as if its numbers were those in the middle of their cells."""
    return replace(record, params=record.params | {name: _middle(record.params[name], spaces[name]) for name in names})


def _middle(value: Value, space: BaseDistribution) -> Value:
    if not isinstance(space, IntDistribution | FloatDistribution) or not isinstance(value, int | float):
        return value
    low, high, here = (math.log(x) if space.log else float(x) for x in (space.low, space.high, value))
    if high == low or (isinstance(space, IntDistribution) and space.high - space.low < CELLS):
        return value
    cell = min(CELLS - 1, int((here - low) / (high - low) * CELLS))
    middle = low + (cell + 0.5) * (high - low) / CELLS
    middle = math.exp(middle) if space.log else middle
    return round(middle) if isinstance(space, IntDistribution) else middle


def _pair(facts: Facts, shares: dict[str, float]) -> tuple[str, str] | None:
    """Of the hyperparameters by importance, the first two that enough trials have both of.

    One of them is a number: between the values of two that aren't there is no surface.
    """
    spaces = distributions(facts)
    numbers = [name for name in _searched(facts) if not isinstance(spaces[name], CategoricalDistribution)]
    names = sorted(_searched(facts), key=lambda name: (-shares.get(name, 0.0), name not in numbers))
    for index, second in enumerate(names):
        for first in names[:index]:
            if first not in numbers and second not in numbers:
                continue
            both = [record for record in facts.scored if first in record.params and second in record.params]
            if len(both) >= 4 and all(len({record.params[name] for record in both}) > 1 for name in (first, second)):
                return first, second
    return None


def _searched(facts: Facts) -> list[str]:
    return [name for name in facts.param_names if any(name in record.params for record in facts.scored)]


def _colorbar(title: str) -> dict[str, Any]:
    """Above the figure, where it takes no width from a narrow one."""
    place = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0.5, "len": 1.0, "thickness": 10}
    return {**place, "title": {"text": plain(title), "side": "top"}, "outlinewidth": 0}

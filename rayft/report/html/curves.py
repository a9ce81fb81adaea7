"""Scores by epoch: of all trials, with where they were stopped, and of the leaders in every metric."""

from collections.abc import Sequence

from rayft.config import SweepConfig
from rayft.report.html.facts import Facts
from rayft.report.html.parts import (
    DASHES,
    SERIES,
    STATE_COLORS,
    SYMBOLS,
    Figure,
    Layout,
    Section,
    Table,
    Trace,
    View,
    axis,
    count,
    number,
    score_axis,
)
from rayft.sweep.trial_record import TrialRecord

LEADERS = 5
_NO_EPOCH = "No trial has finished an epoch."


def intermediate(facts: Facts) -> Section:
    """The search metric of every trial by epoch, and where trials were stopped."""
    title = "Every trial by epoch"
    with_epochs = [record for record in facts.records if record.values]
    if not with_epochs:
        return Section("epochs", title, missing=_NO_EPOCH)
    traces = [trace for state in ("failed", "pruned", "running", "complete") for trace in _lines(facts, state)]
    stops = _stops(with_epochs)
    traces += [_ends(records, what, symbol) for (what, symbol), records in stops.items() if records]
    values = [value for record in with_epochs for value in record.values.values()]
    y = score_axis(f"{facts.config.metric} on validation", values, facts.lower_is_better)
    layout: Layout = {"xaxis": axis("epoch", **_whole(facts.config)), "yaxis": y, "shapes": _rungs(facts.config)}
    figure = Figure("epochs-figure", "Score of every trial by epoch", traces, layout, 420)
    rows = [
        [str(epoch), str(len(reached)), *(str(sum(r.epochs == epoch for r in records)) for records in stops.values())]
        for epoch in range(1, max(record.epochs for record in with_epochs) + 1)
        if (reached := [record for record in with_epochs if record.epochs >= epoch])
    ]
    columns = ["epoch", "trials that finished it", *(what for what, _ in stops)]
    table = Table(columns, rows, "How many trials came how far", folded=True)
    return Section("epochs", title, [_about_stops(facts, stops)], figures=[figure], tables=[table])


def _lines(facts: Facts, state: str) -> list[Trace]:
    """All trials in one state as one trace, so that a thousand of them are still drawn at once."""
    records = [record for record in facts.records if record.state == state and record.values]
    if not records:
        return []
    x: list[int | None] = []
    y: list[float | None] = []
    trials: list[int] = []
    for record in records:
        x += [*record.values, None]
        y += [*record.values.values(), None]
        trials += [record.number] * (len(record.values) + 1)
    many = len(records) > 60
    trace: Trace = {"type": "scatter", "mode": "lines+markers", "name": state, "x": x, "y": y, "trials": trials}
    trace |= {"hovertemplate": "%{y:.4g}<br>%{text}<extra></extra>", "opacity": 0.45 if many else 0.85}
    dash = "dot" if state in ("pruned", "failed") else "solid"
    trace |= {"line": {"color": STATE_COLORS[state], "width": 1.2, "dash": dash}}
    return [trace | {"marker": {"size": 4 if many else 5, "color": STATE_COLORS[state]}}]


def _stops(records: Sequence[TrialRecord]) -> dict[tuple[str, str], list[TrialRecord]]:
    pruned = [record for record in records if record.state == "pruned"]
    return {
        ("stopped by ASHA", "x"): [record for record in pruned if record.reason is None],
        ("stopped by the time limit", "hourglass"): [record for record in pruned if record.reason is not None],
        ("failed after it", "triangle-down"): [record for record in records if record.state == "failed"],
    }


def _ends(records: list[TrialRecord], what: str, symbol: str) -> Trace:
    state = records[0].state
    return {
        "type": "scatter",
        "mode": "markers",
        "name": what,
        "x": [record.epochs for record in records],
        "y": [record.values[max(record.values)] for record in records],
        "trials": [record.number for record in records],
        "hovertemplate": f"{what} at %{{y:.4g}}<br>%{{text}}<extra></extra>",
        "marker": {"symbol": symbol, "size": 9, "color": STATE_COLORS[state], "line": {"width": 1, "color": "@bg"}},
    }


def _rungs(config: SweepConfig) -> list[Layout]:
    """Upright lines where ASHA compares trials."""
    stopping, rungs = config.early_stopping, []
    if stopping is not None:
        epoch = stopping.grace_epochs
        while epoch < config.training.epochs:
            rungs.append(epoch)
            epoch *= stopping.reduction_factor
    line = {"color": "@muted", "width": 1, "dash": "dash"}
    return [{"type": "line", "yref": "paper", "x0": e, "x1": e, "y0": 0, "y1": 1, "line": line} for e in rungs]


def _about_stops(facts: Facts, stops: dict[tuple[str, str], list[TrialRecord]]) -> str:
    stopping = facts.config.early_stopping
    if stopping is None:
        return "Every trial trains to its end: the sweep has no early stopping."
    (_, asha), *_ = stops.items()
    rungs = ", ".join(str(rung["x0"]) for rung in _rungs(facts.config))
    where = f"compares trials after epoch {rungs} (dashed lines)" if rungs else "has no epoch to compare trials after"
    share = f"one in {stopping.reduction_factor}"
    if len(facts.config.objectives) > 1:
        share = f"the best fronts that hold {share}"
    return f"ASHA {where} and lets {share} go on; it stopped {count(len(asha), 'trial')}."


def leaders_curves(facts: Facts) -> Section:
    """Every metric of the best trials by epoch."""
    title = "Learning curves of the leaders"
    leading = [record for record in facts.scored[:LEADERS] if facts.epochs.get(record.number)]
    if not leading:
        return Section("curves", title, missing=_NO_EPOCH)
    metrics = list(leading[0].metrics)
    metrics.sort(key=lambda name: name != facts.config.metric)
    views = [_view(facts, leading, metric) for metric in metrics]
    layout: Layout = {"xaxis": axis("epoch", **_whole(facts.config))}
    figure = Figure.of_views(
        "curves-figure", "Metrics of the best trials by epoch", views, "metric", layout, height=400
    )
    epochs = sorted({epoch for record in leading for epoch in facts.epochs[record.number]})
    rows = [
        [metric, str(record.number), *(number(_value(facts, record, e, metric)) for e in epochs)]
        for metric in metrics
        for record in leading
    ]
    table = Table(["metric", "trial", *(f"epoch {epoch}" for epoch in epochs)], rows, "Values as text", folded=True)
    text = f"The best {count(len(leading), 'trial')} on the validation split, after each epoch."
    return Section("curves", title, [text], figures=[figure], tables=[table])


def _view(facts: Facts, leading: Sequence[TrialRecord], metric: str) -> View:
    traces = []
    for rank, record in enumerate(leading):
        epochs = {
            e: v for e in sorted(facts.epochs[record.number]) if (v := _value(facts, record, e, metric)) is not None
        }
        trace: Trace = {"type": "scatter", "mode": "lines+markers", "name": f"trial {record.number}"}
        trace |= {"x": list(epochs), "y": list(epochs.values())}
        trace |= {"trials": [record.number] * len(epochs)}
        trace |= {"hovertemplate": "%{y:.4g}<br>%{text}<extra></extra>"}
        trace |= {"line": {"color": SERIES[rank], "dash": DASHES[rank], "width": 2.5 if rank == 0 else 1.8}}
        traces.append(trace | {"marker": {"color": SERIES[rank], "symbol": SYMBOLS[rank], "size": 8}})
    return View(metric, traces, {"yaxis": axis(metric)})


def _value(facts: Facts, record: TrialRecord, epoch: int, metric: str) -> float | None:
    return facts.epochs[record.number].get(epoch, {}).get(metric)


def _whole(config: SweepConfig) -> Layout:
    """Epochs are whole: of few each has a tick."""
    return {"dtick": 1, "range": [0.7, config.training.epochs + 0.3]} if config.training.epochs <= 12 else {}

"""Strategy against strategy, model against model, and score against cost."""

from statistics import median

from rayft.config import MODEL
from rayft.report.html.facts import Facts
from rayft.report.html.front import dots, ring
from rayft.report.html.parts import (
    NONE_SCORED,
    SERIES,
    SYMBOLS,
    Figure,
    Layout,
    Section,
    Table,
    Trace,
    axis,
    dot_size,
    is_wide,
    log_ticks,
    number,
    score_axis,
)
from rayft.report.tables import format_duration
from rayft.sweep.ranking import is_better
from rayft.sweep.trial_record import TrialRecord

FEWEST_FOR_BOX = 5
"""Of fewer points a box says more than they do."""


def choices(facts: Facts, name: str, title: str) -> Section:
    """Score and seconds by what was chosen for one hyperparameter, such as the strategy.

    Args:
        facts: The run.
        name: The hyperparameter, one that every trial has.
        title: The section's.
    """
    id = "models" if name == MODEL else "strategies"
    if name not in facts.config.space:
        only = facts.config.training.strategy if name == "strategy" else facts.shown(MODEL, facts.config.models[0])
        return Section(id, title, missing=f"Every trial has the same {name}, {only}.")
    if not facts.scored:
        return Section(id, title, missing=NONE_SCORED)
    groups: dict[str, list[TrialRecord]] = {}
    for record in facts.scored:
        groups.setdefault(facts.shown(name, record.params[name]), []).append(record)
    values = [record.value for record in facts.scored if record.value is not None]
    metric = facts.config.metric
    score = _boxes(facts, name, groups, "value"), score_axis(metric, values, facts.lower_is_better)
    seconds = _boxes(facts, name, groups, "seconds"), axis("seconds of training", rangemode="tozero")
    figures = [
        Figure(f"{id}-score", f"{metric} by {name}", score[0], _layout(score[1]), 360),
        Figure(f"{id}-seconds", f"Seconds by {name}", seconds[0], _layout(seconds[1]), 360),
    ]
    columns = [
        name,
        "trials",
        "stopped early",
        "failed",
        f"best {metric}",
        f"median {metric}",
        "median time",
        "best trial",
    ]
    rows = [_group_row(facts, name, choice, own) for choice, own in groups.items()]
    text = [
        f"Each point is a trial; of {FEWEST_FOR_BOX} or more a box holds the middle half. "
        "A trial that was stopped early took less time."
    ]
    return Section(id, title, text, figures=figures, tables=[Table(columns, rows)])


def _boxes(facts: Facts, name: str, groups: dict[str, list[TrialRecord]], of: str) -> list[Trace]:
    return [
        {
            "type": "box",
            "name": facts.label(name, records[0].params[name]),
            "y": [getattr(record, of) for record in records],
            "trials": [record.number for record in records],
            "hovertemplate": "%{y:.4g}<br>%{text}<extra></extra>",
            "boxpoints": "all",
            "jitter": 0.5,
            "pointpos": 0,
            "line": {"color": SERIES[index % len(SERIES)] if len(records) >= FEWEST_FOR_BOX else "@none", "width": 1.2},
            "fillcolor": "@none",
            "marker": {
                "symbol": SYMBOLS[index % len(SYMBOLS)],
                "color": SERIES[index % len(SERIES)],
                "size": dot_size(len(facts.scored)),
                "opacity": 0.75,
            },
        }
        for index, (choice, records) in enumerate(groups.items())
    ]


def _layout(y: Layout) -> Layout:
    return {"yaxis": y, "xaxis": {"automargin": True, "tickangle": "auto"}, "showlegend": False}


def _group_row(facts: Facts, name: str, choice: str, own: list[TrialRecord]) -> list[str]:
    everyone = [r for r in facts.records if name in r.params and facts.shown(name, r.params[name]) == choice]
    stopped, failed = (str(sum(r.state == state for r in everyone)) for state in ("pruned", "failed"))
    middle = median(record.value for record in own if record.value is not None)
    seconds = format_duration(median(record.seconds for record in own))
    best = own[0]
    return [choice, str(len(everyone)), stopped, failed, number(best.value), number(middle), seconds, str(best.number)]


def cost(facts: Facts) -> Section:
    """Score against seconds, and the trials that no other one beats in both."""
    title = "Score against cost"
    if not facts.scored:
        return Section("cost", title, missing=NONE_SCORED)
    front = pareto(facts)
    traces = dots(facts, lambda record: record.seconds, "%{x:.1f} s, %{text}<extra></extra>")
    line = ring(front, lambda record: record.seconds, "best for the time")
    seconds = [record.seconds for record in facts.scored]
    values = [record.value for record in facts.scored if record.value is not None]
    layout = {
        "xaxis": axis("seconds of training", **(log_ticks(seconds) if is_wide(seconds) else {"rangemode": "tozero"})),
        "yaxis": score_axis(facts.config.metric, values, facts.lower_is_better),
    }
    figure = Figure("cost-figure", "Score against seconds of training", [*traces, line], layout, 420)
    columns = ["trial", "state", "time", facts.config.metric, "parameters"]
    rows = [[str(r.number), r.state, format_duration(r.seconds), number(r.value), facts.params_text(r)] for r in front]
    text = ["Ringed: the trials that no other one beats in both, the Pareto front. Time is that of finished epochs."]
    return Section("cost", title, text, figures=[figure], tables=[Table(columns, rows, "The Pareto front")])


def pareto(facts: Facts) -> list[TrialRecord]:
    """The trials than which none is as fast and better, or as good and faster, by time."""
    front: list[TrialRecord] = []
    rank = {record.number: place for place, record in enumerate(facts.scored)}
    for record in sorted(facts.scored, key=lambda record: (record.seconds, rank[record.number])):
        value, last = record.value, front[-1].value if front else None
        if value is not None and (last is None or is_better(value, last, facts.config.mode)):
            front.append(record)
    return front

"""The Pareto front of a search with several objectives."""

from collections.abc import Sequence

from rayft.report.html.facts import Facts
from rayft.report.html.parts import (
    NONE_SCORED,
    STATE_COLORS,
    STATE_SYMBOLS,
    Figure,
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
from rayft.report.tables import format_scores
from rayft.sweep.ranking import pareto_front
from rayft.sweep.trial_record import TrialRecord


def front(facts: Facts) -> Section | None:
    """The trials that no other one beats in all objectives; None where there is one objective."""
    names = facts.config.objectives
    if len(names) == 1:
        return None
    title = "The Pareto front"
    if not facts.scored:
        return Section("front", title, missing=NONE_SCORED)
    best = pareto_front(facts.records, facts.config.modes)
    repeated = facts.exported is not None and facts.exported.get("final") is not None
    chosen = f"best mean {names[0]} when trained again" if repeated else f"best {names[0]}"
    text = [
        f"Ringed are the {len(best)} trials that no other one beats in all that is searched for. The one "
        f"with the {chosen} is in best/; another one's model comes by: rayft export RUN --trial NUMBER."
    ]
    rows = [[str(r.number), r.state, *(number(r.measured[name]) for name in names), facts.params_text(r)] for r in best]
    figures = [_figure(facts, name, best) for name in names[1:]]
    table = Table(["trial", "state", *names, "parameters"], rows)
    return Section("front", title, text, figures=figures, tables=[table])


def _figure(facts: Facts, name: str, front: Sequence[TrialRecord]) -> Figure:
    """The first objective against another one."""
    first = facts.config.metric
    states = ("complete", "pruned", "running")
    traces = [_dots(facts, state, name) for state in states if any(r.state == state for r in facts.scored)]
    ringed = sorted(front, key=lambda record: record.measured[name])
    # Of three objectives, two alone have a smaller front, which is no line through all of it.
    mode = "lines+markers" if len(facts.config.objectives) == 2 else "markers"
    line: Trace = {"type": "scatter", "mode": mode, "name": "the front", "hoverinfo": "skip"}
    # Between two of them the front is what is reached for certain, which is no straight line.
    lower = facts.config.modes[facts.config.objectives.index(name)] == "min"
    line["line"] = {"color": "@ink", "width": 1.5, "dash": "dot", "shape": "hv" if lower else "vh"}
    line |= {"x": [r.measured[name] for r in ringed], "y": [r.value for r in ringed]}
    line["marker"] = {"symbol": "circle-open", "size": 15, "color": "@ink", "line": {"width": 1.5}}
    costs = [record.measured[name] for record in facts.scored]
    values = [record.value for record in facts.scored if record.value is not None]
    layout = {
        "xaxis": axis(name, **(log_ticks(costs) if is_wide(costs) else {})),
        "yaxis": score_axis(first, values, facts.lower_is_better),
    }
    return Figure(f"front-{name}", f"{first} against {name}", [*traces, line], layout, 420)


def _dots(facts: Facts, state: str, name: str) -> Trace:
    records = [record for record in facts.scored if record.state == state]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": state,
        "x": [record.measured[name] for record in records],
        "y": [record.value for record in records],
        "trials": [record.number for record in records],
        "hovertext": [format_scores(record.objectives(facts.config.metric)) for record in records],
        "hovertemplate": "%{hovertext}<br>%{text}<extra></extra>",
        "marker": {
            "color": STATE_COLORS[state],
            "symbol": STATE_SYMBOLS[state],
            "size": dot_size(len(facts.scored)),
            "opacity": 0.85,
        },
    }

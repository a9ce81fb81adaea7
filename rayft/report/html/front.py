"""The Pareto front of a search with several objectives."""

from collections.abc import Callable, Sequence

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
    hover = "%{hovertext}<br>%{text}<extra></extra>"
    traces = dots(facts, lambda record: record.measured[name], hover)
    for trace in traces:
        own = [record for record in facts.scored if record.state == trace["name"]]
        trace["hovertext"] = [format_scores(record.objectives(first)) for record in own]
    ringed = sorted(front, key=lambda record: record.measured[name])
    line = ring(ringed, lambda record: record.measured[name], "the front")
    if facts.config.modes[facts.config.objectives.index(name)] == "max":
        line["line"]["shape"] = "vh"
    if len(facts.config.objectives) > 2:  # of which two alone have a smaller front, so no line goes through all of it
        line["mode"] = "markers"
    costs = [record.measured[name] for record in facts.scored]
    values = [record.value for record in facts.scored if record.value is not None]
    layout = {
        "xaxis": axis(name, **(log_ticks(costs) if is_wide(costs) else {})),
        "yaxis": score_axis(first, values, facts.lower_is_better),
    }
    return Figure(f"front-{name}", f"{first} against {name}", [*traces, line], layout, 420)


def dots(facts: Facts, x: Callable[[TrialRecord], float], hover: str) -> list[Trace]:
    """The trials that can win by score and something else, a trace for each state.

    Args:
        facts: The run.
        x: What they are placed by.
        hover: What is said where one is pointed at, as plotly's `hovertemplate`.
    """
    traces: list[Trace] = []
    for state in ("complete", "pruned", "running"):
        records = [record for record in facts.scored if record.state == state]
        marker = {"color": STATE_COLORS[state], "symbol": STATE_SYMBOLS[state], "opacity": 0.85}
        trace: Trace = {"type": "scatter", "mode": "markers", "name": state, "hovertemplate": hover}
        trace |= {"x": [x(record) for record in records], "y": [record.value for record in records]}
        trace |= {"trials": [r.number for r in records], "marker": {**marker, "size": dot_size(len(facts.scored))}}
        traces += [trace] if records else []
    return traces


def ring(records: Sequence[TrialRecord], x: Callable[[TrialRecord], float], name: str) -> Trace:
    """Rings around trials of a front, and steps from one to the next: what lies between is no straight line."""
    trace: Trace = {"type": "scatter", "mode": "lines+markers", "name": name, "hoverinfo": "skip"}
    trace["line"] = {"shape": "hv", "color": "@ink", "width": 1.5, "dash": "dot"}
    trace |= {"x": [x(record) for record in records], "y": [record.value for record in records]}
    trace["marker"] = {"symbol": "circle-open", "size": 15, "color": "@ink", "line": {"width": 1.5}}
    return trace

"""How the search went and what mattered in it, as Optuna plots it."""

import math

from rayft.imports import swiftly
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
    count,
    dot_size,
    number,
    score_axis,
)
from rayft.report.html.view import plain_values, quiet, study_of
from rayft.report.tables import format_duration
from rayft.sweep.ranking import is_better

FEWEST_FOR_IMPORTANCE = 10
"""Of fewer trials the best tenth is one, which says nothing of what made it so."""


def history(facts: Facts) -> Section:
    """Each trial's score in the order of trials, and the best so far."""
    from optuna.visualization import plot_optimization_history

    title = "History"
    if not facts.scored:
        return Section("history", title, missing=NONE_SCORED)
    with quiet():
        data, _ = plain_values(plot_optimization_history(study_of(facts, facts.records)))
    scores, best = data[0], data[1]
    numbers = [record.number for record in facts.records]
    at = {numbers[x]: y for x, y in zip(scores["x"], scores["y"], strict=True)}
    traces = [_of_state(facts, state, at) for state in STATE_COLORS]
    line: Trace = {
        "x": [numbers[x] for x in best["x"]],
        "y": [y if y and math.isfinite(y) else None for y in best["y"]],
    }
    line |= {"type": "scatter", "mode": "lines", "name": "best so far", "hoverinfo": "y"}
    line |= {"line": {"shape": "hv", "width": 2.5, "color": "@ink"}}
    layout = {"xaxis": axis("trial"), "yaxis": score_axis(facts.config.metric, [*at.values()], facts.lower_is_better)}
    figure = Figure("history-figure", "Score of each trial and the best so far", [line, *filter(None, traces)], layout)
    columns = ["trial", facts.config.metric, "better than before by", "epochs", "time", "parameters"]
    return Section(
        "history",
        title,
        ["Each trial's best epoch. A trial that was stopped early counts with the score that it had come to."],
        figures=[figure],
        tables=[Table(columns, _improvements(facts), "Each time that the best got better", folded=True)],
    )


def _of_state(facts: Facts, state: str, at: dict[int, float]) -> Trace | None:
    records = [record for record in facts.records if record.state == state and record.number in at]
    if not records:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": state,
        "x": [record.number for record in records],
        "y": [at[record.number] for record in records],
        "trials": [record.number for record in records],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": STATE_COLORS[state], "symbol": STATE_SYMBOLS[state], "size": dot_size(len(at))},
    }


def _improvements(facts: Facts) -> list[list[str]]:
    rows, best = [], None
    for record in sorted(facts.scored, key=lambda record: record.number):
        value = record.value
        assert value is not None
        if best is None or is_better(value, best, facts.config.mode):
            gain = "-" if best is None else number(abs(value - best))
            seconds = format_duration(record.seconds)
            text = facts.params_text(record)
            rows.append([str(record.number), number(value), gain, str(record.epochs), seconds, text])
            best = value
    return rows


def importances(facts: Facts) -> dict[str, float]:
    """How much of being among the best each hyperparameter decides, most first; empty if that can't be told."""
    varied = [name for name in facts.param_names if len({repr(r.params.get(name)) for r in facts.scored}) > 1]
    varied = [name for name in varied if any(name in record.params for record in facts.scored)]
    if len(facts.scored) < FEWEST_FOR_IMPORTANCE or not varied:
        return {}
    with swiftly():
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    with quiet():
        found = get_param_importances(
            study_of(facts, facts.scored), evaluator=PedAnovaImportanceEvaluator(), params=varied, normalize=False
        )
    total = sum(value for value in found.values() if math.isfinite(value))
    return {name: value / total for name, value in found.items() if math.isfinite(value)} if total > 0 else {}


def importance(facts: Facts, shares: dict[str, float]) -> Section:
    """What mattered, as bars."""
    title = "What mattered"
    if not facts.param_names:
        return Section("importance", title, missing="No hyperparameter was searched.")
    if len(facts.scored) < FEWEST_FOR_IMPORTANCE:
        have = f"this sweep has {count(len(facts.scored), 'trial')} with a score so far"
        reason = f"Importances need at least {FEWEST_FOR_IMPORTANCE} trials with a score, and {have}."
        return Section("importance", title, missing=reason)
    if not shares:
        return Section("importance", title, missing="All trials have the same values or scores, so nothing mattered.")
    names = list(reversed(shares))
    bars: Trace = {"type": "bar", "orientation": "h", "y": names, "x": [shares[name] for name in names]}
    bars |= {"text": [_percent(shares[name]) for name in names], "textposition": "outside", "cliponaxis": False}
    bars |= {"marker": {"color": "@c0"}, "hovertemplate": "%{y}: %{text}<extra></extra>"}
    most = max(shares.values())
    layout = {"xaxis": axis("share", tickformat=".0%", range=[0, 1.15 * most]), "yaxis": axis(""), "showlegend": False}
    height = 110 + 34 * len(names)
    figure = Figure("importance-figure", "Importance of each hyperparameter", [bars], layout, height)
    about = (
        "PED-ANOVA (Watanabe et al. 2023): how much each hyperparameter tells the best tenth of the trials from all."
    )
    few = "" if len(facts.scored) >= 50 else f" Of {len(facts.scored)} trials this is a hint, no more."
    rows = [[name, f"{share:.1%}"] for name, share in shares.items()]
    table = Table(["hyperparameter", "share"], rows, "Values as text", folded=True)
    return Section("importance", title, [about + few], figures=[figure], tables=[table])


def _percent(share: float) -> str:
    return "&lt;1%" if 0 < share < 0.005 else f"{share:.0%}"

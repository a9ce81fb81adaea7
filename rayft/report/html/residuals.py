"""How far the winner of a regression is from the true numbers, and where."""

from statistics import mean, median

from rayft.report.html.facts import Facts
from rayft.report.html.parts import Figure, Layout, Section, Trace, View, axis, number

Pairs = list[list[float]]


def residuals(facts: Facts) -> Section:
    """Predicted minus true numbers over the true ones, on each split that was scored."""
    title = "The winner's errors"
    best = facts.exported
    if best is None:
        return Section(
            "residuals", title, missing="This is known once the winner is exported, at the end of the sweep."
        )
    splits: dict[str, Pairs] = {name: own for name, own in best.get("pairs", {}).items() if own}
    if not splits:
        return Section("residuals", title, missing="The exported model has no record of its predictions.")
    # Test where there is one: validation has chosen the model, so it scores it too well.
    views = [View(split, [_dots(own)]) for split, own in reversed([*splits.items()])]
    layout: Layout = {
        "xaxis": axis("true number"),
        "yaxis": axis("predicted minus true", zeroline=True, zerolinecolor="@ink", zerolinewidth=1.5),
        "showlegend": False,
    }
    figure = Figure.of_views("residuals-figure", "Errors over true numbers", views, "split", layout, height=400)
    text = [
        "Each point is a row. A cloud that falls from left to right means that the model draws numbers to the mean.",
        *(_in_words(split, own) for split, own in reversed([*splits.items()])),
    ]
    return Section("residuals", title, text, figures=[figure])


def _in_words(split: str, pairs: Pairs) -> str:
    errors = [predicted - true for true, predicted in pairs]
    off = median(abs(error) for error in errors)
    return f"On {split}, over {len(pairs)} rows: mean error {number(mean(errors))}, median distance {number(off)}."


def _dots(pairs: Pairs) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [true for true, _ in pairs],
        "y": [predicted - true for true, predicted in pairs],
        "hovertext": [f"true {number(true)}, predicted {number(predicted)}" for true, predicted in pairs],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"color": "@c0", "symbol": "circle", "size": 7, "opacity": 0.6},
    }

"""Who the winner takes for whom, and how it does in each class."""

from collections.abc import Mapping, Sequence
from typing import Any

from rayft.report.html.facts import Facts
from rayft.report.html.parts import Figure, Layout, Section, Table, Trace, View, axis, number, plain, short

MOST_CLASSES = 60
"""Of more classes nobody could read a matrix."""
MOST_WITH_NUMBERS = 20
MOST_CONFUSIONS = 20

_KINDS = {
    "causal-lm": "The winner goes on with a text, so there are no classes; its scores are under What won.",
}

Classes = Mapping[str, Mapping[str, Any]]


def classes(facts: Facts) -> Section:
    """The confusion matrix where each row has one class, and each class's own figures."""
    title = "The winner by class"
    if facts.config.task in _KINDS:
        return Section("classes", title, missing=_KINDS[facts.config.task])
    best = facts.exported
    if best is None:
        return Section("classes", title, missing="This is known once the winner is exported, at the end of the sweep.")
    splits: dict[str, Classes] = {name: own for name, own in best["classes"].items() if own}
    if not splits:
        return Section("classes", title, missing="The exported model has no figures by class.")
    tables = [_class_table(own, split) for split, own in reversed([*splits.items()])]
    matrices = {split: own for split, own in splits.items() if all("predicted" in one for one in own.values())}
    if not matrices:
        text = "A row may have several classes, or a word none, so who is taken for whom can't be counted."
        return Section("classes", title, [text], figures=[_scores(splits)], tables=tables)
    text = "A row for each true class, a column for each predicted one; the stronger, the larger the share of the row."
    mistaken = [_confusions(own, split) for split, own in reversed([*matrices.items()])]
    n_classes = len(next(iter(matrices.values())))
    if n_classes > MOST_CLASSES:
        text = f"A matrix of {n_classes} classes can't be read; these are the most frequent confusions."
        return Section("classes", title, [text], tables=[*mistaken, *tables])
    return Section("classes", title, [text], figures=[_matrix(matrices)], tables=[*mistaken, *tables])


def _matrix(splits: Mapping[str, Classes]) -> Figure:
    # Test where there is one: validation has chosen the model, so it scores it too well.
    views = [View(split, [_heatmap(own)]) for split, own in reversed([*splits.items()])]
    n = len(next(iter(splits.values())))
    cell = 44 if n <= MOST_WITH_NUMBERS else 18
    names = [short(name, 18) for name in next(iter(splits.values()))]
    every = {"tickmode": "array", "tickvals": list(range(n)), "ticktext": names, "showgrid": False, "zeroline": False}
    layout: Layout = {
        "xaxis": axis("", side="top", tickangle=-45 if n > 3 else 0, **every),
        "yaxis": axis("", autorange="reversed", **every),
        "margin": {"b": 8},
    }
    size = {"height": max(240, 110 + cell * n), "min_width": max(300, 130 + cell * n)}
    return Figure.of_views("confusion-figure", "Confusion matrix", views, "split", layout, **size)


def _heatmap(classes: Classes) -> Trace:
    counts = [list(own["predicted"]) for own in classes.values()]
    shares = [[value / max(1, sum(row)) for value in row] for row in counts]
    names = [plain(name) for name in classes]
    trace: Trace = {"type": "heatmap", "z": shares, "zmin": 0, "zmax": 1, "colorscale": "@scale", "showscale": False}
    trace |= {"xgap": 2, "ygap": 2}
    trace["hovertext"] = [
        [f"true {a}, predicted {b}: {count}" for b, count in zip(names, row, strict=True)]
        for a, row in zip(names, counts, strict=True)
    ]
    trace["hovertemplate"] = "%{hovertext}<extra></extra>"
    if len(counts) <= MOST_WITH_NUMBERS:
        trace |= {"text": counts, "texttemplate": "%{text}"}
    return trace


def _class_table(classes: Classes, split: str) -> Table:
    rows = [
        [name, str(own["rows"]), *(number(own[metric]) for metric in ("precision", "recall", "f1"))]
        for name, own in classes.items()
    ]
    return Table(["class", "rows", "precision", "recall", "F1"], rows, f"By class, on {split}")


def _confusions(classes: Classes, split: str) -> Table:
    names = list(classes)
    found = [
        (count, true, names[column], own["rows"])
        for true, own in classes.items()
        for column, count in enumerate(own["predicted"])
        if count and names[column] != true
    ]
    found.sort(key=lambda one: -one[0])
    rows = [
        [true, taken, str(count), f"{count / max(1, of):.1%}"] for count, true, taken, of in found[:MOST_CONFUSIONS]
    ]
    columns = ["true", "predicted", "rows", "of the class"]
    title = f"Most frequent confusions, on {split}" if rows else f"On {split} every row is right"
    return Table(columns, rows, title, folded=bool(rows))


def _scores(splits: Mapping[str, Classes]) -> Figure:
    """Precision, recall and F1 as dots, for classes that can't be confused with each other."""
    views = [View(split, _dots(own)) for split, own in reversed([*splits.items()])]
    n = len(next(iter(splits.values())))
    layout: Layout = {"xaxis": axis("", range=[0, 1.03]), "yaxis": {"automargin": True, "autorange": "reversed"}}
    return Figure.of_views("scores-figure", "Scores by class", views, "split", layout, height=130 + 30 * min(n, 60))


def _dots(classes: Classes) -> list[Trace]:
    names = [short(name, 18) for name in classes]
    looks: Sequence[tuple[str, str, str]] = (
        ("precision", "@c0", "triangle-right"),
        ("recall", "@c1", "triangle-left"),
        ("f1", "@ink", "circle"),
    )
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "F1" if metric == "f1" else metric,
            "x": [own[metric] for own in classes.values()],
            "y": names,
            "hovertemplate": "%{y}: %{x:.4f}",
            "marker": {"color": color, "symbol": symbol, "size": 11},
        }
        for metric, color, symbol in looks
    ]

"""Scores models that give any number of labels for each text."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support

ROWS_PER_BATCH = 32
MAX_UNDECIDED = 100
"""Decisions, of a split, whose other outcome is looked at."""

Measure = Callable[[str, np.ndarray], float]
Scored = tuple[dict[str, float], dict[str, float], dict[str, dict[str, Any]], Measure, int]
"""Metrics, their slack, each class's own figures, what measures one metric on some rows, and the number of rows."""


def score(pipe: Any, table: pa.Table, rounding: float, facts: dict[str, Any]) -> Scored:
    """The search's metrics, computed apart from the code that the search ran; their slack; and each label's own."""
    names = pipe.model.config.id2label
    ids = {name: index for index, name in names.items()}
    columns = {name: table[name].to_pylist() for name in ("text", "text_pair") if name in table.column_names}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    probabilities = np.empty((len(rows), len(ids)))
    found = pipe(rows, top_k=None, function_to_apply="sigmoid", batch_size=ROWS_PER_BATCH, truncation=True)
    for row, scores in enumerate(found):
        for entry in scores:
            probabilities[row, ids[entry["label"]]] = entry["score"]
    true = np.array(table["label"].to_pylist()) > 0
    predicted = probabilities > 0.5
    bounded = np.clip(probabilities, 1e-12, 1 - 1e-12)
    loss = np.mean([log_loss(true[:, label], bounded[:, label], labels=[False, True]) for label in range(len(ids))])
    as_is = counted_metrics(predicted, true)
    slack = dict.fromkeys(as_is, 0.0)
    margins = np.abs(probabilities - 0.5)
    for place in margins.argsort(axis=None, kind="stable")[:MAX_UNDECIDED]:
        row, label = divmod(int(place), len(ids))
        if margins[row, label] > rounding:
            break
        other = predicted.copy()
        other[row, label] = not other[row, label]
        for name, value in counted_metrics(other, true).items():
            slack[name] += abs(value - as_is[name])
    figures = precision_recall_fscore_support(true, predicted, zero_division=0.0)
    classes = {
        names[label]: {"rows": int(rows), "precision": float(precision), "recall": float(recall), "f1": float(f1)}
        for label, precision, recall, f1, rows in zip(sorted(names), *figures, strict=True)
    }

    def measure(name: str, rows: np.ndarray) -> float:
        if name == "loss":
            share = np.where(true[rows], bounded[rows], 1 - bounded[rows])
            return float(-np.log(share).mean())
        return counted_metrics(predicted[rows], true[rows])[name]

    return {"loss": float(loss), **as_is}, {"loss": 0.0, **slack}, classes, measure, len(true)


def counted_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The metrics that only ask which labels were given."""
    averages = {f"{kind}_f1": f1_score(true, predicted, average=kind, zero_division=0.0) for kind in ("micro", "macro")}
    weighted = f1_score(true, predicted, average="weighted", zero_division=0.0)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        **{name: float(value) for name, value in averages.items()},
        "weighted_f1": float(weighted),
    }

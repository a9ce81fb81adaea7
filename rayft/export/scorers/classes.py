"""Scores models that give one class for each text or image."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

ROWS_PER_BATCH = 32
MAX_UNDECIDED = 100
"""Rows, of a split, whose other outcome is looked at."""
TOP = 5
COUNTED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, predicted: float(accuracy_score(labels, predicted)),
    "macro_f1": lambda labels, predicted: float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    "weighted_f1": lambda labels, predicted: float(f1_score(labels, predicted, average="weighted", zero_division=0.0)),
    "matthews_correlation": lambda labels, predicted: float(matthews_corrcoef(labels, predicted)),
}
"""The metrics that only ask which label won."""

Measure = Callable[[str, np.ndarray], float]
Scored = tuple[dict[str, float], dict[str, float], dict[str, dict[str, Any]], Measure, int]
"""Metrics, their slack, each class's own figures, what measures one metric on some rows, and the number of rows."""


def score(pipe: Any, table: pa.Table, rounding: float, facts: dict[str, Any]) -> Scored:
    """The search's metrics, computed apart from the code that the search ran; their slack; and each class's own."""
    logits, labels = all_logits(pipe, table), table["label"].to_numpy()
    images = "image" in table.column_names
    metrics = classification_metrics(logits, labels)
    slack = rounding_slack(logits, labels, rounding)
    if images:
        metrics["top5_accuracy"] = top5_accuracy(logits, labels)
        slack["top5_accuracy"] = _top5_slack(logits, rounding)
    predicted = logits.argmax(axis=1)

    def measure(name: str, rows: np.ndarray) -> float:
        if name == "loss":
            return float(-log_probabilities(logits[rows])[np.arange(len(rows)), labels[rows]].mean())
        if name == "top5_accuracy":
            return top5_accuracy(logits[rows], labels[rows])
        return COUNTED[name](labels[rows], predicted[rows])

    return metrics, slack, class_scores(predicted, labels, pipe.model.config.id2label), measure, len(labels)


def all_logits(pipe: Any, table: pa.Table) -> np.ndarray:
    """The model's logits, [rows, labels]."""
    ids = {name: index for index, name in pipe.model.config.id2label.items()}
    logits = np.empty((table.num_rows, len(ids)))
    options: dict[str, Any] = {"top_k": len(ids), "function_to_apply": "none", "batch_size": ROWS_PER_BATCH}
    if "image" in table.column_names:
        order = np.arange(table.num_rows)
        given: Any = _images(table)
    else:
        columns = {name: table[name].to_pylist() for name in ("text", "text_pair") if name in table.column_names}
        order = np.argsort([len(text) for text in columns["text"]], kind="stable")
        given = [{name: values[row] for name, values in columns.items()} for row in order]
        options |= {"truncation": True, "top_k": None}
    for row, scores in zip(order, pipe(given, **options), strict=True):
        for entry in scores:
            logits[row, ids[entry["label"]]] = entry["score"]
    return logits


def _images(table: pa.Table) -> list[Image.Image]:
    return [Image.open(io.BytesIO(content)) for content in table["image"].to_pylist()]


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of any classifier.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].
    """
    loss = -log_probabilities(logits)[np.arange(len(labels)), labels].mean()
    return {"loss": float(loss), **counted_metrics(logits.argmax(axis=1), labels)}


def top5_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """How often the true class is among the five with the highest scores."""
    if logits.shape[1] <= TOP:
        return 1.0
    return float(top_k_accuracy_score(labels, logits, k=TOP, labels=np.arange(logits.shape[1])))


def class_scores(predicted: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> dict[str, dict[str, Any]]:
    """Rows, precision, recall, F1 and the counts of what its rows are taken for, of each class by its name."""
    ids = sorted(names)
    figures = precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0.0)
    return {
        names[label]: {
            "rows": int(rows),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "predicted": [int(((labels == label) & (predicted == other)).sum()) for other in ids],
        }
        for label, precision, recall, f1, rows in zip(ids, *figures, strict=True)
    }


def rounding_slack(logits: np.ndarray, labels: np.ndarray, rounding: float) -> dict[str, float]:
    """How far each metric may lie from itself where rounding decides rows otherwise.

    A row is decided by rounding if its two highest probabilities are no further apart than that. What each such row by
    itself would change is added up; the loss isn't counted in rows and has none.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].
        rounding: How far it may move a probability.
    """
    probabilities = np.exp(log_probabilities(logits))
    order = probabilities.argsort(axis=1)
    rows = np.arange(len(labels))
    margins = probabilities[rows, order[:, -1]] - probabilities[rows, order[:, -2]]
    undecided = [row for row in margins.argsort(kind="stable")[:MAX_UNDECIDED] if margins[row] <= rounding]
    predicted = logits.argmax(axis=1)
    as_is = counted_metrics(predicted, labels)
    slack = dict.fromkeys(as_is, 0.0)
    for row in undecided:
        other = predicted.copy()
        other[row] = order[row, -2] if order[row, -2] != predicted[row] else order[row, -1]
        for name, value in counted_metrics(other, labels).items():
            slack[name] += abs(value - as_is[name])
    return {"loss": 0.0, **slack}


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def counted_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics that only ask which label won."""
    return {name: measure(labels, predicted) for name, measure in COUNTED.items()}


def _top5_slack(logits: np.ndarray, rounding: float) -> float:
    if logits.shape[1] <= TOP:
        return 0.0
    ordered = np.sort(np.exp(log_probabilities(logits)), axis=1)
    return float((ordered[:, -TOP] - ordered[:, -TOP - 1] <= rounding).mean())

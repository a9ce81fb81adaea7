"""Scores models that give a number for each text."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error

ROWS_PER_BATCH = 32

Measure = Callable[[str, np.ndarray], float]
Scored = tuple[dict[str, float], dict[str, float], dict[str, dict[str, Any]], Measure, int, list[list[float]]]
"""Metrics, their slack, no classes, what measures one metric on some rows, the number of rows, and `some_pairs`."""
MOST_PAIRS = 500


def score(pipe: Any, table: pa.Table, rounding: float, facts: dict[str, Any]) -> Scored:
    """The metrics of the search, computed apart from the code that the search ran; and their slack.

    Rounding moves what the model gives by a share of the numbers' standard deviation, and ranks only with it.
    """
    columns = {name: table[name].to_pylist() for name in ("text", "text_pair") if name in table.column_names}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    found = pipe(rows, top_k=None, function_to_apply="none", batch_size=ROWS_PER_BATCH, truncation=True)
    predicted, true = np.array([scores[0]["score"] for scores in found]), table["label"].to_numpy().astype(np.float64)
    deviation = facts["deviation"]
    metrics = {name: measure(predicted, true, deviation) for name, measure in MEASURES.items()}
    moved, error = rounding * deviation, metrics["mse"]
    slack = {"loss": 2 * rounding * np.sqrt(error) / deviation, "mse": 2 * moved * np.sqrt(error) + moved**2}
    slack |= {"mae": moved, "pearson": rounding, "spearman": _spearman_slack(predicted, true, moved)}

    def measure(name: str, rows: np.ndarray) -> float:
        return MEASURES[name](predicted[rows], true[rows], deviation)

    shown = some_pairs(true, predicted)
    return metrics, {name: float(slack[name]) for name in metrics}, {}, measure, len(true), shown


def some_pairs(true: np.ndarray, predicted: np.ndarray) -> list[list[float]]:
    """True and predicted numbers of some rows, for a plot: all, or of many rows as many as it shows, evenly spaced."""
    rows = np.unique(np.linspace(0, len(true) - 1, min(len(true), MOST_PAIRS)).round().astype(int))
    return [[float(true[row]), float(predicted[row])] for row in rows]


def _unless_constant(measure: Any, one: np.ndarray, other: np.ndarray) -> float:
    """0 where all values of one are the same, which has no correlation with anything."""
    return 0.0 if one.std() == 0 or other.std() == 0 else float(measure(one, other).statistic)


def _spearman_slack(predicted: np.ndarray, true: np.ndarray, moved: float) -> float:
    """How much it changes when neighbours within rounding's reach change places: those of `moved` become equal."""
    if moved == 0:
        return 0.0
    tied = np.round(predicted / (2 * moved))
    return abs(_unless_constant(spearmanr, tied, true) - _unless_constant(spearmanr, predicted, true)) + 1e-3


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "loss": lambda predicted, true, deviation: float(mean_squared_error(true, predicted)) / deviation**2,
    "mse": lambda predicted, true, _: float(mean_squared_error(true, predicted)),
    "mae": lambda predicted, true, _: float(mean_absolute_error(true, predicted)),
    "pearson": lambda predicted, true, _: _unless_constant(pearsonr, predicted, true),
    "spearman": lambda predicted, true, _: _unless_constant(spearmanr, predicted, true),
}
"""Each metric of predicted and true numbers, given the standard deviation of train's."""

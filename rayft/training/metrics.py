"""The metrics of a classifier over a whole split, as scikit-learn defines them.

All follow from the confusion matrix. scikit-learn itself, which the tests compare with, takes every worker two seconds
to import.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional


def compute_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of `rayft.config.METRICS`.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].

    Returns:
        Python floats by name; `loss` is the mean cross-entropy, without label smoothing.
    """
    assert len(logits) == len(labels) > 0, f"{len(logits)} rows of logits for {len(labels)} labels"
    cross_entropy = functional.cross_entropy(torch.tensor(logits).double(), torch.tensor(labels))
    confusion = confusion_matrix(labels, logits.argmax(axis=-1), logits.shape[-1])
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    occurring = support + predicted > 0  # a label that is neither true nor predicted of any row has no F1
    f1 = 2 * confusion.diagonal()[occurring] / (support + predicted)[occurring]
    metrics = {
        "loss": cross_entropy,
        "accuracy": confusion.trace() / len(labels),
        "macro_f1": f1.mean(),
        "weighted_f1": np.average(f1, weights=support[occurring]),
        "matthews_correlation": _matthews(confusion),
    }
    return {name: float(value) for name, value in metrics.items()}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> NDArray[np.int64]:
    """Counts of rows by true label (first axis) and predicted label, [num_labels, num_labels]."""
    pairs = np.asarray(labels, dtype=np.int64) * num_labels + predicted
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def _matthews(confusion: NDArray[np.int64]) -> float:
    """Gorodkin (2004), equation 8; 0 where all rows are of one label, or are taken for one."""
    rows, correct = float(confusion.sum()), float(confusion.trace())
    support, predicted = confusion.sum(axis=1).astype(float), confusion.sum(axis=0).astype(float)
    covariance = correct * rows - support @ predicted
    variances = (rows**2 - predicted @ predicted) * (rows**2 - support @ support)
    return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0

"""The metrics of a classifier over a whole split."""

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
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
    predicted = logits.argmax(axis=-1)
    metrics = {
        "loss": cross_entropy,
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0.0),
        "weighted_f1": f1_score(labels, predicted, average="weighted", zero_division=0.0),
        "matthews_correlation": matthews_corrcoef(labels, predicted),
    }
    return {name: float(value) for name, value in metrics.items()}

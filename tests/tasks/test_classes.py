import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rayft.config_tasks import TASK_RULES
from rayft.tasks.classes import classification_metrics as compute_metrics

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 1])  # label 2 is never predicted


def test_every_metric_of_the_config() -> None:
    metrics = compute_metrics(np.eye(3, dtype=np.float32)[PREDICTED], LABELS)

    assert tuple(metrics) == TASK_RULES["text-classification"].metrics
    assert all(type(value) is float for value in metrics.values())


def test_values_worked_out_by_hand() -> None:
    metrics = compute_metrics(np.eye(3, dtype=np.float32)[PREDICTED], LABELS)

    # One-hot logits: the loss of a right row is log(e + 2) - 1, of a wrong one log(e + 2).
    assert metrics["loss"] == pytest.approx(math.log(math.e + 2) - 4 / 6)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    # F1 of the labels: 2 * 2 / (2 + 3) = 0.8, 2 * 2 / (4 + 2) = 2 / 3, and 0.
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 3)
    assert metrics["weighted_f1"] == pytest.approx((3 * 0.8 + 2 * 2 / 3) / 6)
    # Gorodkin (2004): (4 * 6 - (3 * 2 + 2 * 4)) / sqrt((36 - 4 - 16) * (36 - 9 - 4 - 1))
    assert metrics["matthews_correlation"] == pytest.approx(10 / math.sqrt(16 * 22))


def test_a_sure_and_wrong_prediction_has_a_finite_loss() -> None:
    metrics = compute_metrics(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1]))

    assert metrics["loss"] == pytest.approx(1000.0)


def test_logits_that_are_not_numbers_show_in_the_loss() -> None:
    metrics = compute_metrics(np.full((2, 2), np.nan, dtype=np.float32), np.array([0, 1]))

    assert math.isnan(metrics["loss"])


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_values_are_scikit_learns(labels: int) -> None:
    generator = np.random.default_rng(labels)
    for _ in range(50):
        rows = int(generator.integers(1, 30))
        logits = generator.normal(size=(rows, labels)).astype(np.float32)
        true, predicted = generator.integers(0, labels, rows), logits.argmax(axis=-1)
        metrics = compute_metrics(logits, true)

        assert metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        assert metrics["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0.0))
        assert metrics["weighted_f1"] == pytest.approx(f1_score(true, predicted, average="weighted", zero_division=0.0))
        assert metrics["matthews_correlation"] == pytest.approx(matthews_corrcoef(true, predicted))

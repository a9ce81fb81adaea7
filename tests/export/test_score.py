import ast
from pathlib import Path

import numpy as np
import pytest

from rayft.export import scorers
from rayft.export.scorers.classes import classification_metrics, rounding_slack
from rayft.tasks import classes


@pytest.mark.parametrize("file", sorted(Path(scorers.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_imports_nothing_of_rayft(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported or file.stem == "__init__"
    assert not [name for name in imported if name.split(".")[0] == "rayft"]


def test_metrics_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]]))
    metrics = classification_metrics(logits, np.array([0, 1, 0, 0]))
    assert metrics["loss"] == pytest.approx(-np.log([0.5, 0.8, 0.2, 0.6]).mean())
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metrics["weighted_f1"] == pytest.approx(0.75 * 4 / 5 + 0.25 * 2 / 3)
    assert metrics["matthews_correlation"] == pytest.approx(2 / np.sqrt(12))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_search(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=30, size=(50, 4)).astype(np.float32)  # far apart, so that exp() would overflow
    labels = generator.integers(0, 3, 50)  # the last class has no row
    assert classification_metrics(logits.astype(np.float64), labels) == pytest.approx(
        classes.classification_metrics(logits, labels)
    )


def test_rows_that_rounding_decides_give_each_metric_room() -> None:
    logits = np.log(np.array([[0.505, 0.495], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))
    labels = np.array([0, 0, 1, 1])
    slack = rounding_slack(logits, labels, 0.02)
    assert slack["loss"] == 0.0
    assert slack["accuracy"] == 0.25
    expected = classification_metrics(np.log(np.array([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])), labels)
    assert slack["macro_f1"] == pytest.approx(1.0 - expected["macro_f1"])
    assert slack.keys() == expected.keys()


@pytest.mark.parametrize(("rounding", "rows"), [(0.0, 0), (0.009, 0), (0.011, 1), (0.21, 2), (1.0, 4)])
def test_only_rows_near_the_border_count(rounding: float, rows: int) -> None:
    logits = np.log(np.array([[0.505, 0.495], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))
    assert rounding_slack(logits, np.array([0, 0, 1, 1]), rounding)["accuracy"] == rows / 4


def test_a_tie_may_go_either_way() -> None:
    assert rounding_slack(np.zeros((10, 3)), np.zeros(10, dtype=int), 1e-3)["accuracy"] == pytest.approx(1.0)

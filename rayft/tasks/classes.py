"""What the tasks that predict one class for each row have in common: labels, loss and metrics.

All metrics but the loss follow from the confusion matrix. scikit-learn itself, which the tests compare with, takes
every worker two seconds to import.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, Hyperparameters
from rayft.data.cells import label_of
from rayft.data.check import Table
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.labels import class_faults, class_names
from rayft.data.load import SplitName
from rayft.data.splits import Ids, Rows
from rayft.errors import Fault
from rayft.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


class ClassTask(Task):
    """One class for each row."""

    def read_label(self, cells: Sequence[Any], inputs: tuple[Any, ...], columns: Columns) -> str:
        """See `Task.read_label`."""
        return label_of(cells[0])

    def label_names(self, labels: Sequence[Any], columns: Columns) -> tuple[str, ...]:
        """See `Task.label_names`."""
        return class_names(labels)

    def label_faults(self, tables: Mapping[SplitName, Table], columns: Columns) -> list[Fault]:
        """See `Task.label_faults`: one class only, and labels that train lacks."""
        return class_faults(tables, lambda label: (label,))

    def label_ids(self, labels: Sequence[Any], names: Sequence[str]) -> Ids:
        """See `Task.label_ids`; int64 of shape [rows]."""
        ids = {name: index for index, name in enumerate(names)}
        return np.array([ids[label] for label in labels], dtype=np.int64)

    def label_array(self, labels: Ids) -> pa.Array:
        """Some rows' labels as the encoded file has them."""
        return pa.array(labels)

    def strata(self, rows: Rows, names: Sequence[str]) -> tuple[Ids, Sequence[str] | None]:
        """See `Task.strata`: each class is one."""
        assert isinstance(rows.labels, np.ndarray)
        return rows.labels, names

    def configure(self, config: "PretrainedConfig", label_names: Sequence[str], pad_token_id: int | None) -> None:
        """See `Task.configure`."""
        super().configure(config, label_names, pad_token_id)
        config.problem_type = "single_label_classification"

    def row_weights(self, split: EncodedSplit, data: EncodedData) -> NDArray[np.float64]:
        """See `Task.row_weights`: those of the row's class, if classes have any."""
        weights = data.facts.get("class_weights")
        if weights is None or split.labels is None:
            return np.ones(len(split))
        own: NDArray[np.float64] = np.asarray(weights)[split.labels]
        return own

    def loss_sum(self, logits: "Tensor", labels: "Tensor", hp: Hyperparameters, data: EncodedData) -> "Tensor":
        """See `Task.loss_sum`: cross-entropy."""
        from torch.nn import functional

        weights = data.facts.get("class_weights")
        loss = functional.cross_entropy(logits, labels, label_smoothing=hp.label_smoothing, reduction="none")
        if weights is not None:  # torch's own weights would also change what label smoothing means
            loss = loss * logits.new_tensor(weights)[labels]
        return loss.sum()

    def output_size(self, data: EncodedData) -> int:
        """See `Task.output_size`."""
        return len(data.label_names)

    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """See `Task.metrics`."""
        assert split.labels is not None, f"{split.name} has no labels"
        return classification_metrics(outputs, split.labels)

    def confusion(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> NDArray[np.int64]:
        """See `Task.confusion`."""
        assert split.labels is not None, f"{split.name} has no labels"
        return confusion_matrix(split.labels, outputs.argmax(axis=-1), outputs.shape[-1])


def classification_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """The metrics of a classifier over a whole split, as scikit-learn defines them.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].

    Returns:
        Python floats by name; `loss` is the mean cross-entropy, without label smoothing and class weights.
    """
    assert len(logits) == len(labels) > 0, f"{len(logits)} rows of logits for {len(labels)} labels"
    confusion = confusion_matrix(labels, logits.argmax(axis=-1), logits.shape[-1])
    support = confusion.sum(axis=1)
    f1, occurring = class_f1(confusion)
    metrics = {
        "loss": cross_entropy(logits, labels),
        "accuracy": confusion.trace() / len(labels),
        "macro_f1": f1[occurring].mean(),
        "weighted_f1": np.average(f1[occurring], weights=support[occurring]),
        "matthews_correlation": _matthews(confusion),
    }
    return {name: float(value) for name, value in metrics.items()}


def cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """The mean over rows, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=-1))
    return float((log_total - shifted[np.arange(len(labels)), labels]).mean())


def confusion_matrix(labels: NDArray[Any], predicted: NDArray[Any], num_labels: int) -> NDArray[np.int64]:
    """Counts of rows by true label (first axis) and predicted label, [num_labels, num_labels]."""
    pairs = np.asarray(labels, dtype=np.int64) * num_labels + predicted
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def class_f1(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each class's F1, and which classes have one: a label that is neither true nor predicted of any row has none."""
    total = confusion.sum(axis=1) + confusion.sum(axis=0)
    f1: NDArray[np.float64] = 2 * confusion.diagonal() / np.maximum(total, 1)
    return f1, total > 0


def _matthews(confusion: NDArray[np.int64]) -> float:
    """Gorodkin (2004), equation 8; 0 where all rows are of one label, or are taken for one."""
    rows, correct = float(confusion.sum()), float(confusion.trace())
    support, predicted = confusion.sum(axis=1).astype(float), confusion.sum(axis=0).astype(float)
    covariance = correct * rows - support @ predicted
    variances = (rows**2 - predicted @ predicted) * (rows**2 - support @ support)
    return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0

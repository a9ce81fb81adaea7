"""Any number of labels for each text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, Hyperparameters
from rayft.data.cells import BadRow, label_of
from rayft.data.check import Table
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.labels import class_faults, class_names
from rayft.data.load import SplitName
from rayft.data.splits import Ids, Rows
from rayft.errors import Fault
from rayft.tasks.texts import TextTask

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


class MultiLabelClassification(TextTask):
    """Any number of labels for each text: a list in one column, or a column of 0 and 1 for each label."""

    name = "multi-label-classification"

    def read_label(self, cells: Sequence[Any], inputs: tuple[Any, ...], columns: Columns) -> tuple[str, ...]:
        """See `Task.read_label`; the names of the row's labels."""
        if isinstance(columns.label, str):
            if cells[0] is None:
                raise BadRow("missing labels")
            if not isinstance(cells[0], list):
                raise BadRow(f"labels must be a list, but are {str(cells[0])[:40]!r}", droppable=False)
            return tuple(dict.fromkeys(map(label_of, cells[0])))
        return tuple(name for name, cell in zip(columns.label, cells, strict=True) if _is_set(name, cell))

    def label_names(self, labels: Sequence[Any], columns: Columns) -> tuple[str, ...]:
        """See `Task.label_names`."""
        if isinstance(columns.label, str):
            return class_names(name for names in labels for name in names)
        return columns.label

    def label_faults(self, tables: Mapping[SplitName, Table], columns: Columns) -> list[Fault]:
        """See `Task.label_faults`."""
        return class_faults(tables, lambda names: names)

    def label_ids(self, labels: Sequence[Any], names: Sequence[str]) -> NDArray[np.float32]:
        """See `Task.label_ids`; 0 and 1, float32 of shape [rows, labels]."""
        ids = {name: index for index, name in enumerate(names)}
        marked = np.zeros((len(labels), len(names)), dtype=np.float32)
        for row, own in enumerate(labels):
            marked[row, [ids[name] for name in own]] = 1
        return marked

    def label_array(self, labels: NDArray[np.float32]) -> pa.Array:
        """See `TextTask.label_array`."""
        return pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1)), labels.shape[1])

    def strata(self, rows: Rows, names: Sequence[str]) -> tuple[Ids, Sequence[str] | None]:
        """See `Task.strata`: a row belongs to its rarest label, since that is the hardest to spread evenly."""
        assert isinstance(rows.labels, np.ndarray)
        rarity = np.argsort(np.argsort(-rows.labels.sum(axis=0), kind="stable"))  # higher for rarer ones
        strata = np.where(rows.labels > 0, rarity + 1, 0).max(axis=1)
        return strata.astype(np.int64), None

    def configure(self, config: "PretrainedConfig", label_names: Sequence[str], pad_token_id: int | None) -> None:
        """See `Task.configure`."""
        super().configure(config, label_names, pad_token_id)
        config.problem_type = "multi_label_classification"

    def loss_sum(self, logits: "Tensor", labels: "Tensor", hp: Hyperparameters, data: EncodedData) -> "Tensor":
        """See `Task.loss_sum`: binary cross-entropy, the mean over labels."""
        from torch.nn import functional

        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        weights = data.facts.get("class_weights")
        if weights is not None:
            loss = loss * logits.new_tensor(weights)
        return loss.mean(dim=1).sum()

    def output_size(self, data: EncodedData) -> int:
        """See `Task.output_size`."""
        return len(data.label_names)

    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """See `Task.metrics`; `accuracy` is the share of rows all of whose labels are right."""
        assert split.labels is not None, f"{split.name} has no labels"
        true, predicted = split.labels > 0, outputs > 0
        logits = outputs.astype(np.float64)
        loss = np.maximum(logits, 0) - logits * true + np.log1p(np.exp(-np.abs(logits)))
        hits, wrong = (true & predicted).sum(axis=0), (true != predicted).sum(axis=0)
        support = true.sum(axis=0)
        f1 = (
            2 * hits / np.maximum(2 * hits + wrong, 1)
        )  # 0 for a label that no row has, as scikit-learn's zero_division
        metrics = {
            "loss": loss.mean(),
            "accuracy": (true == predicted).all(axis=1).mean(),
            "micro_f1": 2 * hits.sum() / max(2 * hits.sum() + wrong.sum(), 1),
            "macro_f1": f1.mean(),
            "weighted_f1": np.average(f1, weights=support) if support.sum() else 0.0,
        }
        return {name: float(value) for name, value in metrics.items()}


def _is_set(name: str, cell: Any) -> bool:
    text = str(cell).strip().lower()
    if text in YES:
        return True
    if text in NO:
        return False
    raise BadRow(f"label column {name!r} must hold 0 or 1, but has {str(cell)[:40]!r}", droppable=False)

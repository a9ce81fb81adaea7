"""A number for each text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, DataConfig, Hyperparameters
from rayft.data.cells import number_of
from rayft.data.check import Table
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.load import SplitName
from rayft.data.splits import Ids, Rows
from rayft.errors import Fault, ModelError
from rayft.tasks.base import Preprocessor
from rayft.tasks.texts import TextTask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PretrainedConfig, PreTrainedModel

BINS = 10
"""Ranges of equally many rows, of which every split gets its share."""
ROWS_PER_BIN = 20


class Regression(TextTask):
    """A number for each text, learnt as its distance from the mean of train in standard deviations.

    So the same learning rates suit numbers of any size. Exported models give the numbers themselves: what was taken
    out goes into the last layer's weights.
    """

    name = "regression"

    def label_columns(self, columns: Columns) -> tuple[str, ...]:
        """See `Task.label_columns`."""
        return (columns.label,) if isinstance(columns.label, str) else columns.label[:1]

    def read_label(self, cells: Sequence[Any], inputs: tuple[Any, ...], columns: Columns) -> float:
        """See `Task.read_label`."""
        return number_of(cells[0])

    def label_names(self, labels: Sequence[Any], columns: Columns) -> tuple[str, ...]:
        """See `Task.label_names`: none."""
        return ()

    def label_faults(self, tables: Mapping[SplitName, Table], columns: Columns) -> list[Fault]:
        """See `Task.label_faults`."""
        if not isinstance(columns.label, str):
            return [Fault("data.columns", "task regression predicts one number, so label must be one column")]
        train = tables["train"]
        assert train.labels is not None
        if len(set(train.labels)) > 1:
            return []
        return [Fault(train.source, f"every row has the same number {train.labels[0]:g}", "data.train")]

    def label_ids(self, labels: Sequence[Any], names: Sequence[str]) -> NDArray[np.float32]:
        """See `Task.label_ids`; float32 of shape [rows]."""
        return np.array(labels, dtype=np.float32)

    def label_array(self, labels: NDArray[np.float32]) -> pa.Array:
        """See `TextTask.label_array`."""
        return pa.array(labels)

    def strata(self, rows: Rows, names: Sequence[str]) -> tuple[Ids, Sequence[str] | None]:
        """See `Task.strata`: ranges of the numbers."""
        bins = max(1, min(BINS, len(rows) // ROWS_PER_BIN))
        assert isinstance(rows.labels, np.ndarray)
        ranks = np.argsort(np.argsort(rows.labels, kind="stable"), kind="stable")
        strata: Ids = (ranks * bins // len(rows)).astype(np.int64)
        return strata, None

    def facts(self, preprocessor: Preprocessor, config: DataConfig, train: Rows) -> dict[str, Any]:
        """See `Task.facts`: the numbers' mean and standard deviation."""
        assert isinstance(train.labels, np.ndarray)
        labels = train.labels.astype(np.float64)
        return {"mean": float(labels.mean()), "deviation": float(labels.std()) or 1.0}

    def configure(self, config: "PretrainedConfig", label_names: Sequence[str], pad_token_id: int | None) -> None:
        """See `Task.configure`."""
        super().configure(config, label_names, pad_token_id)
        config.num_labels = 1
        config.problem_type = "regression"

    def check_model(self, model: "PreTrainedModel") -> None:
        """See `Task.check_model`: refuses a model whose last layer can't shift what it gives."""
        _last_layer(model)

    def loss_sum(self, logits: "Tensor", labels: "Tensor", hp: Hyperparameters, data: EncodedData) -> "Tensor":
        """See `Task.loss_sum`: the squared distance, in standard deviations of train."""
        wanted = (labels - data.facts["mean"]) / data.facts["deviation"]
        loss: Tensor = (logits.squeeze(-1) - wanted).square().sum()
        return loss

    def output_size(self, data: EncodedData) -> int:
        """See `Task.output_size`."""
        return 1

    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """See `Task.metrics`; `loss` is the squared distance in standard deviations of train."""
        assert split.labels is not None, f"{split.name} has no labels"
        mean, deviation = data.facts["mean"], data.facts["deviation"]
        true = split.labels.astype(np.float64)
        predicted = outputs[:, 0].astype(np.float64) * deviation + mean
        error = np.square(predicted - true).mean()
        metrics = {
            "loss": error / deviation**2,
            "mse": error,
            "mae": np.abs(predicted - true).mean(),
            "pearson": correlation(predicted, true),
            "spearman": correlation(ranks(predicted), ranks(true)),
        }
        return {name: float(value) for name, value in metrics.items()}

    def finish(self, model: "PreTrainedModel", data: EncodedData) -> "PreTrainedModel":
        """See `Task.finish`: lets the model give the numbers themselves."""
        import torch

        layer = _last_layer(model)
        with torch.no_grad():
            layer.weight.mul_(data.facts["deviation"])
            layer.bias.mul_(data.facts["deviation"]).add_(data.facts["mean"])
        return model


def _last_layer(model: "PreTrainedModel") -> "Linear":
    from torch import nn

    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if not found or found[-1].bias is None:
        rule = f"must end in a linear layer with a bias for task regression, which {type(model).__name__} doesn't"
        raise ModelError([Fault(model.name_or_path or "the model", rule, "model")])
    return found[-1]


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's; 0 where all values of one are the same."""
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale > 0 else 0.0


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - counts + ends - 1) / 2
    return means[inverse]

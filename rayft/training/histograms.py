"""How the values of what a trial trains are distributed, for TensorBoard."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rayft.training.results import Histogram

BINS = 30


def histograms(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> dict[str, Histogram]:
    """Of each tensor that has finite values, under `weights/NAME` and `gradients/NAME`.

    Args:
        weights: By name.
        gradients: Those of the last step, by name; None for what the step had none of.
    """
    named = {f"weights/{name}": tensor for name, tensor in weights.items()}
    named |= {f"gradients/{name}": tensor for name, tensor in gradients.items() if tensor is not None}
    found = {name: histogram(tensor) for name, tensor in named.items() if tensor.numel()}
    return {name: one for name, one in found.items() if one is not None}


def histogram(tensor: Tensor) -> Histogram | None:
    """Counts in equally wide bins from the least value to the greatest; None if there is no finite value."""
    values = tensor.detach().cpu().float().flatten()  # a GPU may have no memory to spare
    values = values[values.isfinite()]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, BINS, low, high).to(torch.int64).tolist() if low < high else [len(values)]
    total, squares = float(values.sum(dtype=torch.float64)), float(values.double().square().sum())
    return Histogram(low, high, tuple(counts), total, squares)

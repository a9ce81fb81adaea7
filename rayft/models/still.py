"""What stays as it is while the rest of a model trains: frozen layers, and the statistics of frozen batch norms."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rayft.models.layers import LayerMap


def train_above(model: nn.Module, layers: LayerMap, frozen: int) -> None:
    """Puts a model into training mode, but for its frozen layers: they drop nothing, and their statistics stay.

    Args:
        model: The model, or one around it whose blocks are not frozen.
        layers: Its layer map.
        frozen: How many of its blocks are frozen, with all before them; 0 if nothing is.
    """
    model.train()
    for path in layers.frozen_modules(frozen):
        model.get_submodule(path).eval()
    for _, norm in _batch_norms(model):
        if not norm.weight.requires_grad:
            norm.eval()


def moving_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The statistics of the batch norms that train, by name: what training changes beside parameters."""
    return {
        f"{path}.{name}": buffer
        for path, norm in _batch_norms(model)
        if norm.weight.requires_grad
        for name, buffer in norm.named_buffers(recurse=False)
    }


def has_moving_statistics(model: nn.Module) -> bool:
    """Whether a batch of one row can't be trained on, since it has no variance."""
    return next(_batch_norms(model), None) is not None


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.weight is not None:
            yield path, module

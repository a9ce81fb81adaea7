"""Copies of a model that share what they don't change."""

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def sharing_copy(model: Model) -> Model:
    """A copy whose parameters lie in the memory of the original's; its modules and buffers are its own.

    What is going to be trained has to get memory of its own, see `own_trainable`.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def own_trainable(module: nn.Module) -> None:
    """Gives each trainable parameter memory of its own, so that its training leaves other copies alone."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()

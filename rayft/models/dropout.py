"""Changing the dropout of a model that is already built."""

from torch import nn


def set_dropout(module: nn.Module, probability: float) -> None:
    """Sets every dropout of the module and its submodules, in place.

    Dropout is either a module, or a number on an attention module that reaches a functional call, such as
    `attention_dropout`. Dropout that an architecture leaves out when its config says 0 stays out.
    """
    for submodule in module.modules():
        if isinstance(submodule, nn.Dropout):
            submodule.p = probability
            continue
        for name, value in vars(submodule).items():
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(submodule, name, probability)

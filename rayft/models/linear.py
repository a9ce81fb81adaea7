"""Linear layers whose products oneDNN computes.

On x86 torch leaves products in float32 to MKL, which takes no AVX-512 on processors of other makers than its own.
oneDNN, which torch brings along and uses in bfloat16, does: its products are the same but for the order of summation,
and up to twice as fast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

NARROWEST = 64
"""Features, in and out, below which what a call costs is more than what it saves."""


def is_available() -> bool:
    """Whether this build of torch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear` without a graph, for contiguous or transposed matrices of float32 on the CPU."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return result


class OneDnnLinear(nn.Linear):
    """A linear layer that is trained and run as any other; what oneDNN isn't the faster one for goes to torch."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if input.dtype != torch.float32 or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return functional.linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return product(input.contiguous(), self.weight, self.bias)
        result: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def use_onednn(model: nn.Module) -> None:
    """Turns the linear layers of a model that are worth it into such, in place; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear and min(module.in_features, module.out_features) >= NARROWEST:
            module.__class__ = OneDnnLinear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs = inputs.contiguous()
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        # As attention leaves it, oneDNN would take it for no matrix of a layout that it knows, and be slow.
        gradient = gradient.contiguous()
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t()) if of_inputs else None,
            product(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )

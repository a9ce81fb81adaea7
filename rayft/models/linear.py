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
        if not _is_onednns(input):
            return functional.linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return product(input.contiguous(), self.weight, self.bias)
        # As one matrix: of more dimensions it would be a view made in the function, which nobody may write to.
        rows = input.reshape(-1, self.in_features)
        result: Tensor = _Linear.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result.view(*input.shape[:-1], self.out_features)


def _is_onednns(input: Tensor) -> bool:
    is_full = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_full and input.device.type == "cpu" and input.numel() > 0


def use_onednn(model: nn.Module) -> None:
    """Turns the linear layers of a model that are worth it into such, in place; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear and min(module.in_features, module.out_features) >= NARROWEST:
            module.__class__ = OneDnnLinear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = rows.contiguous()
        of_rows, of_weight, _ = ctx.needs_input_grad
        # What a frozen weight's gradient would need isn't kept for it.
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        # As attention leaves it, oneDNN would take it for no matrix of a layout that it knows, and be slow.
        gradient = gradient.contiguous()
        return (
            None if weight is None else product(gradient, weight.t()),
            None if rows is None else product(gradient.t(), rows.t()),
            gradient.sum(0) if ctx.needs_input_grad[2] else None,
        )

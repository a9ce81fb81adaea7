"""How a worker group computes: what makes training faster without changing what it computes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayft.config import Precision
from rayft.models import linear
from rayft.models.layers import LayerMap
from rayft.models.prefix_cache import PrefixCache
from rayft.training.workers import Workers

WORTHWHILE = 1.2
"""How many times faster a way to compute must be to be chosen: bfloat16 also rounds, and no measurement is exact."""
RECOMPILE_LIMIT = 256
"""Beyond its own 8, which is two values of dropout, torch gives up without a word and runs what is new uncompiled."""


@dataclass(frozen=True)
class Acceleration:
    """What the trials of one process share.

    Attributes:
        autocast: The dtype that matrix products are computed in, or None for that of the weights.
        cache: What frozen blocks gave, if it is kept.
        compiled: Whether blocks that train go through `torch.compile`.
    """

    autocast: torch.dtype | None = None
    cache: PrefixCache | None = None
    compiled: bool = False


PLAIN = Acceleration()
"""None at all."""


def choose_autocast(precision: Precision, workers: Workers) -> torch.dtype | None:
    """The dtype for `torch.autocast`, the same on all workers of a group.

    `auto` is bfloat16 where all of the group's processors gain from it. A CPU that emulates it is many times slower
    with it, and says so nowhere, so that is measured, which takes some milliseconds.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if _all_gain(_gains_from_bfloat16(workers.device), workers) else None


def choose_onednn(acceleration: Acceleration, workers: Workers) -> bool:
    """Whether float32 products are left to oneDNN, the same on all workers of a group.

    They are where all of the group's processors are faster with it, which is measured. `torch.compile` has its own.
    """
    if acceleration.autocast is not None or acceleration.compiled or workers.device.type != "cpu":
        return False
    return _all_gain(_gains_from_onednn(), workers)


def _all_gain(gains: bool, workers: Workers) -> bool:
    return int(workers.sum(torch.tensor(int(gains), device=workers.device))) == workers.world_size


def _gains_from_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere, the first with tensor cores for it
    inputs, weights = _usual_product()
    full = _fastest(functional.linear, inputs, weights)
    if linear.is_available():
        full = min(full, _fastest(linear.product, inputs, weights))
    return full > WORTHWHILE * _fastest(functional.linear, inputs.bfloat16(), weights.bfloat16())


def _gains_from_onednn() -> bool:
    if not linear.is_available():
        return False
    inputs, weights = _usual_product()
    return _fastest(functional.linear, inputs, weights) > WORTHWHILE * _fastest(linear.product, inputs, weights)


def _usual_product() -> tuple[Tensor, Tensor]:
    """A block's widest in a small encoder, for a batch of some hundred tokens."""
    return torch.ones(256, 384), torch.ones(1536, 384)


def _fastest(compute: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, weights: Tensor, times: int = 9) -> float:
    """Seconds of the fastest of some products, after one that warms up."""
    compute(inputs, weights)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        compute(inputs, weights)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def compile_blocks(model: nn.Module, layers: LayerMap, frozen: int) -> None:
    """Compiles the blocks that train, in place.

    Block by block and not as a whole, because they share their code: it is compiled for the first block of the first
    trial, and the others and all later trials of the process take what is there, but for other values of dropout and
    for LoRA, for which it is compiled anew.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for index in range(frozen, len(layers.blocks)):
        model.get_submodule(f"{layers.block_path}.{index}").compile(dynamic=True)

"""How a worker group computes: what makes training faster without changing what it computes."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayft.config import Precision
from rayft.models.layers import LayerMap
from rayft.models.prefix_cache import PrefixCache
from rayft.training.workers import Workers

WORTHWHILE = 1.2
"""How many times faster bfloat16 must be to be chosen, since it also rounds."""
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
    gains = torch.tensor(int(_gains_from_bfloat16(workers.device)), device=workers.device)
    return torch.bfloat16 if int(workers.sum(gains)) == workers.world_size else None


def _gains_from_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere, the first with tensor cores for it
    # A block's widest product in a small encoder, for a batch of some hundred tokens.
    inputs, weights = torch.ones(256, 384, device=device), torch.ones(1536, 384, device=device)
    full = _fastest(inputs, weights)
    return full > WORTHWHILE * _fastest(inputs.bfloat16(), weights.bfloat16())


def _fastest(inputs: Tensor, weights: Tensor, times: int = 5) -> float:
    """Seconds of the fastest of some products, after one that warms up."""
    functional.linear(inputs, weights)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        functional.linear(inputs, weights)
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

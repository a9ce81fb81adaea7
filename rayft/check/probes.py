"""Clocks and counters around a model that runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayft.models.layers import LayerMap
from rayft.training.workers import Workers

LONG_ENOUGH = 1.0
"""Seconds of one thing that are enough to tell how long it takes."""


@contextmanager
def block_clock(model: nn.Module, layers: LayerMap, workers: Workers) -> Iterator[list[float]]:
    """The seconds that each block takes in the one forward pass of the `with` block."""
    modules = [model.get_submodule(f"{layers.block_path}.{index}") for index in range(len(layers.blocks))]
    seconds = [0.0] * len(modules)
    started = [0.0]

    def enter(*_: Any) -> None:
        started[0] = _now(workers)

    with ExitStack() as stack:
        for index, module in enumerate(modules):

            def leave(*_: Any, index: int = index) -> None:
                seconds[index] = _now(workers) - started[0]

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield seconds


@contextmanager
def saved_bytes(base: nn.Module) -> Iterator[dict[int, int]]:
    """What is kept for the backward pass: bytes by address, parameters left out."""
    shared = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage, origin = tensor.untyped_storage(), tensor if tensor._base is None else tensor._base
        is_weight = origin.is_leaf and origin.requires_grad
        if not is_weight and storage.data_ptr() not in shared:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def timed(do: Callable[[], None], workers: Workers, most: int = 3, warm_up: bool = False) -> float:
    """Seconds of the median of some runs, fewer where one takes long."""
    if warm_up:
        do()
    seconds: list[float] = []
    while len(seconds) < most and sum(seconds) < LONG_ENOUGH:
        started = _now(workers)
        do()
        seconds.append(_now(workers) - started)
    return float(np.median(seconds))


def _now(workers: Workers) -> float:
    if workers.device.type == "cuda":
        torch.cuda.synchronize(workers.device)
    return time.perf_counter()

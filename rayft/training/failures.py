"""The ways in which a trial's training ends on its own account."""

import torch

from rayft.errors import RayftError

_EXHAUSTED = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class DivergedError(RayftError):
    """The loss or a metric is no longer a finite number."""


class MemoryExhaustedError(RayftError):
    """The trial doesn't fit into the device's memory, however small its micro-batches."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, which the CPU's allocator and cuBLAS report as a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _EXHAUSTED)

"""One trial's worker processes, as each of them sees the others."""

from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor

from rayft.pulse import Pulse


@dataclass(frozen=True)
class Workers:
    """This process among a trial's workers; with more than one, torch.distributed must be initialised.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: The number of workers.
        device: Where this worker computes.
        pulse: Shows that it does.
    """

    rank: int
    world_size: int
    device: torch.device
    pulse: Pulse = field(default_factory=Pulse, compare=False)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all workers, on each of them."""
        if self.world_size > 1:
            tensor = tensor.contiguous().clone()
            torch.distributed.all_reduce(tensor)
        return tensor

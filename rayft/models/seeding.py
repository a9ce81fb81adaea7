"""Random weights that depend on a seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU come from this seed inside, and go on as if nothing had happened outside.

    The CPU's generator alone: `torch.manual_seed` would seed every GPU too, and leave it so.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)

"""How many epochs a trial trains for under ASHA, which stops most of them early."""

import math
from bisect import insort
from collections.abc import Iterable, Iterator

import numpy as np

from rayft.config import EarlyStoppingConfig, SweepConfig

PLAYED_TRIALS = 20_000
"""Trials of sweeps that are played through, so that their mean is within a hundredth or so."""


def epochs_per_trial(config: SweepConfig) -> float:
    """How many epochs a trial trains for on average."""
    if config.early_stopping is None:
        return float(config.training.epochs)
    return expected_epochs(config.early_stopping, config.training.epochs, config.search.trials)


def expected_epochs(stopping: EarlyStoppingConfig, epochs: int, trials: int) -> float:
    """Epochs per trial under ASHA, where each trial is as good at every rung, and how good is drawn by lot.

    Sweeps are played through. There is no formula as short: as the quantile that trials are held against rises, those
    that come later to a higher rung are better than those before them, so more of them pass than one in the factor.

    Args:
        stopping: Grace and reduction factor, which give the rungs.
        epochs: The most that a trial may train.
        trials: How many there are, since the first ones at a rung are not stopped there.
    """
    trials = min(trials, PLAYED_TRIALS)
    draw = np.random.default_rng(0)
    repeats = math.ceil(PLAYED_TRIALS / trials)
    played = (_epochs_of_sweep(stopping, epochs, draw.random(trials).tolist()) for _ in range(repeats))
    return sum(played) / (repeats * trials)


def passing(values: Iterable[float], reduction_factor: int) -> Iterator[float]:
    """Those of the trials that come to a rung, one after the other, that go on.

    As Ray has it: each is held against the quantile 1 - 1 / factor of those before it, interpolated between two values.
    """
    known: list[float] = []
    for value in values:
        place = (1 - 1 / reduction_factor) * max(0, len(known) - 1)
        around = known[int(place) : int(place) + 2]
        if not around or value >= around[0] + (place - int(place)) * (around[-1] - around[0]):
            yield value
        insort(known, value)


def _epochs_of_sweep(stopping: EarlyStoppingConfig, epochs: int, values: list[float]) -> int:
    rung, reached, total = stopping.grace_epochs, 0, 0
    while rung < epochs:
        total += len(values) * (rung - reached)
        values = list(passing(values, stopping.reduction_factor))
        reached, rung = rung, rung * stopping.reduction_factor
    return total + len(values) * (epochs - reached)

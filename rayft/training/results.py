"""What an epoch of training leaves behind. Imports no torch: the processes that only pass it on have no use for it."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self


class CurvePoint(NamedTuple):
    """One point of the training curve.

    Attributes:
        step: Optimiser steps since the trial's start.
        loss: The mean over the steps since the point before.
        learning_rate: The highest of the parameter groups, at this step.
    """

    step: int
    loss: float
    learning_rate: float


class Histogram(NamedTuple):
    """How the values of a tensor are distributed.

    Attributes:
        low: The least of them.
        high: The greatest.
        counts: How many lie in each of equally wide bins between these.
        total: Their sum.
        squares: The sum of their squares.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    total: float
    squares: float


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch.

    Attributes:
        epoch: From 1.
        metrics: All validation metrics, over the whole split.
        train_loss: Mean over the epoch's steps, as trained on: with label smoothing, without penalties.
        curve: At most 50 points.
        seconds: Training and validation, without what the cache of frozen layers took to be made.
        samples_per_second: Rows trained on, over all workers, per second of training.
        padding: The fraction of the training tokens that is padding.
        confusion: Validation's counts of rows, or words, by true class and by predicted one; None without classes.
        histograms: Of weights and gradients, if these were asked for; a checkpoint doesn't keep them.
    """

    epoch: int
    metrics: dict[str, float]
    train_loss: float
    curve: tuple[CurvePoint, ...]
    seconds: float
    samples_per_second: float
    padding: float
    confusion: list[list[int]] | None = None
    histograms: dict[str, Histogram] | None = None

    def state_dict(self) -> dict[str, Any]:
        """As JSON takes it, without histograms."""
        return {name: value for name, value in asdict(replace(self, histograms=None)).items() if name != "histograms"}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state_dict`, also after JSON."""
        return cls(**{**state, "curve": tuple(CurvePoint(*point) for point in state["curve"])})

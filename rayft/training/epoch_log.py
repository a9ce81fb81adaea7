"""Gathers an epoch's result step by step."""

import math
import time

import torch
from torch import Tensor

from rayft.training.failures import DivergedError
from rayft.training.results import CurvePoint
from rayft.training.workers import Workers

MAX_CURVE_POINTS = 50


class EpochLog:
    """Collects an epoch's losses on the device and looks at them now and then, since each look waits for the GPU."""

    def __init__(self, workers: Workers, epoch: int, steps: int, finished_steps: int) -> None:
        self._workers = workers
        self._epoch = epoch
        self._step = finished_steps
        self._interval = math.ceil(steps / MAX_CURVE_POINTS)
        self._unread: list[Tensor] = []
        self._losses: list[float] = []
        self._points: list[CurvePoint] = []
        self._tokens = 0
        self._padded_tokens = 0
        self._rows = 0
        self._learning_rate = math.nan
        self._started = time.perf_counter()

    def add(self, loss: Tensor, learning_rate: float, rows: int, tokens: int, padded_tokens: int) -> None:
        """Takes one step.

        Args:
            loss: This worker's part of the global batch's mean loss, on the device.
            learning_rate: The step's.
            rows: Of the global batch.
            tokens: This worker's, without padding.
            padded_tokens: This worker's, with padding.

        Raises:
            DivergedError: A loss since the last look isn't finite; raised on all workers alike.
        """
        self._step += 1
        self._rows += rows
        self._tokens += tokens
        self._padded_tokens += padded_tokens
        self._learning_rate = learning_rate
        self._unread.append(loss)
        if len(self._unread) == self._interval:
            self._read()

    def finish(self) -> tuple[float, tuple[CurvePoint, ...], float, float]:
        """Ends the epoch's training: mean loss, curve, samples per second, padding."""
        if self._unread:
            self._read()
        seconds = time.perf_counter() - self._started
        counts = torch.tensor([self._tokens, self._padded_tokens], device=self._workers.device)
        tokens, padded_tokens = self._workers.sum(counts).tolist()
        loss = sum(self._losses) / len(self._losses)
        return loss, tuple(self._points), self._rows / seconds, 1 - tokens / padded_tokens

    def _read(self) -> None:
        losses = self._workers.sum(torch.stack(self._unread)).tolist()
        for step, loss in enumerate(losses, start=self._step - len(losses) + 1):
            if not math.isfinite(loss):
                raise DivergedError(f"train loss is {loss} at epoch {self._epoch}, step {step}")
        self._losses += losses
        self._points.append(CurvePoint(self._step, sum(losses) / len(losses), self._learning_rate))
        self._unread.clear()


def check_finite(metrics: dict[str, float], epoch: int, step: int) -> None:
    """Raises a DivergedError if a validation metric isn't finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(f"validation {name} is {value} at epoch {epoch}, step {step}")

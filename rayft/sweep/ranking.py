"""Which of two values, epochs or trials is the better one; light, since every process of a sweep asks that."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rayft.config import Mode
    from rayft.sweep.study import TrialRecord

FailureKind = Literal["out_of_memory", "diverged", "error", "stalled", "infrastructure", "storage"]
"""Why a trial can't go on. With `storage` none can: a disk is full or a store away, which is no trial's fault."""


def is_better(value: float, than: float, mode: "Mode") -> bool:
    """Whether a value of the metric beats another."""
    return value > than if mode == "max" else value < than


def best_epoch(values: dict[int, float], mode: "Mode") -> int | None:
    """The epoch of the best value, of equals the earliest; None without any."""
    best: int | None = None
    for epoch, value in sorted(values.items()):
        if best is None or is_better(value, values[best], mode):
            best = epoch
    return best


def leaders(records: "Iterable[TrialRecord]", mode: "Mode", count: int) -> "list[TrialRecord]":
    """The best trials that have a value, best first; of equals, the earlier one."""
    scored = [record for record in records if record.value is not None and record.state != "failed"]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(scored, key=lambda record: (sign * (record.value or 0.0), record.number))[:count]

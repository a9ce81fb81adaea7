"""Which of two values, epochs or trials is the better one; light, since every process of a sweep asks that."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rayft.config import Mode
    from rayft.sweep.trial_record import TrialRecord

Point = Sequence[float]
"""A value for each objective."""

FailureKind = Literal["out_of_memory", "diverged", "error", "stalled", "infrastructure", "storage"]
"""Why a trial can't go on. With `storage` none can: a disk is full or a store away, which is no trial's fault."""


def is_better(value: float, than: float, mode: "Mode") -> bool:
    """Whether a value of the metric beats another."""
    return value > than if mode == "max" else value < than


def dominates(point: Point, other: Point, modes: "Sequence[Mode]") -> bool:
    """Whether a point is no worse than another in any objective, and better in one."""
    ours, theirs = tuple(point), tuple(other)
    is_worse = any(is_better(b, a, mode) for a, b, mode in zip(ours, theirs, modes, strict=True))
    return ours != theirs and not is_worse


def best_epoch(values: dict[int, float], mode: "Mode") -> int | None:
    """The epoch of the best value, of equals the earliest; None without any."""
    best: int | None = None
    for epoch, value in sorted(values.items()):
        if best is None or is_better(value, values[best], mode):
            best = epoch
    return best


def leaders(records: "Iterable[TrialRecord]", mode: "Mode", count: int | None) -> "list[TrialRecord]":
    """The best trials that have a value, best first, all if `count` is None; of equals, the earlier one."""
    scored = [record for record in records if record.value is not None and record.state != "failed"]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(scored, key=lambda record: (sign * (record.value or 0.0), record.number))[:count]


def ranking(records: "Iterable[TrialRecord]", modes: "Sequence[Mode]") -> "list[TrialRecord]":
    """As `leaders`, but that of trials which are equal in the first objective, those lead that are better in others."""
    scored = leaders(records, modes[0], None)

    def place(record: "TrialRecord") -> tuple[float, ...]:
        signs = [-1.0 if mode == "max" else 1.0 for mode in modes]
        return (*(sign * value for sign, value in zip(signs, record.point, strict=True)), record.number)

    return sorted(scored, key=place)


def pareto_front(records: "Iterable[TrialRecord]", modes: "Sequence[Mode]") -> "list[TrialRecord]":
    """The trials that no other one dominates, the best in the first objective first; of equals, the earlier one."""
    front: list[TrialRecord] = []
    for record in ranking(records, modes):  # none of which is dominated by one that comes later
        if not any(dominates(one.point, record.point, modes) or one.point == record.point for one in front):
            front.append(record)
    return front


def search_front(records: "Iterable[TrialRecord]", modes: "Sequence[Mode]") -> "list[TrialRecord]":
    """The Pareto front of the search's trials, without those of the last stage."""
    return pareto_front((record for record in records if record.role == "search"), modes)

"""What there is on record of one trial; light, since all who look at a run take it."""

from dataclasses import dataclass, field
from typing import Literal

from rayft.config import Value

TrialState = Literal["complete", "pruned", "failed", "running"]
Role = Literal["search", "final"]


@dataclass(frozen=True)
class TrialRecord:
    """What the study holds of one trial.

    Attributes:
        number: The trial's number, from 0.
        state: How it stands; `pruned` is what ASHA or the time limit stopped.
        params: The searched hyperparameters and their values.
        value: The search metric of the best epoch, None before the first epoch.
        best_epoch: The epoch (from 1) that `value` comes from.
        epochs: Finished epochs.
        values: The search metric by epoch.
        metrics: Every validation metric of the best epoch.
        seconds: Time spent in finished epochs.
        checkpoint: The best epoch's checkpoint, relative to the run folder, if it led the sweep when it was reported;
            deleted again once three other trials are better.
        digest: That checkpoint's, as the worker that wrote it reported.
        reason: Why the trial failed or was stopped.
        role: Whether it is of the search, or of the last stage.
        final_of: In the last stage, the trial whose configuration it has; None for the untuned default.
        seed: In the last stage, what was added to the sweep's seed.
        further: The values of the objectives besides the search metric, by epoch and name; none where that is all.
    """

    number: int
    state: TrialState
    params: dict[str, Value]
    value: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    values: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    checkpoint: str | None = None
    digest: str | None = None
    reason: str | None = None
    role: Role = "search"
    final_of: int | None = None
    seed: int = 0
    further: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def point(self) -> tuple[float, ...]:
        """The value of each objective at the best epoch; nothing before the first epoch."""
        return tuple(self.objectives("").values())

    def point_at(self, epoch: int) -> tuple[float, ...]:
        """That after an epoch."""
        return (self.values[epoch], *(self.further[epoch].values() if self.further else ()))

    @property
    def measured(self) -> dict[str, float]:
        """All that was measured of the best epoch: every validation metric, and the further objectives."""
        return self.metrics | self._further

    def objectives(self, metric: str) -> dict[str, float]:
        """The same by name.

        Args:
            metric: The search metric's.
        """
        if self.value is None:
            return {}
        return {metric: self.value, **self._further}

    @property
    def _further(self) -> dict[str, float]:
        return self.further[self.best_epoch] if self.further and self.best_epoch is not None else {}

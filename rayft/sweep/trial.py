"""A trial as Ray Tune sees it: a Trainable that is kept and given one configuration after another."""

from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from rayft.sweep.protocol import Assignment, EpochDone, GroupLost, Outcome


class Trial(tune.Trainable):  # type: ignore[misc]
    """Asks the exchange for the next epoch and hands it to Tune; it trains nothing and holds nothing itself."""

    def setup(self, config: dict[str, Any], exchange: Any = None, metric: str = "", epochs: int = 0) -> None:
        """Tune's hook for a new actor."""
        self._exchange, self._metric, self._epochs = exchange, metric, epochs
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune's hook for the next trial on this actor."""
        self._slot: int = new_config["slot"]
        self._assignment: Assignment = new_config["assignment"]
        self._reported: int = new_config["reported"]
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. A result without the metric tells of a failure; ASHA leaves it alone."""
        try:
            outcome: Outcome = ray.get(self._exchange.next_epoch.remote(self._slot, self._assignment, self._reported))
        except RayActorError:
            outcome = GroupLost("the exchange was lost")
        if not isinstance(outcome, EpochDone):
            return {"outcome": outcome, "done": True}
        self._reported = outcome.result.epoch
        return {
            "outcome": outcome,
            "epoch": outcome.result.epoch,
            self._metric: outcome.result.metrics[self._metric],
            "point": outcome.point,
            "done": outcome.result.epoch >= self._epochs,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing to save: a trial's state is in its own checkpoints and in the study."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load."""

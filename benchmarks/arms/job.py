"""What an arm is given and what it gives back, as JSON files; imports nothing heavy, since arms are timed cold."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Config = dict[str, Any]
"""One configuration: learning_rate, batch_size, freeze_depth, weight_decay."""


@dataclass(frozen=True)
class Job:
    """One run of one arm.

    Attributes:
        model: Folder of the pretrained model.
        train: CSV file with the header text,label; so are the next two.
        validation: Scored after every epoch.
        test: Scored for the winner alone, where a benchmark asks for it.
        configs: What to train, in the order in which they are numbered; empty where the arm draws its own.
        epochs: The longest that one configuration trains, and the schedule's horizon.
        early_stopping: Whether ASHA stops configurations; its settings are rayft's defaults.
        seed: Of the head, the order of rows and dropout, and of what an arm draws itself.
        cores: CPU cores to use.
        work: A folder for the arm's own files, empty at first.
        max_length: Tokens per row.
        deadline: Seconds since 1970 at which the arm has to be done, or None.
        options: What only this arm reads.
    """

    model: str
    train: str
    validation: str
    configs: list[Config]
    epochs: int
    work: str
    test: str | None = None
    early_stopping: bool = False
    seed: int = 0
    cores: int = 2
    max_length: int = 64
    deadline: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the job for the arm's process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


GRACE_EPOCHS, REDUCTION_FACTOR = 1, 3
"""ASHA's settings in every arm that has it: rayft's defaults."""
WARMUP_RATIO, MAX_GRAD_NORM = 0.1, 1.0
"""rayft's defaults, which every arm trains with."""

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "batch_size": [16, 32],
    "freeze_depth": {"low": 0, "high": 6},
    "weight_decay": {"low": 1e-3, "high": 1e-1, "log": True},
}
"""What is searched where an arm draws its own configurations, written as rayft's search_space."""


def trial_result(index: int, accuracies: list[float], config: Config | None = None) -> dict[str, Any]:
    """One configuration's entry in an arm's result: its best validation accuracy, and how long it trained."""
    return {"index": index, "accuracy": max(accuracies), "epochs": len(accuracies), "config": config}


def write_result(trials: list[dict[str, Any]], finished_at: float | None = None, **more: Any) -> None:
    """Writes the arm's result to the path that it was given.

    Args:
        trials: One `trial_result` for each configuration that finished an epoch.
        finished_at: When the clock stops, if what the arm did after it is the benchmark's own book-keeping.
        more: Further entries.
    """
    result = {"trials": sorted(trials, key=lambda trial: trial["index"]), "finished_at": finished_at, **more}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def this_job() -> Job:
    """The job that the arm was started with."""
    return Job.load(Path(sys.argv[1]))

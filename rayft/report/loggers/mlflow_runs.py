"""Each trial as a run in MLflow."""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rayft.config import Value
from rayft.report.loggers.base import PROJECT, SweepFacts, of_best, of_end, of_epoch
from rayft.training.results import EpochResult

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord


class MlflowRuns:
    """Each trial as a run in MLflow; one that goes on after a resume is found by its tags."""

    def __init__(self, facts: SweepFacts) -> None:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._facts = facts
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._named_experiment()
        self._runs: dict[int, str] = {}

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Begins the trial's run, or goes on in the one that it has."""
        from mlflow.entities import Param

        if number in self._runs:
            return
        tags = {"rayft.run": self._facts.run, "rayft.trial": str(number)}
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
        else:
            tags["rayft.sweep"] = self._facts.name
            name = f"{self._facts.name}/{number}"
            run = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
        values = {**self._facts.fixed, **params}
        self._client.log_batch(run, params=[Param(name, _as_text(value)) for name, value in values.items()])
        self._runs[number] = run

    def epoch(self, number: int, result: EpochResult) -> None:
        """Logs an epoch's metrics."""
        self._log(number, of_epoch(result), result.epoch)

    def trial_ended(self, record: "TrialRecord") -> None:
        """Logs the best epoch's metrics and how the trial ended."""
        from mlflow.entities import RunTag

        self.trial_started(record.number, record.params)
        if record.best_epoch is not None:
            self._log(record.number, of_best(record), record.best_epoch)
        run = self._runs.pop(record.number)
        tags = [RunTag(f"rayft.{name}", _as_text(value)) for name, value in of_end(record).items()]
        self._client.log_batch(run, tags=tags)
        status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[record.state]
        self._client.set_terminated(run, status)

    def close(self) -> None:
        """The runs of trials that were cut off are killed until the sweep goes on."""
        while self._runs:
            self._client.set_terminated(self._runs.popitem()[1], "KILLED")

    def _log(self, number: int, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._runs[number], metrics=metrics)

    def _named_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)


def _as_text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)

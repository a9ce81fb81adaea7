"""Each trial as a run in MLflow and in Weights & Biases, which find their server and keys in the environment."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from rayft.config import LoggerName, SweepConfig, Value
from rayft.errors import ConfigError, Fault
from rayft.sweep.run_folder import ENVIRONMENT, RunFolder, first_line
from rayft.training.results import EpochResult

if TYPE_CHECKING:
    from rayft.sweep.study import TrialRecord

logger = logging.getLogger(__name__)

PROJECT = "rayft"
"""The experiment of MLflow, or the project of Weights & Biases, where the environment names none."""

LONGEST_WAIT = 30.0
"""Seconds that the end of a sweep waits for a logger to get through."""

# Ray's own callbacks for both take Tune's configuration of a trial for its parameters, and rayft's holds no more than
# the assignment that a worker group gets; hence two watchers.


class RunLogger(Protocol):
    """A `Watcher` that may raise anything and take its time, and is closed at the end."""

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""

    def epoch(self, number: int, result: EpochResult) -> None:
        """See `Watcher`."""

    def trial_ended(self, record: "TrialRecord") -> None:
        """See `Watcher`."""

    def close(self) -> None:
        """Leaves the trials that still run so that they can go on later."""


@dataclass(frozen=True)
class SweepFacts:
    """What the runs of a sweep have in common.

    Attributes:
        name: The sweep's, as people know it.
        run: Its own name among all runs of that name.
        fixed: The strategy and the model, for trials that search neither.
    """

    name: str
    run: str
    fixed: Mapping[str, Value]

    @classmethod
    def of(cls, run: RunFolder, config: SweepConfig) -> "SweepFacts":
        """Those of a sweep.

        Raises:
            RunError: The run's file of its environment is gone.
            OSError: Remote storage, which has it, can't be reached.
        """
        run.obtain(ENVIRONMENT)
        fixed = {"strategy": config.training.strategy, "model": config.models[0]}
        return cls(run.path.name, run.study_name, fixed)


def _of_epoch(result: EpochResult) -> dict[str, float]:
    values = {f"validation/{name}": value for name, value in result.metrics.items()}
    return values | {"train/loss": result.train_loss, "train/samples_per_second": result.samples_per_second}


def _best(record: "TrialRecord") -> dict[str, float]:
    return {f"best/{name}": value for name, value in record.measured.items()}


def _of_end(record: "TrialRecord") -> dict[str, Value]:
    ended: dict[str, Value] = {"state": record.state, "role": record.role}
    return ended | ({"final_of": record.final_of, "seed": record.seed} if record.role == "final" else {})


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
        self._log(number, _of_epoch(result), result.epoch)

    def trial_ended(self, record: "TrialRecord") -> None:
        """Logs the best epoch's metrics and how the trial ended."""
        from mlflow.entities import RunTag

        self.trial_started(record.number, record.params)
        if record.best_epoch is not None:
            self._log(record.number, _best(record), record.best_epoch)
        run = self._runs.pop(record.number)
        tags = [RunTag(f"rayft.{name}", _as_text(value)) for name, value in _of_end(record).items()]
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


class WandbRuns:
    """Each trial as a run in Weights & Biases; one that goes on after a resume has the same id."""

    def __init__(self, facts: SweepFacts) -> None:
        import wandb

        # Silence is also what keeps it from asking for a key, in the middle of the progress view.
        wandb.setup(wandb.Settings(silent=True))
        # What it measures of the process and reads of its code would be the driver's, and the same for all trials.
        own = {"console": "off", "x_disable_stats": True, "disable_git": True, "disable_code": True}
        # Without a limit the program's end, too, waits for a server that is away.
        limits = {"init_timeout": LONGEST_WAIT, "finish_timeout": LONGEST_WAIT / 2, "finish_timeout_raises": True}
        self._settings = wandb.Settings(silent=True, **own, **limits)
        self._facts = facts
        self._runs: dict[int, Any] = {}

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Begins the trial's run, or goes on in the one that it has."""
        import wandb

        if number in self._runs:
            return
        self._runs[number] = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=self._facts.name,
            name=f"{self._facts.name}/{number}",
            id=f"{self._facts.run}-{number}",
            resume="allow",
            reinit="create_new",
            config={"sweep": self._facts.name, "trial": number, **self._facts.fixed, **params},
            settings=self._settings,
        )

    def epoch(self, number: int, result: EpochResult) -> None:
        """Logs an epoch's metrics."""
        self._runs[number].log(_of_epoch(result), step=result.epoch)

    def trial_ended(self, record: "TrialRecord") -> None:
        """Logs the best epoch's metrics and how the trial ended."""
        self.trial_started(record.number, record.params)
        run = self._runs.pop(record.number)
        run.summary.update({**_of_end(record), **_best(record)})
        run.finish(exit_code=int(record.state == "failed"))

    def close(self) -> None:
        """Ends the runs of trials that were cut off; their ids take them up again."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)


LOGGERS: Mapping[LoggerName, Callable[[SweepFacts], RunLogger]] = {"mlflow": MlflowRuns, "wandb": WandbRuns}


class Aside:
    """A watcher that passes all on to a logger in a thread of its own, so that no server makes the sweep wait.

    The first exception ends the logging, and nothing else.
    """

    def __init__(self, name: str, make: Callable[[], RunLogger], note: Callable[[str], None]) -> None:
        """Starts the thread.

        Args:
            name: The logger's.
            make: Makes the logger, in the thread.
            note: Tells the user that it failed.
        """
        self._name, self._make, self._note = name, make, note
        self._failed = False
        self._calls: SimpleQueue[Callable[[RunLogger], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"logging to {name}", daemon=True)
        self._thread.start()

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        self._pass_on(lambda to: to.trial_started(number, params))

    def epoch(self, number: int, result: EpochResult) -> None:
        """See `Watcher`."""
        self._pass_on(lambda to: to.epoch(number, result))

    def trial_ended(self, record: "TrialRecord") -> None:
        """See `Watcher`."""
        self._pass_on(lambda to: to.trial_ended(record))

    def close(self) -> None:
        """Waits until all is logged, but not for long."""
        self._calls.put(None)
        self._thread.join(LONGEST_WAIT)
        if self._thread.is_alive():
            self._give_up(f"isn't through after {LONGEST_WAIT:.0f} s")

    def _pass_on(self, call: Callable[[RunLogger], None]) -> None:
        if not self._failed:
            self._calls.put(call)

    def _work(self) -> None:
        try:
            to = self._make()
            while (call := self._calls.get()) is not None:
                call(to)
            to.close()
        except Exception as error:  # anything that a client, a server or a network may do
            self._give_up(f"failed ({type(error).__name__}: {_without_credentials(first_line(error))})")

    def _give_up(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        text = f"logging to {self._name} {reason}; the sweep goes on without it"
        logger.warning("%s", text)
        self._note(text)


@contextmanager
def trial_loggers(run: RunFolder, config: SweepConfig, note: Callable[[str], None]) -> Iterator[tuple[Aside, ...]]:
    """A watcher for each of `logging`, closed after the block.

    Args:
        run: The run folder.
        config: Its sweep.
        note: Shows the user something that they should read.
    """
    with ExitStack() as stack:
        watchers = []
        for name in config.logging:
            make = LOGGERS[name]
            watchers.append(Aside(name, lambda make=make: make(SweepFacts.of(run, config)), note))  # type: ignore[misc]
            stack.callback(watchers[-1].close)
        yield tuple(watchers)


def check_installed(config: SweepConfig, where: str) -> None:
    """Sees to it that there is a package for each of `logging`.

    Args:
        config: The sweep.
        where: The file that a fault is in.

    Raises:
        ConfigError: There isn't.
    """
    missing = [name for name in config.logging if not _is_installed(name)]
    if missing:
        rules = [f"{name} isn't installed; pip install 'rayft[{name}]'" for name in missing]
        raise ConfigError([Fault(where, rule, "logging") for rule in rules])


def _is_installed(package: str) -> bool:
    # Each leaves a folder of its own name where it runs, and Python takes a folder for a package without a file.
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _as_text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _without_credentials(text: str) -> str:
    """An error's text without the user and password that a server's address may hold: it goes to the log file."""
    return re.sub(r"://\S*@", "://", text)

"""What the parts of a sweep say to each other."""

from dataclasses import dataclass

from rayft.config import Hyperparameters, Mode, ObjectiveName, Precision
from rayft.sweep.ranking import FailureKind
from rayft.training.results import EpochResult


@dataclass(frozen=True)
class GroupSpec:
    """What a worker group needs to know once, for every trial that it will train.

    Attributes:
        encoded: Where the run folder has the rows for each model, Hub id or local folder.
        run: The run folder.
        epochs: The longest that a trial may train.
        seed: The sweep's seed.
        threads: CPU threads per worker.
        metric: The search metric, whose best epoch's checkpoint is kept.
        mode: Whether less or more of it is better.
        objectives: All that is searched for, of which that metric is the first.
        precision: What to compute in.
        cache_bytes: The most that the cache of frozen layers takes of a node's disk; 0 if there is to be none.
        compiled: Whether layers that train are compiled.
        stall_seconds: The longest that a worker may compute no batch.
        histograms: Whether epochs come with histograms of weights and gradients.
    """

    encoded: dict[str, str]
    run: str
    epochs: int
    seed: int
    threads: int
    metric: str
    mode: Mode
    objectives: tuple[ObjectiveName, ...]
    precision: Precision
    cache_bytes: int
    compiled: bool
    stall_seconds: float
    histograms: bool


@dataclass(frozen=True)
class Assignment:
    """A trial to train.

    Attributes:
        trial: Its number.
        model: What it fine-tunes.
        hyperparameters: What it trains with.
        seed: Added to the sweep's seed.
        keeps: Whether its best epoch's checkpoint is kept, whoever leads.
        latency_ms: What the exported model takes for a row, where that is searched for.
    """

    trial: int
    model: str
    hyperparameters: Hyperparameters
    seed: int = 0
    keeps: bool = False
    latency_ms: float | None = None


@dataclass(frozen=True)
class Command:
    """To a worker: report the epoch that follows `reported`, training it if need be.

    The one command there is. Whether it starts a trial, goes on with it or takes it up again after a failure is for the
    worker to see from what it holds and what lies on disk, so that sending it twice does no harm.
    """

    assignment: Assignment
    reported: int
    micro_batch: int | None = None


@dataclass(frozen=True)
class EpochDone:
    """One epoch of a trial.

    Attributes:
        result: What it gave.
        point: The value of each objective.
        digest: Of the epoch's checkpoint, which an epoch that leads the sweep has: what is on record can be exported.
        notes: What the worker has to say in the sweep's log, once each.
    """

    result: EpochResult
    point: tuple[float, ...]
    digest: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialFailed:
    """The trial can't go on; the group can.

    Attributes:
        kind: What kind of failure.
        reason: One line for the user.
        detail: The traceback, for the log.
        restarts: Whether the group's workers end with it and are started again.
    """

    kind: FailureKind
    reason: str
    detail: str = ""
    restarts: bool = False


@dataclass(frozen=True)
class GroupLost:
    """The worker group can't be started, so that its trial has to go on elsewhere."""

    reason: str


@dataclass(frozen=True)
class Interrupted:
    """The sweep is ending before the epoch is done."""


Outcome = EpochDone | TrialFailed | GroupLost | Interrupted

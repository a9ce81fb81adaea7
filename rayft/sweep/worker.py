"""The loop that a worker of a group runs: trial after trial in one process, on one loaded model and one set of data."""

import gc
import logging
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import psutil
import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from rayft.config_tasks import LATENCY, TRAIN_SECONDS
from rayft.errors import CheckpointError, RayftError
from rayft.sweep.loaded_model import LoadedModels
from rayft.sweep.protocol import Assignment, Command, EpochDone, GroupSpec, TrialFailed
from rayft.sweep.ranking import FailureKind
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.trial_checkpoints import TrialCheckpoints
from rayft.sweep.watchdog import Watchdog
from rayft.training.failures import DivergedError, MemoryExhaustedError, is_out_of_memory
from rayft.training.loop import FineTuning
from rayft.training.results import EpochResult
from rayft.training.workers import Workers

logger = logging.getLogger(__name__)

STALL_REPORT_SECONDS = 10.0


def worker_loop(config: dict[str, Any]) -> None:
    """Ray Train's train function: fetches commands from the exchange and reports to it, until it is told to end."""
    exchange, slot = config["exchange"], config["slot"]
    spec: GroupSpec = config["spec"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    # Every start of a group has a placement group of its own, which all of its workers share.
    generation = ray.get_runtime_context().get_placement_group_id()
    workers = Workers(rank, context.get_world_size(), ray.train.torch.get_device())
    torch.set_num_threads(spec.threads)
    ray.get(exchange.join.remote(slot, rank, generation))
    # The driver encodes the data while groups start; from the first command on it is there.
    command = ray.get(exchange.next_command.remote(slot, rank))
    if command is None:
        return
    try:
        group = TrialWorker(spec, workers, command.assignment.model)
    except RayftError as error:  # it would be the same again
        ray.get(exchange.lose.remote(slot, str(error)))
        return
    ray.get(exchange.ready.remote(slot))
    with group:
        _serve(command, group, exchange, slot, generation)


def _serve(first: Command, group: "TrialWorker", exchange: Any, slot: int, generation: str) -> None:
    """Carries out commands until there are no more, or the group has to start anew."""
    workers = group.workers
    command: Command | None = first
    watchdog = Watchdog(workers.pulse, group.stall_seconds)
    while command is not None:
        trial = command.assignment.trial

        def report_stall(stacks: str, trial: int = trial) -> None:
            limit = f"no batch in {group.stall_seconds:g} s (cluster.stall_timeout); rayft.log has the stacks"
            failure = TrialFailed("stalled", f"worker {workers.rank} stood still: {limit}", stacks, restarts=True)
            ray.get(exchange.fail.remote(slot, trial, failure, generation), timeout=STALL_REPORT_SECONDS)

        if group.must_be_recycled(trial):
            ray.get(exchange.recycle.remote(slot, generation))
            return
        try:
            with watchdog.watching(report_stall):
                _carry_out(command, group, exchange, slot)
        except RayError:
            raise
        except Exception as error:  # whatever it is, it must end this trial and not the group, nor the sweep
            failure = describe(error, workers)
            micro_batch = group.micro_batch or 1
            group.forget()
            if failure.restarts and isinstance(error, MemoryExhaustedError) and micro_batch > 1:
                ray.get(exchange.shrink.remote(slot, trial, micro_batch // 2, generation))
            else:
                ray.get(exchange.fail.remote(slot, trial, failure, generation))
            if failure.restarts:
                raise
        command = ray.get(exchange.next_command.remote(slot, workers.rank))


def _carry_out(command: Command, group: "TrialWorker", exchange: Any, slot: int) -> None:
    """Trains or looks up the epoch that is asked for, and reports it."""
    trial, is_writer = command.assignment.trial, group.workers.rank == 0
    if is_writer:
        group.save_last(trial)  # it goes on, so its last epoch is what a restart takes up
    result = group.epoch_after(command)
    if is_writer:
        point = group.point(command.assignment, result)
        leads = command.assignment.keeps or ray.get(exchange.is_leading.remote(trial, result.epoch, point))
        digest = group.checkpoint_digest(result.epoch) if leads else None
        done = EpochDone(result, point, digest, group.notes.take())
        ray.get(exchange.report.remote(slot, trial, done))


def describe(error: Exception, workers: Workers) -> TrialFailed:
    """An exception as the study and the log get it."""
    # Other workers may be waiting for this one in a collective, and a CUDA context may be beyond use: a new start of
    # the group is the one way out of either. Divergence is seen by all workers alike.
    alone = workers.world_size == 1 or isinstance(error, DivergedError)
    restarts = not alone or _is_accelerator_fault(error)
    kind: FailureKind = "error"
    if isinstance(error, OSError):
        kind = "storage"
    elif isinstance(error, DivergedError):
        kind = "diverged"
    elif isinstance(error, MemoryExhaustedError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        kind = "out_of_memory"
    reason = f"{type(error).__name__}: {error}" if kind in ("error", "storage") else str(error)
    return TrialFailed(kind, reason.splitlines()[0], traceback.format_exc(), restarts)


def _is_accelerator_fault(error: Exception) -> bool:
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


class Notes(logging.Handler):
    """Keeps what rayft logs in this process, each message once, until it can be sent to the sweep's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: set[str] = set()
        self._unsent: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record, as logging calls it."""
        message = record.getMessage()
        if message not in self._seen:
            self._seen.add(message)
            self._unsent.append(message)

    def take(self) -> tuple[str, ...]:
        """The messages since the last call."""
        notes, self._unsent = tuple(self._unsent), []
        return notes


class TrialWorker:
    """What one process of a group holds from trial to trial.

    Args:
        spec: The group's.
        workers: This process among the group's.
        model: What its first trial fine-tunes.
    """

    def __init__(self, spec: GroupSpec, workers: Workers, model: str) -> None:
        self.workers = workers
        self.notes = Notes()
        package = logging.getLogger("rayft")
        package.setLevel(logging.INFO)
        package.addHandler(self.notes)
        self.stall_seconds = spec.stall_seconds
        self._spec = spec
        self._run = RunFolder.at(spec.run)
        self._models = LoadedModels(spec, workers)
        self._models.get(model)
        self._trial: int | None = None
        self._tuning: FineTuning | None = None
        self._checkpoints: TrialCheckpoints | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._first_memory: int | None = None
        gc.collect()
        gc.freeze()  # what is here stays: `forget` need not look through a million objects of torch's for each trial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()  # once all is written

    @property
    def micro_batch(self) -> int | None:
        """Rows per forward pass of the current trial."""
        return self._tuning.micro_batch if self._tuning else None

    def epoch_after(self, command: Command) -> EpochResult:
        """The epoch after `command.reported`: trained now, or taken from what the trial has done already."""
        if self._tuning is None or self._trial != command.assignment.trial:
            self._start(command.assignment, command.micro_batch)
        assert self._tuning is not None
        while self._tuning.epoch <= command.reported:
            self._tuning.train_epoch()
        return self._tuning.history[command.reported]

    def point(self, assignment: Assignment, result: EpochResult) -> tuple[float, ...]:
        """The value of each of the sweep's objectives after an epoch of the current trial."""
        assert self._tuning is not None, "an epoch was trained"
        seconds = sum(earlier.seconds for earlier in self._tuning.history[: result.epoch])
        known = {TRAIN_SECONDS: seconds, LATENCY: assignment.latency_ms, **result.metrics}
        values = [known[name] for name in self._spec.objectives]
        assert all(value is not None for value in values), f"{self._spec.objectives}: {values}"
        return tuple(float(value) for value in values if value is not None)

    def save_last(self, trial: int) -> None:
        """Takes a checkpoint of the last epoch, if the trial is the current one."""
        if self._trial == trial and self._tuning is not None and self._checkpoints is not None:
            self._checkpoints.save(self._tuning)

    def checkpoint_digest(self, epoch: int) -> str | None:
        """The digest of an epoch's checkpoint, which is taken now if it is the last epoch's; None if it is gone.

        It is on disk then: what is on record can be exported, whatever dies next.
        """
        assert self._tuning is not None and self._checkpoints is not None, "an epoch was trained"
        if self._tuning.epoch == epoch:
            self._checkpoints.save(self._tuning)
        self._checkpoints.wait()
        return self._checkpoints.digests.get(epoch)

    def must_be_recycled(self, trial: int) -> bool:
        """Whether a worker of the group leaks, as its next trial begins; the same on all workers."""
        if trial == self._trial or self._first_memory is None:
            return False
        self.forget()
        held, node = psutil.Process().memory_info().rss, psutil.virtual_memory()
        leaks = has_leaked(self._first_memory, held, node.available, node.total)
        if leaks:
            logger.warning("a worker holds %d MB between trials, %d MB after its first", held, self._first_memory)
        return bool(self.workers.sum(torch.tensor(int(leaks), device=self.workers.device)))

    def forget(self) -> None:
        """Drops the current trial and what it holds in memory."""
        trained = self._tuning is not None
        self._trial, self._tuning, self._checkpoints = None, None, None
        gc.collect()  # hooks and DDP hold their module in cycles, which would keep its memory into the next trial
        if self.workers.device.type == "cuda":
            torch.cuda.empty_cache()
        if trained and self._first_memory is None:
            self._first_memory = psutil.Process().memory_info().rss

    def _start(self, assignment: Assignment, micro_batch: int | None) -> None:
        if self._checkpoints is not None:
            self._checkpoints.leave()
        self.forget()
        loaded = self._models.get(assignment.model)
        tuning = FineTuning(
            loaded.base,
            loaded.layers,
            loaded.data,
            assignment.hyperparameters,
            epochs=self._spec.epochs,
            seed=self._spec.seed + assignment.seed,
            head=self._models.head(assignment.model, assignment.seed) if assignment.seed else None,
            workers=self.workers,
            micro_batch=micro_batch,
            acceleration=loaded.acceleration,
            histograms=self._spec.histograms and self.workers.rank == 0,
        )
        trial, spec = assignment.trial, self._spec
        checkpoints = TrialCheckpoints(self._run, trial, spec.metric, spec.mode, self._writer)
        if epoch := self._agreed(max(checkpoints.digests, default=0)):
            if epoch not in checkpoints.digests:
                raise CheckpointError(f"trial {trial}'s checkpoint of epoch {epoch} is not to be found on this node")
            tuning.resume(self._run.checkpoint(trial, epoch))
            logger.info("trial %d goes on from epoch %d", trial, tuning.epoch)
        self._trial, self._tuning, self._checkpoints = trial, tuning, checkpoints

    def _agreed(self, epoch: int) -> int:
        """What the first worker says; others may see an older state of a shared folder."""
        own = epoch if self.workers.rank == 0 else 0
        return int(self.workers.sum(torch.tensor(own, device=self.workers.device)))


def has_leaked(first: int, held: int, available: int, total: int) -> bool:
    """Whether a worker is worth starting anew, for which it must have grown and its node be short of memory.

    Growth alone is none: the allocator keeps what the largest trial took, for the next one.

    Args:
        first: Bytes that the worker held after its first trial.
        held: What it holds now.
        available: What the node has left.
        total: What the node has.
    """
    return held > 2 * first and available < total / 10

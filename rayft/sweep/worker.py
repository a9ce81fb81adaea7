"""The loop that a worker of a group runs: trial after trial in one process, on one loaded model and one set of data."""

import gc
import logging
import shutil
import traceback
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from rayft.data.encode import EncodedData
from rayft.errors import RayftError
from rayft.models.layers import map_layers
from rayft.models.load import load_model
from rayft.sweep.protocol import Assignment, Command, EpochDone, GroupSpec, TrialFailed
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import FailureKind, best_epoch
from rayft.training.checkpoint import finished_checkpoints
from rayft.training.failures import DivergedError, MemoryExhaustedError, is_out_of_memory
from rayft.training.loop import FineTuning
from rayft.training.results import EpochResult
from rayft.training.workers import Workers

logger = logging.getLogger(__name__)


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
    try:
        group = TrialWorker(spec, workers)
    except RayftError as error:  # it would be the same again
        ray.get(exchange.lose.remote(slot, str(error)))
        return
    ray.get(exchange.join.remote(slot, rank, generation))
    while (command := ray.get(exchange.next_command.remote(slot, rank))) is not None:
        trial = command.assignment.trial
        try:
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


def _carry_out(command: Command, group: "TrialWorker", exchange: Any, slot: int) -> None:
    """Trains or looks up the epoch that is asked for, and reports it."""
    trial, is_writer = command.assignment.trial, group.workers.rank == 0
    if is_writer:
        group.save_last(trial)  # it goes on, so its last epoch is what a restart takes up
    result = group.epoch_after(command)
    if is_writer:
        value = result.metrics[group.metric]
        leads = ray.get(exchange.is_leading.remote(trial, result.epoch, value))
        done = EpochDone(result, group.checkpoint_digest(result.epoch) if leads else None)
        ray.get(exchange.report.remote(slot, trial, done))


def describe(error: Exception, workers: Workers) -> TrialFailed:
    """An exception as the study and the log get it."""
    # Other workers may be waiting for this one in a collective, and a CUDA context may be beyond use: a new start of
    # the group is the one way out of either. Divergence is seen by all workers alike.
    alone = workers.world_size == 1 or isinstance(error, DivergedError)
    restarts = not alone or _is_accelerator_fault(error)
    kind: FailureKind = "error"
    if isinstance(error, DivergedError):
        kind = "diverged"
    elif isinstance(error, MemoryExhaustedError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        kind = "out_of_memory"
    reason = str(error) if kind != "error" else f"{type(error).__name__}: {error}"
    return TrialFailed(kind, reason.splitlines()[0], traceback.format_exc(), restarts)


def _is_accelerator_fault(error: Exception) -> bool:
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


class TrialWorker:
    """What one process of a group holds from trial to trial.

    Args:
        spec: The group's.
        workers: This process among the group's.
    """

    def __init__(self, spec: GroupSpec, workers: Workers) -> None:
        self.workers = workers
        self.metric = spec.metric
        self._spec = spec
        self._run = RunFolder(Path(spec.run))
        self._base = load_model(spec.model, spec.label_names, spec.pad_token_id, spec.seed)
        self._layers = map_layers(self._base)
        self._data: EncodedData | None = None
        self._trial: int | None = None
        self._tuning: FineTuning | None = None
        self._saved: dict[int, str] = {}

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

    def save_last(self, trial: int) -> None:
        """Writes a checkpoint of the trial's last epoch, unless there is one, and deletes those it makes needless."""
        tuning = self._tuning
        if tuning is None or self._trial != trial or tuning.epoch == 0 or tuning.epoch in self._saved:
            return
        self._saved[tuning.epoch] = tuning.save(self._run.checkpoint(trial, tuning.epoch))
        values = {result.epoch: result.metrics[self.metric] for result in tuning.history}
        needed = {tuning.epoch, best_epoch(values, self._spec.mode)}
        for epoch in self._saved.keys() - needed:
            del self._saved[epoch]
            shutil.rmtree(self._run.checkpoint(trial, epoch), ignore_errors=True)

    def checkpoint_digest(self, epoch: int) -> str | None:
        """The digest of an epoch's checkpoint, which is written now if it is the last epoch's; None if it is gone."""
        if self._trial is not None and self._tuning is not None and self._tuning.epoch == epoch:
            self.save_last(self._trial)
        return self._saved.get(epoch)

    def forget(self) -> None:
        """Drops the current trial and what it holds in memory."""
        self._trial, self._tuning, self._saved = None, None, {}
        gc.collect()  # hooks and DDP hold their module in cycles, which would keep its memory into the next trial
        if self.workers.device.type == "cuda":
            torch.cuda.empty_cache()

    def _start(self, assignment: Assignment, micro_batch: int | None) -> None:
        self.forget()
        if self._data is None:  # the driver encodes while groups start, so it isn't there any earlier
            self._data = EncodedData.open(self._run.encoded)
        tuning = FineTuning(
            self._base,
            self._layers,
            self._data,
            assignment.hyperparameters,
            epochs=self._spec.epochs,
            seed=self._spec.seed,
            pad_token_id=self._spec.pad_token_id,
            workers=self.workers,
            micro_batch=micro_batch,
        )
        self._saved = finished_checkpoints(self._run.trial(assignment.trial))
        if self._saved:
            tuning.resume(self._run.checkpoint(assignment.trial, max(self._saved)))
            logger.info("trial %d goes on from epoch %d", assignment.trial, tuning.epoch)
        self._trial, self._tuning = assignment.trial, tuning

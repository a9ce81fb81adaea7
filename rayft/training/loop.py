"""One trial's fine-tuning: the train loop, validation, and saving and resuming between epochs."""

import logging
import random
import time
from collections.abc import Iterator, Mapping
from itertools import cycle, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayft.config import STRATEGY_HYPERPARAMETERS, Hyperparameters
from rayft.data.batches import train_batches
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.errors import CheckpointError
from rayft.models.compact_embedding import compact_embedding
from rayft.models.layers import LayerMap
from rayft.models.sharing import own_trainable, sharing_copy
from rayft.models.still import has_moving_statistics, moving_statistics, train_above
from rayft.strategies import get_strategy
from rayft.strategies.base import with_freeze_depth
from rayft.tasks import get_task
from rayft.training.acceleration import PLAIN, Acceleration, compile_blocks
from rayft.training.checkpoint import PackedCheckpoint, TrialState, read_checkpoint
from rayft.training.epoch_log import EpochLog, check_finite
from rayft.training.evaluation import predict
from rayft.training.forward import Forward
from rayft.training.gradients import BatchGradients, BatchPass, GlobalBatch
from rayft.training.histograms import histograms
from rayft.training.optim import (
    StartingPoint,
    build_lr_scheduler,
    build_optimizer,
    clip_gradients,
    pack_optimizer,
    unpack_optimizer,
)
from rayft.training.results import EpochResult, Histogram
from rayft.training.workers import Workers

logger = logging.getLogger(__name__)

OPTIMIZER_PREFIX = "optimizer/"
ADVERSARY_PREFIX = "adversary/"
MAX_CLASSES_SHOWN = 50
"""Of more classes there is no confusion matrix in an epoch's result: it grows with their square."""


class FineTuning:
    """One trial in this process: a copy of the base model on its way to the fine-tuned one.

    What it computes is a function of its arguments alone, so that a process which has trained other trials before gives
    the same result as a new one.

    Args:
        base: The pretrained model with its new head, on the workers' device; its weights are left as they are.
        layers: Its layer map.
        data: The encoded splits.
        hp: What to train with.
        epochs: The horizon of the learning rate schedule.
        seed: Of the order of rows, of dropout, and of new parameters.
        head: Other values for parameters of the head, by name; the base model's own if None.
        workers: This process among the trial's.
        micro_batch: At most so many rows per pass and worker; from the batch size if None.
        acceleration: How to compute.
        histograms: Whether each epoch's result has those of weights and gradients.

    Attributes:
        history: The result of each finished epoch.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        layers: LayerMap,
        data: EncodedData,
        hp: Hyperparameters,
        *,
        epochs: int,
        seed: int,
        head: Mapping[str, Tensor] | None = None,
        workers: Workers,
        micro_batch: int | None = None,
        acceleration: Acceleration = PLAIN,
        histograms: bool = False,
    ) -> None:
        self.history: list[EpochResult] = []
        hp = with_freeze_depth(hp, layers)
        self._data, self._hp, self._workers = data, hp, workers
        self._task, self._layers = get_task(data.task), layers
        self._least_rows = 2 * workers.world_size if has_moving_statistics(base) else 1
        self._epochs, self._seed, self._acceleration = epochs, seed, acceleration
        self._has_histograms = histograms
        self._finished_steps = 0
        self._total_steps = epochs * len(self._train_batches(epoch=1))

        seed_generators(seed, epoch=0, rank=0)  # new parameters must be the same on all workers
        self._strategy = strategy = get_strategy(hp.strategy)
        own = sharing_copy(base)
        for name, values in (head or {}).items():
            own.get_parameter(name).data = values.clone()
        self._model = strategy.prepare(own, layers, hp).to(workers.device)
        l2_sp = hp.l2_sp if "l2_sp" in STRATEGY_HYPERPARAMETERS[hp.strategy] else 0.0
        # L2-SP has a gradient for every row of the embeddings, so none can be left out.
        compacts = data.train.has_tokens and not l2_sp
        self._embedding = compact_embedding(self._model, self._looked_up()) if compacts else None
        own_trainable(self._model)
        self._adversary = strategy.adversary(self._model, len(data.label_names), hp, workers.device, seed)
        self._trainable = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        pretrained = strategy.pretrained_names(self._model, layers)
        self._starting_point = StartingPoint([self._trainable[name] for name in sorted(pretrained)], l2_sp)
        self._optimizer = build_optimizer(self._model, strategy.rate_factors(self._model, layers, hp), hp)
        self._lr_scheduler = build_lr_scheduler(self._optimizer, hp, self._total_steps)
        self._frozen = strategy.frozen_blocks(hp)
        if acceleration.compiled:
            compile_blocks(self._model, layers, self._frozen)
        self._forward = Forward(self._model, layers, self._frozen, data, hp, workers, acceleration)
        share = -(-hp.batch_size // workers.world_size)
        micro_batch = min(micro_batch or share, share)
        self._gradients = BatchGradients(self._forward, data, hp, workers, self._adversary, micro_batch)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def _precision(self) -> str:
        return "fp32" if self._acceleration.autocast is None else "bf16"

    @property
    def micro_batch(self) -> int:
        """Rows per pass and worker; lower than at first if memory ran out."""
        return self._gradients.micro_batch

    def train_epoch(self) -> EpochResult:
        """One pass over the training rows, then validation.

        Raises:
            DivergedError: The loss or a metric isn't finite. The trial can't go on.
            MemoryExhaustedError: Not even one row per pass fits into memory. The trial can't go on.
        """
        epoch = self.epoch + 1
        assert epoch <= self._epochs, f"epoch {epoch} of {self._epochs}"
        seed_generators(self._seed, epoch, self._workers.rank)
        unlabeled = self._data.unlabeled if self._adversary else None
        self._forward.look_up(self._data.train, self._data.validation, unlabeled)
        started = time.perf_counter()  # what is looked up may have to be computed first, once for all trials of a node
        train_above(self._model, self._layers, self._frozen)
        log = EpochLog(self._workers, epoch, self._total_steps // self._epochs, self._finished_steps)
        for batch in self._global_batches(epoch):
            learning_rate = float(max(self._lr_scheduler.get_last_lr()))
            result = self._step(batch)
            log.add(result.loss, learning_rate, len(batch.train), result.tokens, result.padded_tokens)
        train_loss, curve, samples_per_second, padding = log.finish()
        outputs = predict(self._forward, self._data.validation, self._data, self._workers)
        metrics = self._metrics(outputs, self._data.validation)
        check_finite(metrics, epoch, self._finished_steps)
        confusion = self._task.confusion(outputs, self._data.validation, self._data)
        counts = None if confusion is None or len(confusion) > MAX_CLASSES_SHOWN else confusion.tolist()
        seconds = time.perf_counter() - started
        rate, drawn = samples_per_second, self._histograms() if self._has_histograms else None
        self.history.append(EpochResult(epoch, metrics, train_loss, curve, seconds, rate, padding, counts, drawn))
        return self.history[-1]

    def try_step(self, batch: GlobalBatch) -> None:
        """One optimiser step out of turn, which tells what a step costs; the trial is of no further use."""
        train_above(self._model, self._layers, self._frozen)
        self._step(batch)

    def evaluate(self, split: EncodedSplit) -> dict[str, float]:
        """All metrics over a whole labelled split, the same on every worker."""
        return self._metrics(predict(self._forward, split, self._data, self._workers), split)

    def pack(self) -> PackedCheckpoint:
        """A checkpoint, ready to be written; to be called on rank 0 alone, whose state is that of all workers."""
        assert self._workers.rank == 0, "a trial has one writer"
        optimizer: dict[str, Tensor] = {}
        if self.epoch < self._epochs:  # after the last epoch nobody goes on from here
            optimizer |= {f"{OPTIMIZER_PREFIX}{k}": v for k, v in pack_optimizer(self._optimizer, self._model).items()}
            if self._adversary:
                optimizer |= {f"{ADVERSARY_PREFIX}{k}": v for k, v in self._adversary.state_dict().items()}
        model = {name: self._whole(parameter) for name, parameter in self._trainable.items()}
        model |= moving_statistics(self._model)
        history = tuple(self.history)
        state = TrialState(
            self.epoch, self._finished_steps, self.micro_batch, history, model, optimizer, precision=self._precision
        )
        return PackedCheckpoint.of(state)

    def resume(self, folder: Path) -> None:
        """Goes back, or on, to a checkpoint's epoch; training from there equals training without interruption.

        Raises:
            CheckpointError: It is damaged, or of a trial with other trainable parameters.
        """
        state = read_checkpoint(folder)
        self._check_fits(state, folder)
        if state.precision != self._precision:
            rest = (
                f"a trial was trained in {state.precision} up to epoch {state.epoch}, and goes on in {self._precision}"
            )
            logger.warning("%s: that is what training.precision auto takes on this machine", rest)
        with torch.no_grad():
            for name, tensor in state.model.items():
                if name in self._trainable:
                    self._load_whole(self._trainable[name], tensor)
                else:
                    self._model.get_buffer(name).copy_(tensor)
        unpack_optimizer(self._optimizer, self._model, strip_prefix(state.optimizer, OPTIMIZER_PREFIX))
        if self._adversary:
            self._adversary.load_state_dict(strip_prefix(state.optimizer, ADVERSARY_PREFIX))
        self.history = list(state.history)
        self._finished_steps = state.step
        self._lr_scheduler = build_lr_scheduler(self._optimizer, self._hp, self._total_steps, state.step)
        self._gradients.micro_batch = min(state.micro_batch, self.micro_batch)

    def trained_model(self) -> PreTrainedModel:
        """The model as it is now, as a plain transformers model."""
        return self._strategy.exported(self._model)

    def _step(self, batch: GlobalBatch) -> BatchPass:
        result = self._gradients.compute(batch)
        self._starting_point.add_gradient()
        if self._hp.max_grad_norm is not None:
            clip_gradients(self._trainable.values(), self._hp.max_grad_norm)
        self._optimizer.step()
        if self._embedding:
            self._embedding.decay_others(self._optimizer)
        self._lr_scheduler.step()
        self._finished_steps += 1
        return result

    def _histograms(self) -> dict[str, Histogram]:
        """Of all that trains, and of its gradients in the last step."""
        weights = {name: self._whole(parameter) for name, parameter in self._trainable.items()}
        return histograms(weights, {name: parameter.grad for name, parameter in self._trainable.items()})

    def _looked_up(self) -> np.ndarray:
        """The token ids of every batch that is trained on, padding's among them."""
        splits = [self._data.train] if self._data.unlabeled is None else [self._data.train, self._data.unlabeled]
        return np.unique(np.concatenate([[self._data.pad_token_id], *(split.vocabulary for split in splits)]))

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        """What the model has under a trainable parameter's name, of which less may be trained."""
        if self._embedding is not None and parameter is self._embedding.weight:
            return self._embedding.whole()
        return parameter

    def _load_whole(self, parameter: nn.Parameter, tensor: Tensor) -> None:
        if self._embedding is not None and parameter is self._embedding.weight:
            self._embedding.load_whole(tensor)
        else:
            parameter.copy_(tensor)

    def _train_batches(self, epoch: int) -> list[np.ndarray]:
        classes = self._data.train.labels if self._data.facts.get("stratified") else None
        batches = train_batches(self._data.train.lengths, self._hp.batch_size, self._seed, epoch, classes)
        if len(batches) > 1 and len(batches[-1]) < self._least_rows:  # batch norm needs more than one row per worker
            batches[-2:] = [np.concatenate(batches[-2:])]
        return batches

    def _metrics(self, outputs: np.ndarray, split: EncodedSplit) -> dict[str, float]:
        # Numbers of numpy's can't be written to every record.
        return {name: float(value) for name, value in self._task.metrics(outputs, split, self._data).items()}

    def _global_batches(self, epoch: int) -> Iterator[GlobalBatch]:
        unlabeled: Iterator[np.ndarray] = repeat(np.empty(0, dtype=np.int64))
        if self._adversary and self._data.unlabeled is not None:
            unlabeled = cycle(train_batches(self._data.unlabeled.lengths, self._hp.batch_size, self._seed, epoch))
        for train_rows, unlabeled_rows in zip(self._train_batches(epoch), unlabeled, strict=False):
            yield GlobalBatch(train_rows, unlabeled_rows)

    def _check_fits(self, state: TrialState, folder: Path) -> None:
        expected = {name: tuple(self._whole(p).shape) for name, p in self._trainable.items()}
        expected |= {name: tuple(buffer.shape) for name, buffer in moving_statistics(self._model).items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.model.items()}
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            trained = f"it and a trial with strategy {self._hp.strategy} differ in {len(differing)} tensors"
            raise CheckpointError(f"{folder} is of another trial: {trained}, the first is {differing[0]}")


def seed_generators(seed: int, epoch: int, rank: int) -> None:
    """Seeds every generator that training draws from; each epoch and rank has its own stream."""
    state = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

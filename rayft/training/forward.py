"""From rows of a split to logits: by way of their tokens or pixels, or of what the frozen blocks gave for them."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayft.config import Hyperparameters
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.models.layers import LayerMap
from rayft.models.prefix_files import PrefixFeatures
from rayft.models.prefix_input import PrefixInput
from rayft.tasks import get_task
from rayft.training.acceleration import Acceleration
from rayft.training.workers import Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Some rows, ready for the model.

    Attributes:
        inputs: The model's arguments, on its device.
        labels: What it is to predict, rows first, or None for rows without.
        hidden: What the frozen blocks gave, [rows, length, hidden size] or of any shape for images, if that is known.
        tokens: Without padding.
        padded_tokens: With padding.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    hidden: Tensor | None
    tokens: int
    padded_tokens: int


class Forward:
    """A model's forward pass, which starts behind its frozen blocks where their output is known.

    Args:
        model: A trial's model.
        layers: Its layer map.
        frozen: How many of its blocks are frozen, with all before them; 0 if nothing is.
        data: The encoded splits.
        hp: How training rows are changed at random, if they are.
        workers: This process among the trial's.
        acceleration: How to compute.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerMap,
        frozen: int,
        data: EncodedData,
        hp: Hyperparameters,
        workers: Workers,
        acceleration: Acceleration,
    ) -> None:
        self.model = model
        self._frozen, self._data, self._hp, self._workers = frozen, data, hp, workers
        self._task = get_task(data.task)
        self._augments = self._task.augments(hp)
        self._autocast, self._cache = acceleration.autocast, acceleration.cache
        self._known: dict[EncodedSplit, PrefixFeatures | None] = {}
        self._prefix: PrefixInput | None = None
        if self._cache is None:
            logger.info("what frozen layers give is not kept: training.cache is off")
        elif frozen == 0:
            logger.info("what frozen layers give is not kept: something trains in the lowest layers")
        else:
            assert isinstance(model, PreTrainedModel), "a model whose blocks are frozen isn't wrapped"
            self._prefix = PrefixInput(model, layers, frozen)
            if self._augments:
                logger.info(
                    "what frozen layers give is kept for validation only: training images are changed at random"
                )

    def look_up(self, *splits: EncodedSplit | None) -> None:
        """Takes what the cache has for the splits, or lets it compute that.

        If another process of the node computes it now, this one waits, which is no longer than computing it would be.
        An epoch without would give the same but for the last digits, and so make results a matter of timing. What it
        doesn't have now isn't asked for again in this trial.
        """
        if self._prefix is None or self._cache is None:
            return
        for split in splits:
            if self._augments and split in (self._data.train, self._data.unlabeled):
                continue
            if split is not None and split not in self._known:
                self._known[split] = self._cache.features(split, self._frozen, wait=True)

    def batch(self, split: EncodedSplit, rows: np.ndarray) -> Batch:
        """Reads some rows and moves them to the model's device; in training, changed at random if they are to be."""
        self._workers.pulse.beat()
        changed = self._augments and self.model.training
        inputs = self._task.collate(split, rows, self._data, self._hp if changed else None)
        lengths = split.lengths[rows]
        tokens, padded_tokens = int(lengths.sum()), len(rows) * int(lengths.max())
        features = self._known.get(split)
        hidden = None if features is None else features.batch(rows, int(lengths.max()))
        moved = {name: self._moved(tensor) for name, tensor in inputs.items()}
        labels = moved.pop("labels", None)
        return Batch(moved, labels, None if hidden is None else self._moved(hidden), tokens, padded_tokens)

    def logits(self, batch: Batch, through: nn.Module | None = None) -> Tensor:
        """The logits of a batch, in float32, rows first.

        Args:
            batch: From `batch`.
            through: A wrapper of the model to call in its stead, such as DDP's.
        """
        with self._behind_frozen(batch), self._in_low_precision():
            logits: Tensor = (through or self.model)(**batch.inputs).logits
        return logits.float()

    def _behind_frozen(self, batch: Batch) -> AbstractContextManager[None]:
        if batch.hidden is None:
            return nullcontext()
        assert self._prefix is not None
        return self._prefix.feeding(batch.hidden)

    def _in_low_precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._workers.device.type, self._autocast)

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the model's device, without waiting for a GPU."""
        if self._workers.device.type != "cuda":
            return tensor.to(self._workers.device)
        return tensor.pin_memory().to(self._workers.device, non_blocking=True)

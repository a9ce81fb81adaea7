"""The gradient of a global batch: over any number of workers, in micro-batches that fit into memory."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from rayft.config import Hyperparameters
from rayft.data.batches import shard
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.strategies.adversarial import Adversary, FeatureTap
from rayft.tasks import get_task
from rayft.training.failures import MemoryExhaustedError, is_out_of_memory
from rayft.training.forward import Batch, Forward
from rayft.training.workers import Workers


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimiser step, over all workers; `unlabeled` is empty unless the strategy takes such rows."""

    train: np.ndarray
    unlabeled: np.ndarray


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass of this worker.

    Attributes:
        split: Where the rows are.
        rows: Their indices.
        loss_share: What their summed loss counts in the global batch's mean.
        fooling_share: Their part of all rows of the global batch.
    """

    split: EncodedSplit
    rows: np.ndarray
    loss_share: float
    fooling_share: float


@dataclass
class BatchPass:
    """What this worker's passes over its share of a global batch gave.

    Attributes:
        loss: Its part of the global batch's mean loss, detached.
        tokens: Tokens without padding.
        padded_tokens: Tokens with padding.
        outputs: Features and logits of the labelled rows, detached, for the adversary.
        unlabeled_outputs: Those of the unlabeled rows.
    """

    loss: Tensor
    tokens: int = 0
    padded_tokens: int = 0
    outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    unlabeled_outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class BatchGradients:
    """Computes gradients and leaves them in the parameters.

    The loss of a global batch is the mean over its rows, or their tokens, as the task weighs them, so micro-batches add
    up.
    """

    def __init__(
        self,
        forward: Forward,
        data: EncodedData,
        hp: Hyperparameters,
        workers: Workers,
        adversary: Adversary | None,
        micro_batch: int,
    ) -> None:
        self.micro_batch = micro_batch
        self._forward = forward
        self._data = data
        self._hp = hp
        self._workers = workers
        self._adversary = adversary
        self._task = get_task(data.task)
        self._row_weights = self._task.row_weights(data.train, data)
        self._module = forward.model
        if adversary:
            assert isinstance(forward.model, PreTrainedModel)
            self._tap = FeatureTap(forward.model)
        if workers.world_size > 1:
            self._module = DistributedDataParallel(forward.model, find_unused_parameters=True)

    def compute(self, batch: GlobalBatch) -> BatchPass:
        """Replaces all gradients by those of a global batch, and lets the adversary learn from it.

        Raises:
            MemoryExhaustedError: A single row doesn't fit; with several workers, at the first lack of memory, since
                the others already wait for this one's gradients.
        """
        result = self._accumulate(batch)
        while result is None:
            result = self._accumulate(batch)
        if self._adversary:
            self._update_adversary(self._adversary, batch, result)
        return result

    def _accumulate(self, batch: GlobalBatch) -> BatchPass | None:
        """One attempt at a global batch; None if memory ran out, and the micro-batch has been halved."""
        self._module.zero_grad(set_to_none=True)
        try:
            return self._backward(self._micro_batches(batch))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Here and not in the except block, which keeps the failed pass's tensors alive.
        self._halve_micro_batch(reason)
        return None

    def _backward(self, parts: list[MicroBatch]) -> BatchPass:
        result = BatchPass(torch.zeros((), device=self._workers.device))
        for number, part in enumerate(parts, start=1):
            batch = self._forward.batch(part.split, part.rows)
            result.tokens += batch.tokens
            result.padded_tokens += batch.padded_tokens
            with self._synchronised(last=number == len(parts)):
                objective = self._objective(part, batch, result)
                # Shares add up over workers, where DDP takes the mean.
                (objective * self._workers.world_size).backward()  # type: ignore[no-untyped-call]
        return result

    def _objective(self, part: MicroBatch, batch: Batch, result: BatchPass) -> Tensor:
        """The micro-batch's part of what is minimised."""
        labels = batch.labels
        logits = self._forward.logits(batch, through=self._module)
        objective = logits.new_zeros(())
        if labels is not None:
            objective = part.loss_share * self._task.loss_sum(logits, labels, self._hp, self._data)
            result.loss += objective.detach()
        if self._adversary:
            features = self._tap.features
            fooling = self._adversary.fooling_loss(features, logits)
            objective = objective + self._hp.adversarial_weight * part.fooling_share * fooling
            counted = len(logits) if part.fooling_share else 0
            outputs = result.unlabeled_outputs if labels is None else result.outputs
            outputs.append((features[:counted].detach(), logits[:counted].detach()))
        return objective

    def _micro_batches(self, batch: GlobalBatch) -> list[MicroBatch]:
        total = len(batch.train) + len(batch.unlabeled)
        share = 1 / float(self._row_weights[batch.train].sum())
        parts = [
            MicroBatch(self._data.train, rows, loss_share=share, fooling_share=len(rows) / total)
            for rows in self._own(batch.train)
        ]
        if self._data.unlabeled is not None:
            parts += [
                MicroBatch(self._data.unlabeled, rows, loss_share=0.0, fooling_share=len(rows) / total)
                for rows in self._own(batch.unlabeled)
            ]
        # DDP needs a pass of every worker: one without a row of its own takes one that counts nothing.
        return parts or [MicroBatch(self._data.train, batch.train[:1], loss_share=0.0, fooling_share=0.0)]

    def _own(self, rows: np.ndarray) -> list[np.ndarray]:
        own = shard(rows, self._workers.rank, self._workers.world_size)
        # Of like size: batch norm can't train on one row that is left over.
        return np.array_split(own, -(-len(own) // self.micro_batch)) if len(own) else []

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Lets workers exchange gradients in the last pass only."""
        if isinstance(self._module, DistributedDataParallel) and not last:
            return self._module.no_sync()
        return nullcontext()

    def _update_adversary(self, adversary: Adversary, batch: GlobalBatch, result: BatchPass) -> None:
        # The adversary itself adds up what the workers give, so that its step is that of a single worker.
        assert self._data.train.labels is not None
        nothing = [tensor[:0] for tensor in (result.outputs + result.unlabeled_outputs)[0]]  # for a worker without rows
        features, logits = (torch.cat(tensors) for tensors in zip(nothing, *result.outputs, strict=True))
        unlabeled = (torch.cat(tensors) for tensors in zip(nothing, *result.unlabeled_outputs, strict=True))
        own = shard(batch.train, self._workers.rank, self._workers.world_size)
        labels = torch.from_numpy(self._data.train.labels[own]).to(features.device)
        adversary.update(features, logits, labels, *unlabeled)

    def _halve_micro_batch(self, reason: str) -> None:
        if self._workers.world_size > 1 or self.micro_batch == 1:
            rows = f"{self.micro_batch} row{'s' if self.micro_batch > 1 else ''} per pass and worker"
            raise MemoryExhaustedError(f"out of memory with {rows}: {reason}")
        self.micro_batch = -(-self.micro_batch // 2)
        release_memory(self._module)


def release_memory(module: nn.Module) -> None:
    """Gives back what a failed pass held."""
    module.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

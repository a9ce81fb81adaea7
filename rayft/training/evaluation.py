"""The model's logits for every row of a split."""

import numpy as np
import torch
from torch import Tensor

from rayft.data.batches import eval_batches
from rayft.data.encode import EncodedSplit
from rayft.training.failures import MemoryExhaustedError, is_out_of_memory
from rayft.training.forward import Forward
from rayft.training.workers import Workers

TOKENS_PER_BATCH = 8192


@torch.no_grad()
def predict(
    forward: Forward, split: EncodedSplit, num_labels: int, workers: Workers, tokens_per_batch: int = TOKENS_PER_BATCH
) -> np.ndarray:
    """Logits, [rows, labels], the same on every worker; each computes a share of the batches.

    A batch that doesn't fit into memory is halved. Leaves the model in evaluation mode.

    Raises:
        MemoryExhaustedError: A single row doesn't fit.
    """
    forward.model.eval()
    logits: Tensor = torch.zeros((len(split), num_labels), device=workers.device)
    to_do = eval_batches(split.lengths, tokens_per_batch)[workers.rank :: workers.world_size]
    while to_do:
        rows = to_do.pop()
        try:
            logits[torch.from_numpy(rows).to(workers.device)] = forward.logits(forward.batch(split, rows))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise MemoryExhaustedError(f"out of memory with one row of validation: {error}") from error
            to_do += np.array_split(rows, 2)
    array: np.ndarray = workers.sum(logits).cpu().numpy()  # each row is 0 on all workers but one
    return array

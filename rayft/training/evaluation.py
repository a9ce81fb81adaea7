"""The model's logits for every row of a split."""

import numpy as np
import torch
from torch import Tensor, nn

from rayft.data.batches import collate, eval_batches
from rayft.data.encode import EncodedSplit
from rayft.training.failures import MemoryExhaustedError, is_out_of_memory
from rayft.training.gradients import to_device
from rayft.training.workers import Workers

TOKENS_PER_BATCH = 8192


def predict(
    model: nn.Module,
    split: EncodedSplit,
    num_labels: int,
    workers: Workers,
    pad_token_id: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> np.ndarray:
    """Logits, [rows, labels], the same on every worker; each computes a share of the batches.

    Leaves the model in evaluation mode.

    Raises:
        MemoryExhaustedError: A single row doesn't fit; with several workers, at the first lack of memory.
    """
    while True:
        try:
            return _predict(model, split, num_labels, workers, pad_token_id, tokens_per_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        if workers.world_size > 1 or tokens_per_batch < 2 * split.lengths.min():  # of one row each
            raise MemoryExhaustedError(f"out of memory with {tokens_per_batch} tokens per validation batch: {reason}")
        tokens_per_batch //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def _predict(
    model: nn.Module, split: EncodedSplit, num_labels: int, workers: Workers, pad_token_id: int, tokens_per_batch: int
) -> np.ndarray:
    model.eval()
    logits: Tensor = torch.zeros((len(split), num_labels), device=workers.device)
    batches = eval_batches(split.lengths, tokens_per_batch)
    for rows in batches[workers.rank :: workers.world_size]:
        inputs = to_device(collate(split, rows, pad_token_id), workers.device)
        inputs.pop("labels", None)
        logits[torch.from_numpy(rows).to(workers.device)] = model(**inputs).logits.float()
    array: np.ndarray = workers.sum(logits).cpu().numpy()  # each row is 0 on all workers but one
    return array

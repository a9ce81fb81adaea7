"""What a model gives for every row of a split."""

import numpy as np
import torch
from torch import Tensor

from rayft.data.batches import eval_batches
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.tasks import get_task
from rayft.training.failures import MemoryExhaustedError, is_out_of_memory
from rayft.training.forward import Forward
from rayft.training.workers import Workers


@torch.no_grad()
def predict(
    forward: Forward, split: EncodedSplit, data: EncodedData, workers: Workers, tokens_per_batch: int | None = None
) -> np.ndarray:
    """The task's outputs, [rows, output size], the same on every worker; each computes a share of the batches.

    A batch that doesn't fit into memory is halved. Leaves the model in evaluation mode.

    Raises:
        MemoryExhaustedError: A single row doesn't fit.
    """
    forward.model.eval()
    task = get_task(data.task)
    outputs: Tensor = torch.zeros((len(split), task.output_size(data)), device=workers.device)
    tokens = (tokens_per_batch or task.tokens_per_batch) // task.row_tokens(data)
    to_do = eval_batches(split.lengths, tokens)[workers.rank :: workers.world_size]
    while to_do:
        rows = to_do.pop()
        try:
            batch = forward.batch(split, rows)
            found = task.outputs(forward.logits(batch), batch.labels)
            # Outputs may be one for each token, and this batch's rows be shorter than others.
            outputs[torch.from_numpy(rows).to(workers.device), : found.shape[1]] = found
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise MemoryExhaustedError(f"out of memory with one row of validation: {error}") from error
            to_do += np.array_split(rows, 2)
    array: np.ndarray = workers.sum(outputs).cpu().numpy()  # each row is 0 on all workers but one
    return array

"""Hidden states after the frozen blocks, computed once for all configurations and shared by all processes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from benchmarks.arms.loop import LivePrefix, Rows, attention_mask, eval_batches

TOKENS_PER_BATCH = 2048
"""Small enough that every process gets several batches, and activations stay in the CPU's cache."""


class CachedPrefix:
    """Looks hidden states up, except where nothing is frozen.

    After the last block only the first token's state is kept: BERT's pooler reads no other.

    Args:
        model: The classifier, with its pretrained weights.
        splits: The splits to compute hidden states for.
        depths: Numbers of frozen blocks, without 0.
        folder: Where the shared files lie, the same for all processes.
    """

    def __init__(
        self, model: BertForSequenceClassification, splits: dict[str, Rows], depths: list[int], folder: Path
    ) -> None:
        self._bert = model.bert
        self._live = LivePrefix(model)
        self._last = len(model.bert.encoder.layer)
        self._splits, self._depths = splits, depths
        self._hidden = {
            (name, depth): self._shared(folder / f"{name}-{depth}", rows, depth)
            for name, rows in splits.items()
            for depth in depths
        }

    @torch.inference_mode()
    def fill(self, rank: int, world: int, wait: Callable[[], object]) -> None:
        """Computes this process's share of the batches, and waits for the others' to be done."""
        self._bert.eval()
        for rows in self._splits.values() if self._depths else ():
            for batch in list(eval_batches(rows.lengths, TOKENS_PER_BATCH))[rank::world]:
                self._fill_batch(rows, batch)
        wait()

    def _fill_batch(self, rows: Rows, batch: Tensor) -> None:
        positions, mask = rows.positions(batch)
        hidden = self._bert.embeddings(input_ids=rows.input_ids(positions, mask))
        attention = attention_mask(self._bert, hidden, mask)
        for depth, block in enumerate(self._bert.encoder.layer[: max(self._depths)], start=1):
            hidden = block(hidden, attention)
            if depth in self._depths:
                if depth == self._last:
                    self._hidden[rows.name, depth][batch] = hidden[:, 0]
                else:
                    self._hidden[rows.name, depth][positions[mask]] = hidden[mask]

    def __call__(self, rows: Rows, batch: Tensor, depth: int) -> tuple[Tensor, Tensor | None]:
        """See `Prefix`."""
        if (hidden := self._hidden.get((rows.name, depth))) is None:
            return self._live(rows, batch, depth)
        if depth == self._last:
            return hidden[batch][:, None], None
        positions, mask = rows.positions(batch)
        states = hidden.index_select(0, positions.flatten()).view(*positions.shape, -1)
        return states, attention_mask(self._bert, states, mask)

    def _shared(self, path: Path, rows: Rows, depth: int) -> Tensor:
        """A file that all processes map; the first one to come makes it."""
        shape = (len(rows.labels) if depth == self._last else len(rows.tokens), self._bert.config.hidden_size)
        with path.open("ab") as file:
            file.truncate(shape[0] * shape[1] * 4)
        return torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r+", shape=shape))

"""Which rows train and are scored together, and the padded tensors of such a batch."""

import numpy as np
import torch
from numpy.typing import NDArray

from rayft.data.encoded import EncodedSplit

Indices = NDArray[np.int64]

BATCHES_PER_BUCKET = 50
"""Rows are sorted by length among at most this many batches: little padding, yet batches still mix the whole split."""
BUCKETS_PER_EPOCH = 10
"""At least so many, since batches of one length are alike in more than that, which few of them don't average out.

On 660 short texts with several labels each (41 batches), fine-tuned for 3 epochs, micro F1 over 3 seeds was 0.889 in
random batches, 0.879 with buckets of 4 batches, 0.871 with 8 and 0.852 with one bucket; padding was 21, 9, 5 and 1 %.
"""


def train_batches(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int, classes: NDArray[np.int64] | None = None
) -> list[Indices]:
    """The global batches of one epoch: every row once, rows of similar length together, in random order.

    A pure function of its arguments, so that every worker and every resumed trial sees the same batches.

    Args:
        lengths: Tokens of each row, of shape [rows].
        batch_size: Rows per batch over all workers; the last batch may be smaller.
        seed: The trial's seed.
        epoch: The number of the epoch.
        classes: Of each row, if each batch is to have its share of every class, whatever the lengths.

    Returns:
        The row indices of each batch.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if classes is not None:
        order = order[np.argsort(_spread(classes[order], generator), kind="stable")]
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        whole = len(order) // batch_size
        return [batches[index] for index in generator.permutation(whole)] + batches[whole:]
    full = len(order) - len(order) % batch_size
    # The rows of the smaller last batch are set aside before sorting, or the longest would always be among them.
    rest = order[full:]
    batches = []
    per_bucket = batch_size * min(BATCHES_PER_BUCKET, max(1, full // batch_size // BUCKETS_PER_EPOCH))
    for start in range(0, full, per_bucket):
        bucket = order[start : min(start + per_bucket, full)]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += list(bucket.reshape(-1, batch_size))
    shuffled = [batches[index] for index in generator.permutation(len(batches))]
    return [*shuffled, rest] if len(rest) else shuffled


def _spread(classes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float64]:
    """A place from 0 to 1 for each row, at which the rows of each class lie evenly."""
    places = np.empty(len(classes))
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        places[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return places


def eval_batches(lengths: NDArray[np.int64], tokens_per_batch: int) -> list[Indices]:
    """Batches for scoring: sorted by length, the longest first, as many rows as fit.

    The longest go first so that a batch that doesn't fit into memory shows at once.

    Args:
        lengths: Tokens of each row, of shape [rows].
        tokens_per_batch: At most this many tokens per batch, padding included, but always one row.

    Returns:
        The row indices of each batch; together every row once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = max(1, tokens_per_batch // longest)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def shard(indices: Indices, rank: int, world_size: int) -> Indices:
    """One worker's share of a global batch; the shares differ by at most one row, and may be empty.

    Strided, so that the long rows of a sorted batch are spread over the workers.
    """
    return indices[rank::world_size]


def token_inputs(split: EncodedSplit, indices: Indices, pad_token_id: int) -> dict[str, torch.Tensor]:
    """The model's inputs for some rows of tokens, padded on the right to the longest of them.

    Args:
        split: Where the rows are.
        indices: Which rows; at least one.
        pad_token_id: What fills input_ids.

    Returns:
        int64 tensors of shape [rows, longest]: input_ids, attention_mask and, if the tokenizer gives them,
        token_type_ids.
    """
    assert len(indices), "a batch without rows"
    mask = real_tokens(split, indices)
    batch = {
        "input_ids": padded(split, "input_ids", indices, mask, pad_token_id),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
    if "token_type_ids" in split.columns:
        batch["token_type_ids"] = padded(split, "token_type_ids", indices, mask, 0)
    return batch


def real_tokens(split: EncodedSplit, indices: Indices) -> NDArray[np.bool_]:
    """Which places of a padded batch hold tokens, [rows, longest]."""
    lengths = split.lengths[indices]
    mask: NDArray[np.bool_] = np.arange(lengths.max()) < lengths[:, None]
    return mask


def padded(split: EncodedSplit, column: str, indices: Indices, mask: NDArray[np.bool_], padding: int) -> torch.Tensor:
    """Some rows of a list column, filled up where the mask says that there are no tokens; int64."""
    filled = np.full(mask.shape, padding, dtype=np.int64)
    filled[mask] = np.concatenate([split.ragged(column, int(index)) for index in indices])
    return torch.from_numpy(filled)

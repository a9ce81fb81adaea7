"""The outputs of frozen blocks, computed once per row and node for all epochs of all trials."""

import json
import logging
import time
from contextlib import suppress
from pathlib import Path

import torch
import transformers
import xxhash
from filelock import Timeout
from torch import Tensor
from transformers import PreTrainedModel

from rayft.data.encoded import EncodedSplit
from rayft.models.layers import LayerMap
from rayft.models.prefix_build import Collate, PrefixBuilder, on_device
from rayft.models.prefix_files import FORMAT_VERSION, NoCacheError, NoRoomError, PrefixFeatures, PrefixStore
from rayft.pulse import Pulse

MIN_SPEEDUP = 1.5
"""How many times faster than computing reading must be."""
WAIT_SECONDS = 10.0
"""How often a process that waits for another shows that it does."""
NOT_OF_THE_PREFIX = {"id2label", "label2id", "_name_or_path", "architectures", "problem_type", "transformers_version"}
"""Entries of a model's config that don't change what its blocks give."""

logger = logging.getLogger(__name__)


class PrefixCache:
    """The outputs of a model's frozen first blocks by row, kept on this node's disk.

    It changes speed and never results: where the outputs aren't always the same, or where reading them is no faster
    than computing them, there are none. Trouble with the disk is logged, and never raised.

    Args:
        model: The pretrained model with the weights that every trial starts with, in evaluation mode; left as it is.
        layers: Its layer map.
        collate: Reads rows.
        row_tokens: As how many tokens a row counts that isn't made of tokens.
        folder: Where the files are; processes of one node may share it.
        budget_bytes: At most so many bytes on disk.
        device: Where trials compute.
        autocast: The dtype of torch.autocast in training, or None without it.
        min_speedup: How many times faster than computing reading must be.
        pulse: Shows that outputs are being computed, by this process or another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: LayerMap,
        collate: Collate,
        folder: Path,
        budget_bytes: int,
        device: torch.device,
        autocast: torch.dtype | None = None,
        *,
        row_tokens: int = 1,
        min_speedup: float = MIN_SPEEDUP,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or Pulse()
        self._model, self._layers, self._collate, self._row_tokens = model, layers, collate, row_tokens
        self._device, self._autocast, self._min_speedup = device, autocast, min_speedup
        self._fingerprints = Fingerprints(model, layers, device, autocast)
        self._store = PrefixStore(folder, budget_bytes)
        self._opened: dict[tuple[EncodedSplit, int], PrefixFeatures] = {}
        self._refused: set[tuple[EncodedSplit, int]] = set()
        self._exact: set[int] = set()
        self._logged: set[str] = set()

    def features(self, split: EncodedSplit, depth: int, *, wait: bool) -> PrefixFeatures | None:
        """What the embeddings and the first `depth` blocks give for the rows of a split; computed if it isn't there.

        Args:
            split: The rows.
            depth: How many blocks are frozen.
            wait: Whether to wait for another process that computes them now. If not, ask again an epoch later.

        Returns:
            None if nothing is frozen, if it can't be or isn't worth it, or if another process computes them now.
        """
        key = (split, depth)
        # A process trains one trial at a time: what the last one read is no longer in use, and may be evicted.
        self._opened = {opened: features for opened, features in self._opened.items() if opened[1] == depth}
        if depth == 0 or key in self._refused:
            return None
        if key not in self._opened:
            try:
                found = self._open_or_build(split, depth, wait)
            # What an architecture that doesn't fit raises is of many kinds, as in map_layers.
            except (NoCacheError, OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
                if not isinstance(error, NoRoomError):  # which the next trial may find
                    self._refused.add(key)
                cause = str(error).partition("\n")[0]
                reason = cause if isinstance(error, NoCacheError) else f"{type(error).__name__}: {cause}"
                self._log_once(f"No cache of {split.name} behind {depth} frozen blocks: {reason}")
                return None
            if found is None:
                self._log_once(f"Another process computes the cache of {split.name} behind {depth} frozen blocks")
                return None
            self._opened[key] = found
        return self._opened[key]

    def _open_or_build(self, split: EncodedSplit, depth: int, wait: bool) -> PrefixFeatures | None:
        """None if another process holds the lock."""
        fingerprint = self._fingerprints.of(split, depth)
        if found := self._store.open(fingerprint, split.lengths):
            return found
        lock = self._store.lock(fingerprint)
        while True:
            try:
                lock.acquire(timeout=WAIT_SECONDS if wait else 0)
                break
            except Timeout:
                if not wait:
                    return None
                self._pulse.beat()  # whoever holds the lock has a pulse of its own
        try:
            if found := self._store.open(fingerprint, split.lengths):  # finished by another process meanwhile
                return found
            self._build(split, depth, fingerprint)
            return self._store.open(fingerprint, split.lengths)  # before others may evict it
        finally:
            lock.release()

    def _build(self, split: EncodedSplit, depth: int, fingerprint: str) -> None:
        started = time.perf_counter()
        model = on_device(self._model, self._device)
        builder = PrefixBuilder(model, self._layers, self._collate, self._row_tokens, self._autocast, self._pulse)
        if depth not in self._exact:
            builder.check_exact(split, depth)
            self._exact.add(depth)
        shape = builder.shape(split, depth)

        def build(source: PrefixFeatures | None) -> bool:
            with self._store.writing(fingerprint, shape, split.lengths) as writer:
                builder.build(split, depth, source, writer, self._min_speedup)
            return True

        done = False
        with suppress(NoRoomError):
            done = build(self._shallower(split, depth))
        if not done:  # what it would have been built from is read, and so not evicted
            build(None)
        seconds, size = time.perf_counter() - started, shape.bytes / 1e9
        self._log_once(
            f"Cached {split.name} behind {depth} frozen blocks: {shape.tokens} tokens, {size:.2f} GB, {seconds:.1f} s"
        )

    def _shallower(self, split: EncodedSplit, depth: int) -> PrefixFeatures | None:
        """What the most of fewer blocks gave, if there is any."""
        fingerprints = (self._fingerprints.of(split, fewer) for fewer in range(depth - 1, 0, -1))
        found = (self._store.open(fingerprint, split.lengths) for fingerprint in fingerprints)
        return next((features for features in found if features), None)

    def _log_once(self, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            logger.info(message)


class Fingerprints:
    """Names for what the first blocks of a model give, the same in all processes.

    Args:
        model: The model, whose weights must not change.
        layers: Its layer map.
        device: Where it runs.
        autocast: The dtype of torch.autocast, or None without it.
    """

    def __init__(
        self, model: PreTrainedModel, layers: LayerMap, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        self._model, self._layers = model, layers
        self._context = {
            "format": FORMAT_VERSION,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "class": type(model).__qualname__,
            "config": {key: value for key, value in model.config.to_dict().items() if key not in NOT_OF_THE_PREFIX},
            "attention": model.config._attn_implementation,
            "device": device.type,
            "autocast": str(autocast),
            "matmul_precision": torch.get_float32_matmul_precision(),
        }
        self._weights: list[str] = []
        self._splits: dict[EncodedSplit, str] = {}

    def of(self, split: EncodedSplit, depth: int) -> str:
        """The fingerprint of what `depth` blocks give for a split; each block and split is read once."""
        if split not in self._splits:
            self._splits[split] = _split_digest(split)
        while len(self._weights) <= depth:
            self._weights.append(self._weights_digest(len(self._weights)))
        parts = {"context": self._context, "split": self._splits[split], "weights": self._weights[: depth + 1]}
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())

    def _weights_digest(self, depth: int) -> str:
        """Of all that is no block's if depth is 0, else of one block."""
        digest = xxhash.xxh3_128()
        tensors: list[tuple[str, Tensor]] = []
        if depth == 0:
            tensors += self._model.named_buffers()
        names = self._layers.blocks[depth - 1] if depth else self._layers.embeddings
        tensors += [(name, self._model.get_parameter(name)) for name in names]
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()


def _split_digest(split: EncodedSplit) -> str:
    digest = xxhash.xxh3_128(str(sorted({*split.columns} - {"label", "targets"})).encode())
    for array in split.content():
        digest.update(array.data)  # a view of the file's memory map
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data

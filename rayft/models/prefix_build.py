"""Computing the outputs of a model's first blocks for all rows of a split, if they are exact and worth it."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayft.data.batches import eval_batches, real_tokens
from rayft.data.encoded import EncodedSplit
from rayft.models.layers import LayerMap
from rayft.models.prefix_files import FeatureShape, NoCacheError, PrefixFeatures, PrefixWriter
from rayft.models.prefix_input import PrefixInput, block_output
from rayft.models.still import train_above
from rayft.pulse import Pulse

Collate = Callable[[EncodedSplit, NDArray[np.int64]], dict[str, Tensor]]
"""A model's arguments for some rows, and perhaps their labels."""

TOKENS_PER_BATCH = 8192
TIMED_BATCHES = 3
TOLERANCE = 1e-3
"""Of the largest value: far above what rounding gives in float32, far below what a wrong prefix would."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """Seconds per token of computing the whole prefix, and of reading its output back to the device."""

    forward: float
    read: float


@dataclass(frozen=True)
class _Start:
    """Where passes start if not at the tokens."""

    features: PrefixFeatures
    input: PrefixInput


class PrefixBuilder:
    """Runs the first blocks of a model.

    Args:
        model: In evaluation mode, on the device; as it was after each call.
        layers: Its layer map.
        collate: Reads rows.
        row_tokens: As how many tokens a row counts that isn't made of tokens.
        autocast: The dtype of torch.autocast, or None without it.
        pulse: Shows that it runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: LayerMap,
        collate: Collate,
        row_tokens: int,
        autocast: torch.dtype | None,
        pulse: Pulse,
    ) -> None:
        assert not model.training
        self._pulse, self._row_tokens = pulse, row_tokens
        self._model, self._layers, self._collate = model, layers, collate
        self._autocast = autocast

    def shape(self, split: EncodedSplit, depth: int) -> FeatureShape:
        """What the file of a split will hold, from a pass over its shortest row."""
        hidden, _ = self._timed_output(split, np.argsort(split.lengths)[:1], depth, None)
        if split.has_tokens:
            return FeatureShape(depth, int(split.lengths.sum()), hidden.shape[-1], hidden.dtype)
        row = tuple(hidden.shape[1:])
        return FeatureShape(depth, len(split), math.prod(row), hidden.dtype, row)

    @torch.no_grad()
    def check_exact(self, split: EncodedSplit, depth: int) -> None:
        """Compares passes with and without the cache on a few rows of different lengths, in float32.

        Raises:
            NoCacheError: They differ, or what the first blocks give in training is not always the same.
        """
        order = np.argsort(split.lengths)
        rows = np.unique(order[[0, len(order) // 2, -1]])
        inputs = self._inputs(split, rows)
        own = [self._run(depth, self._inputs(split, rows[[index]])) for index in range(len(rows))]
        if split.has_tokens:
            length = inputs["input_ids"].shape[1]
            own = [nn.functional.pad(hidden, (0, 0, 0, length - hidden.shape[1])) for hidden in own]
        features = torch.cat(own)
        with PrefixInput(self._model, self._layers, depth).feeding(features):
            logits = self._model(**inputs).logits
        expected = self._model(**inputs).logits
        if logits.ndim == 3:  # one for each token, of which the cache has none for padding
            real = torch.from_numpy(real_tokens(split, rows)).to(logits.device)
            logits, expected = logits[real], expected[real]
        if not _close(logits, expected):
            raise NoCacheError(f"{type(self._model).__name__} doesn't give the same logits when it starts at a block")
        self._check_constant(inputs, depth)

    def _check_constant(self, inputs: dict[str, Tensor], depth: int) -> None:
        """Training must not change what the frozen blocks give: neither at random nor by moving statistics."""
        mask = inputs.get("attention_mask")
        real = slice(None) if mask is None else mask.bool()
        expected = self._run(depth, inputs)[real]
        with _in_training(self._model, self._layers, depth):
            found = self._run(depth, inputs)[real]
        if not _close(found, expected):
            raise NoCacheError("something beside the frozen blocks and the dropout before them drops out in training")

    def build(
        self,
        split: EncodedSplit,
        depth: int,
        source: PrefixFeatures | None,
        writer: PrefixWriter,
        min_speedup: float,
    ) -> None:
        """Writes what the first blocks give for all rows.

        Args:
            split: The rows.
            depth: How many blocks.
            source: What fewer blocks gave for them, to start there.
            writer: Takes the result.
            min_speedup: How many times faster than computing reading must be.

        Raises:
            NoCacheError: It is not so much faster.
        """
        start = None if source is None else _Start(source, PrefixInput(self._model, self._layers, source.depth))
        # The longest rows first: they show at once whether a batch fits into memory.
        to_do = eval_batches(split.lengths, TOKENS_PER_BATCH // self._row_tokens)[::-1]
        costs: list[Costs] = []
        while to_do:
            rows = to_do.pop()
            output = self._output_if_it_fits(split, rows, depth, start)
            if output is None:
                to_do += np.array_split(rows, 2)
                continue
            hidden, seconds = output
            writer.write(rows, hidden.cpu())
            if len(costs) < TIMED_BATCHES:
                costs.append(self._costs(split.lengths[rows], seconds, rows, writer))
                if len(costs) == TIMED_BATCHES or not to_do:
                    check_pays(costs, min_speedup)

    def _costs(self, lengths: NDArray[np.int64], forward: float, rows: Rows, writer: PrefixWriter) -> Costs:
        features = writer.written()
        started = time.perf_counter()
        features.batch(rows, int(lengths.max())).to(self._model.device)
        self._finish_queue()
        tokens = int(lengths.sum())
        return Costs(forward / tokens, (time.perf_counter() - started) / tokens)

    def _output_if_it_fits(
        self, split: EncodedSplit, rows: Rows, depth: int, start: _Start | None
    ) -> tuple[Tensor, float] | None:
        """None if several rows at once fail.

        Lack of memory has no exception of its own on the CPU or in cuBLAS; any other error comes again with one row.
        """
        try:
            return self._timed_output(split, rows, depth, start)
        except RuntimeError:
            if len(rows) == 1:
                raise
        # Here and not in the except block, which keeps the failed pass's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    @torch.no_grad()
    def _timed_output(self, split: EncodedSplit, rows: Rows, depth: int, start: _Start | None) -> tuple[Tensor, float]:
        """What the blocks give, and the seconds that all of them take, if need be estimated from those that ran."""
        inputs = self._inputs(split, rows)
        with ExitStack() as stack:
            if start:
                hidden = start.features.batch(rows, int(split.lengths[rows].max()))
                stack.enter_context(start.input.feeding(hidden.to(self._model.device)))
            stack.enter_context(
                torch.autocast(self._model.device.type, self._autocast, enabled=self._autocast is not None)
            )
            self._finish_queue()
            started = time.perf_counter()
            output = self._run(depth, inputs)
            self._finish_queue()
            seconds = time.perf_counter() - started
        return output, seconds * depth / (depth - start.features.depth if start else depth)

    def _run(self, depth: int, inputs: dict[str, Tensor]) -> Tensor:
        hidden = block_output(self._model, self._layers, depth, inputs)
        if "input_ids" in inputs and hidden.shape[:-1] != inputs["input_ids"].shape:
            raise NoCacheError(f"its blocks must give one vector per token, but give {list(hidden.shape)}")
        return hidden

    def _inputs(self, split: EncodedSplit, rows: Rows) -> dict[str, Tensor]:
        self._pulse.beat()
        inputs = self._collate(split, rows)
        inputs.pop("labels", None)
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _finish_queue(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model itself if it is there, else a copy."""
    return model if model.device == device else copy.deepcopy(model).to(device)


def check_pays(costs: list[Costs], min_speedup: float) -> None:
    """Judges by the fastest passes, which other processes have slowed down least.

    Raises:
        NoCacheError: Computing doesn't take `min_speedup` times as long as reading.
    """
    forward, read = min(cost.forward for cost in costs), min(cost.read for cost in costs)
    if forward < min_speedup * read:
        took = f"{forward * 1e6:.2f} µs per token to compute and {read * 1e6:.2f} µs to read"
        raise NoCacheError(f"it doesn't pay, the frozen blocks take {took}")


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().clamp(min=1e-6)
    return bool((found - expected).abs().max() <= TOLERANCE * scale)  # False for NaN


@contextmanager
def _in_training(model: PreTrainedModel, layers: LayerMap, depth: int) -> Iterator[None]:
    """As in training with `depth` frozen blocks, and without a trace in torch's generators."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        train_above(model, layers, depth)
        try:
            yield
        finally:
            model.eval()

"""What training costs on this machine: a step and a batch of validation of the real model on real rows, timed here."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from rayft.check.probes import block_clock, saved_bytes, timed
from rayft.config import STRATEGIES, Hyperparameters, StrategyName, SweepConfig
from rayft.data.batches import eval_batches, train_batches
from rayft.data.encoded import EncodedSplit
from rayft.models.layers import LayerMap
from rayft.models.load import quiet
from rayft.sweep.group_spec import group_spec
from rayft.sweep.loaded_model import LoadedModel, LoadedModels
from rayft.tasks import get_task
from rayft.training.forward import Forward
from rayft.training.gradients import GlobalBatch
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers

MOST_ROWS = 20_000
"""Of more rows, so many tell how long batches are."""
STEP_ROWS = 16
"""A step is timed with at most so many rows, and longer ones are in proportion: large batches would take minutes."""
PLAIN_STRATEGIES: frozenset[StrategyName] = frozenset({"full", "partial", "layerwise"})
"""These compute alike where nothing is frozen."""


@dataclass(frozen=True)
class StepCost:
    """What a step of training takes where nothing is frozen.

    Attributes:
        seconds: Of each step, whatever its size, such as the optimiser's.
        token_seconds: Of each token, padding included; of each row where rows have no tokens.
        token_bytes: Kept of each token for the backward pass.
    """

    seconds: float
    token_seconds: float
    token_bytes: float


@dataclass(frozen=True, eq=False)
class ModelCost:
    """What a model takes on this machine.

    Attributes:
        steps: By strategy.
        forward_seconds: Of each token of validation.
        blocks: Each block's share of a forward pass.
        layers: The model's layer map.
        lengths: Of rows of train, at most `MOST_ROWS` of them.
        rows: How many train has.
        validation_tokens: Of all batches of validation, padding included.
        precision: fp32 or bf16.
        device: cpu or cuda.
    """

    steps: Mapping[StrategyName, StepCost]
    forward_seconds: float
    blocks: tuple[float, ...]
    layers: LayerMap
    lengths: NDArray[np.int64]
    rows: int
    validation_tokens: float
    precision: str
    device: str

    def batches(self, batch_size: int) -> tuple[float, float]:
        """The number of batches of an epoch, and their tokens with padding."""
        batches = train_batches(self.lengths, min(batch_size, len(self.lengths)), 0, 1)
        padded = sum(len(rows) * int(self.lengths[rows].max()) for rows in batches)
        return max(1.0, self.rows / batch_size), padded * self.rows / len(self.lengths)


def measure(config: SweepConfig, model: str, folder: Path) -> ModelCost:
    """Loads a model as a worker would, and times what it does.

    Args:
        config: The sweep.
        model: The model.
        folder: Holds the encoded rows, as a run folder does.

    Raises:
        ModelError: It can't be loaded.
    """
    workers = Workers(rank=0, world_size=1, device=torch.device("cuda" if uses_gpu(config) else "cpu"))
    spec = group_spec(config, str(folder), config.cluster.cpus_per_worker)
    with _threads(spec.threads), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # libraries' of each other
        # Compiling takes a minute, and what the cache holds isn't known.
        loaded = LoadedModels(replace(spec, cache_bytes=0, compiled=False), workers).get(model)
        forward_seconds, blocks = _time_forward(loaded, workers)
        steps = {strategy: _time_steps(config, strategy, loaded, workers) for strategy in _unlike(config)}
    plain = next((cost for strategy, cost in steps.items() if strategy in PLAIN_STRATEGIES), None)
    if plain is not None:
        steps |= dict.fromkeys(PLAIN_STRATEGIES, plain)
    data = loaded.data
    lengths = np.random.default_rng(0).permutation(data.train.lengths)[:MOST_ROWS]
    return ModelCost(
        steps=steps,
        forward_seconds=forward_seconds,
        blocks=blocks,
        layers=loaded.layers,
        lengths=lengths,
        rows=len(data.train),
        validation_tokens=sum(_padded(data.validation.lengths, rows) for rows in _validation_batches(loaded)),
        precision="fp32" if loaded.acceleration.autocast is None else "bf16",
        device=workers.device.type,
    )


def uses_gpu(config: SweepConfig) -> bool:
    """Whether a worker would compute on a GPU of this machine."""
    return torch.cuda.is_available() and config.cluster.gpus_per_worker != 0


def free_memory(config: SweepConfig) -> int:
    """Bytes that a worker could have on this machine now."""
    if uses_gpu(config):
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _unlike(config: SweepConfig) -> list[StrategyName]:
    """One strategy of each kind that computes in a way of its own."""
    plain = [strategy for strategy in config.strategies if strategy in PLAIN_STRATEGIES]
    return [s for s in STRATEGIES if s in plain[:1] or (s in config.strategies and s not in PLAIN_STRATEGIES)]


def _time_steps(config: SweepConfig, strategy: StrategyName, loaded: LoadedModel, workers: Workers) -> StepCost:
    """Times a step with few rows and one with more, after one that warms up."""
    fixed = config.training.model_dump(include=set(Hyperparameters.model_fields))
    changes = {"strategy": strategy, "freeze_depth": 0, "freeze_fraction": None, "batch_size": STEP_ROWS}
    tuning = FineTuning(
        loaded.base,
        loaded.layers,
        loaded.data,
        Hyperparameters(**(fixed | changes)),
        epochs=1,
        seed=config.search.seed,
        workers=workers,
        acceleration=loaded.acceleration,
    )
    many = _usual_batch(loaded)
    few = many[: max(2, len(many) // 4)]
    unlabeled = loaded.data.unlabeled if strategy == "adversarial" else None
    with saved_bytes(loaded.base) as saved:
        tuning.try_step(_global(many, unlabeled))
    tokens = {size: _padded(loaded.data.train.lengths, rows) for size, rows in (("few", few), ("many", many))}
    short = timed(lambda: tuning.try_step(_global(few, unlabeled)), workers)
    long = timed(lambda: tuning.try_step(_global(many, unlabeled)), workers)
    return _line(tokens["few"], short, tokens["many"], long, sum(saved.values()) / tokens["many"])


def _global(rows: NDArray[np.int64], unlabeled: EncodedSplit | None) -> GlobalBatch:
    return GlobalBatch(rows, np.arange(0 if unlabeled is None else min(len(rows), len(unlabeled))))


def _line(few: int, short: float, many: int, long: float, token_bytes: float) -> StepCost:
    """The step's cost by its size, from two sizes; all of it by size where that can't be told."""
    slope = (long - short) / (many - few) if many > few else 0.0
    if slope <= 0:
        return StepCost(0.0, long / many, token_bytes)
    return StepCost(max(0.0, long - slope * many), min(slope, long / many), token_bytes)


def _usual_batch(loaded: LoadedModel) -> NDArray[np.int64]:
    """The rows of a batch that is as long as most."""
    lengths = loaded.data.train.lengths
    batches = train_batches(lengths, min(STEP_ROWS, len(lengths)), 0, 1)
    whole = [rows for rows in batches if len(rows) == len(batches[0])]
    return sorted(whole, key=lambda rows: _padded(lengths, rows))[len(whole) // 2]


def _validation_batches(loaded: LoadedModel) -> list[NDArray[np.int64]]:
    task = get_task(loaded.data.task)
    return eval_batches(loaded.data.validation.lengths, task.tokens_per_batch // task.row_tokens(loaded.data))


def _padded(lengths: NDArray[np.int64], rows: NDArray[np.int64]) -> int:
    return len(rows) * int(lengths[rows].max())


@torch.no_grad()
def _time_forward(loaded: LoadedModel, workers: Workers) -> tuple[float, tuple[float, ...]]:
    """Seconds per token of a batch of validation, and each block's share of them."""
    data, hp = loaded.data, Hyperparameters()
    forward = Forward(loaded.base.eval(), loaded.layers, 0, data, hp, workers, loaded.acceleration)
    batches = _validation_batches(loaded)
    rows = batches[len(batches) // 2][:STEP_ROWS]

    def once() -> None:
        forward.logits(forward.batch(data.validation, rows))

    seconds = timed(once, workers, warm_up=True)
    with block_clock(loaded.base, loaded.layers, workers) as blocks:
        whole = timed(once, workers, most=1)
    return seconds / _padded(data.validation.lengths, rows), tuple(min(1.0, own / whole) for own in blocks)

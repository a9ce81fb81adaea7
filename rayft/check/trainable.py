"""What trains of a model, by strategy and depth, found without its weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from rayft.config import (
    MODEL,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    Domain,
    Hyperparameters,
    StrategyName,
    SweepConfig,
    Value,
    as_list,
)
from rayft.models.layers import LayerMap
from rayft.search_space import resolve
from rayft.strategies.base import with_freeze_depth
from rayft.strategies.lora import adapted_layers

BYTES_PER_PARAMETER = 4
STATES = 4
"""What a parameter that trains has in memory: its weight, its gradient, and AdamW's two moments."""


@dataclass(frozen=True)
class Trainable:
    """What trains in some of a sweep's trials.

    Attributes:
        strategy: Their strategy.
        freeze_depth: How many blocks are frozen; None if the strategy freezes none.
        lora_rank: Of LoRA's updates; None without.
        parameters: How many numbers train.
        share: Of the model's own parameters; LoRA's updates are beside them.
        bytes: In memory, the frozen parameters included, without activations.
    """

    strategy: StrategyName
    freeze_depth: int | None
    lora_rank: int | None
    parameters: int
    share: float
    bytes: int


def trainable_parts(
    config: SweepConfig, model: str, skeleton: PreTrainedModel, layers: LayerMap
) -> tuple[Trainable, ...]:
    """What trains with each strategy of the sweep, at each depth and rank of a few that it may have.

    Args:
        config: The sweep.
        model: The model's name.
        skeleton: The model, for the sizes of its parameters; its weights are not read.
        layers: Its layer map.

    Raises:
        ModelError: The sweep has LoRA, and the model nothing to adapt.
    """
    found: dict[Trainable, None] = {}
    for strategy in config.strategies:
        key = "lora_rank" if strategy == "lora" else _freezing_key(config)
        read = STRATEGY_HYPERPARAMETERS[strategy]
        for value in _few_values(config, key, strategy, model) if key in read else [None]:
            given: dict[str, Value] = {"strategy": strategy} | ({} if value is None else {key: value})
            found[_trainable(resolve(config, given), skeleton, layers)] = None
    return tuple(found)


def count_trainable(model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> int:
    """How many numbers of a model train with these hyperparameters.

    Args:
        model: The model, or its skeleton.
        layers: Its layer map.
        hp: The hyperparameters, of which strategy, depth and rank count.
    """
    sizes: dict[str, int] = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if hp.strategy == "lora":
        adapted = sum(_update_size(layer, hp.lora_rank) for _, layer in adapted_layers(model, layers))
        return adapted + sum(sizes[name] for name in (*layers.after_blocks, *layers.head))
    return sum(sizes.values()) - sum(sizes[name] for name in layers.frozen(_depth(hp, layers) or 0))


def _trainable(hp: Hyperparameters, model: PreTrainedModel, layers: LayerMap) -> Trainable:
    whole = sum(parameter.numel() for parameter in model.parameters())
    count = count_trainable(model, layers, hp)
    rank = hp.lora_rank if hp.strategy == "lora" else None
    size = BYTES_PER_PARAMETER * (whole + STATES * count)  # the base model stays beside what trains of it
    return Trainable(hp.strategy, _depth(hp, layers), rank, count, count / whole, size)


def _depth(hp: Hyperparameters, layers: LayerMap) -> int | None:
    freezes = "freeze_depth" in STRATEGY_HYPERPARAMETERS[hp.strategy]
    return with_freeze_depth(hp, layers).freeze_depth if freezes else None


def _update_size(layer: nn.Module, rank: int) -> int:
    """The numbers of one low-rank update: down from what the layer reads, up to what it gives."""
    if isinstance(layer, nn.Conv2d):
        return rank * (layer.in_channels * math.prod(layer.kernel_size) + layer.out_channels)
    weight = layer.get_parameter("weight")
    return rank * sum(weight.shape)


def _freezing_key(config: SweepConfig) -> str:
    searched = "freeze_fraction" in config.search_space or config.training.freeze_fraction is not None
    return "freeze_fraction" if searched else "freeze_depth"


def _few_values(config: SweepConfig, name: str, strategy: StrategyName, model: str) -> Sequence[Value]:
    """Up to three values that trials of the strategy may have: the lowest, one in the middle, and the highest."""
    domain = config.search_space.get(name)
    if domain is None or not _may_hold(domain, strategy, model):
        return [None]  # the fixed one
    if isinstance(domain, Categorical):
        values = sorted(value for value in domain.choices if isinstance(value, int | float))
        return [values[0], values[len(values) // 2], values[-1]] if values else [None]
    middle = (domain.low + domain.high) / 2
    return [domain.low, int(middle) if domain.is_int else middle, domain.high]


def _may_hold(domain: Domain, strategy: StrategyName, model: str) -> bool:
    """Whether the domain's condition leaves it to trials of the strategy and the model."""
    own = {"strategy": strategy, MODEL: model}
    return all(own[name] in as_list(wanted) for name, wanted in domain.when.items() if name in own)

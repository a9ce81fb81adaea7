"""The fine-tuning strategies: one file each, one contract."""

from rayft.config import StrategyName
from rayft.strategies.adversarial import AdversarialStrategy
from rayft.strategies.base import Strategy
from rayft.strategies.full import FullStrategy
from rayft.strategies.layerwise import LayerwiseStrategy
from rayft.strategies.lora import LoraStrategy
from rayft.strategies.partial import PartialStrategy

__all__ = ["STRATEGIES", "Strategy", "get_strategy"]

STRATEGIES: dict[StrategyName, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (FullStrategy, PartialStrategy, LayerwiseStrategy, AdversarialStrategy, LoraStrategy)
}


def get_strategy(name: StrategyName) -> Strategy:
    """The strategy of this name."""
    return STRATEGIES[name]()

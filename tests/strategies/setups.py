"""A prepared strategy on a tiny model, and real training steps with it."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from rayft.config import Hyperparameters, StrategyName
from rayft.models.layers import LayerMap
from rayft.strategies import Strategy, get_strategy
from tests.conftest import VOCABULARY, tiny_layers, tiny_model

SETTINGS: dict[StrategyName, dict[str, float]] = {
    "full": {},
    "partial": {"freeze_depth": 2},
    "layerwise": {"freeze_depth": 1, "layer_decay": 0.5},
    "adversarial": {"freeze_depth": 1},
    "lora": {"lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.1},
}


@dataclass
class Setup:
    strategy: Strategy
    family: str
    base: PreTrainedModel
    layers: LayerMap
    hp: Hyperparameters
    module: nn.Module

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.module.eval()(**batch()).logits

    def train(self, steps: int = 3) -> None:
        """Steps of AdamW at the strategy's rates, without weight decay: only gradients move anything."""
        factors = self.strategy.rate_factors(self.module, self.layers, self.hp)
        optimizer = torch.optim.AdamW(
            [{"params": p, "lr": 0.01 * factors[name]} for name, p in self.trainable().items()], weight_decay=0.0
        )
        self.module.train()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.module(**batch()).logits, torch.tensor([0, 1, 2, 1])).backward()
            optimizer.step()


def prepare(strategy: StrategyName, family: str, **changes: object) -> Setup:
    base, layers = tiny_model(family), tiny_layers(family)
    hp = Hyperparameters(strategy=strategy, **(SETTINGS[strategy] | changes))  # type: ignore[arg-type]
    torch.manual_seed(0)
    chosen = get_strategy(strategy)
    return Setup(chosen, family, base, layers, hp, chosen.prepare(base, layers, hp))


def batch() -> dict[str, torch.Tensor]:
    """Four rows of 8 tokens, two of them padded."""
    ids = torch.randint(4, len(VOCABULARY), (4, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 5:], mask[3, 2:] = 0, 0
    return {"input_ids": ids * mask, "attention_mask": mask}

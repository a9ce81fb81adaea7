"""Fine-tuning of the upper layers only."""

from torch import nn
from transformers import PreTrainedModel

from rayft.config import Hyperparameters
from rayft.models.layers import LayerMap
from rayft.strategies.base import Strategy, freeze_below


class PartialStrategy(Strategy):
    """Freezes the embeddings and the first `freeze_depth` blocks, and trains the rest at one rate."""

    name = "partial"

    def prepare(self, model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> nn.Module:
        """See `Strategy.prepare`."""
        return freeze_below(model, layers, hp.freeze_depth, hp.dropout)

    def frozen_blocks(self, hp: Hyperparameters) -> int:
        """See `Strategy.frozen_blocks`."""
        return hp.freeze_depth

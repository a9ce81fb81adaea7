"""Full fine-tuning."""

from torch import nn
from transformers import PreTrainedModel

from rayft.config import Hyperparameters
from rayft.models.layers import LayerMap
from rayft.strategies.base import Strategy, freeze_below


class FullStrategy(Strategy):
    """Trains every parameter at one rate."""

    name = "full"

    def prepare(self, model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> nn.Module:
        """See `Strategy.prepare`."""
        return freeze_below(model, layers, 0, hp.dropout)

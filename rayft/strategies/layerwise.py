"""Fine-tuning at a learning rate that falls from the top of the model to its bottom."""

from torch import nn
from transformers import PreTrainedModel

from rayft.config import Hyperparameters
from rayft.models.layers import LayerMap
from rayft.strategies.base import Strategy, freeze_below, trainable_names


class LayerwiseStrategy(Strategy):
    """Trains lower layers more slowly, since they hold what is general, as in Howard & Ruder (2018), section 3.2.

    The factors are geometric in depth, as in ELECTRA's fine-tuning code (Clark et al. 2020): 1 for the head and what
    comes after the blocks, `layer_decay` for the last block, its square for the one below, and so on to the embeddings.
    """

    name = "layerwise"

    def prepare(self, model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> nn.Module:
        """See `Strategy.prepare`."""
        return freeze_below(model, layers, hp.freeze_depth, hp.dropout)

    def frozen_blocks(self, hp: Hyperparameters) -> int:
        """See `Strategy.frozen_blocks`."""
        return hp.freeze_depth

    def rate_factors(self, model: nn.Module, layers: LayerMap, hp: Hyperparameters) -> dict[str, float]:
        """See `Strategy.rate_factors`."""
        from_top = (layers.head + layers.after_blocks, *reversed(layers.blocks), layers.embeddings)
        factors = {name: hp.layer_decay**height for height, names in enumerate(from_top) for name in names}
        return {name: factors[name] for name in trainable_names(model)}

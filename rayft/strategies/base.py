"""The contract of a fine-tuning strategy: which parameters move, how fast, and what is exported."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayft.config import Hyperparameters, StrategyName
from rayft.models.dropout import set_dropout
from rayft.models.layers import LayerMap
from rayft.models.still import moving_statistics

if TYPE_CHECKING:
    from rayft.strategies.adversarial import Adversary


class Strategy(ABC):
    """A way to fine-tune. It holds no state: all that it needs comes with each call.

    A strategy reads only the hyperparameters that `config.STRATEGY_HYPERPARAMETERS` gives it, and those that all share.
    """

    name: ClassVar[StrategyName]

    @abstractmethod
    def prepare(self, model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> nn.Module:
        """Makes the model ready to train, in place.

        Sets `requires_grad` of every parameter and overrides dropout where `hp.dropout` is given. New parameters
        are drawn from torch's global generator, so seed it first.

        Returns:
            The module to train: the model itself, or one around it with parameter names of its own.

        Raises:
            ModelError: If the model can't be trained this way.
        """

    def rate_factors(self, model: nn.Module, layers: LayerMap, hp: Hyperparameters) -> dict[str, float]:
        """The learning rate's factor for every trainable parameter of the prepared module, by name."""
        return dict.fromkeys(trainable_names(model), 1.0)

    def pretrained_names(self, model: nn.Module, layers: LayerMap) -> frozenset[str]:
        """The trainable parameters of the prepared module that L2-SP holds near where they start: all but the head."""
        return frozenset(trainable_names(model)).difference(layers.head)

    def frozen_blocks(self, hp: Hyperparameters) -> int:
        """How many of the first blocks never change, nor what comes before them; 0 if any of that is trained."""
        return 0

    def adversary(
        self, model: nn.Module, num_labels: int, hp: Hyperparameters, device: torch.device, seed: int
    ) -> Adversary | None:
        """What the prepared module trains against, or None; the same seed gives the same one on every worker."""
        return None

    def exported(self, model: nn.Module) -> PreTrainedModel:
        """The prepared module as a plain transformers model. The module itself is left as it is."""
        assert isinstance(model, PreTrainedModel)
        return model


def with_freeze_depth(hp: Hyperparameters, layers: LayerMap) -> Hyperparameters:
    """The same hyperparameters for a model of this depth: `freeze_fraction` of its blocks, at least one if above 0."""
    if hp.freeze_fraction is None:
        return hp
    blocks = max(int(hp.freeze_fraction > 0), math.floor(hp.freeze_fraction * len(layers.blocks) + 0.5))
    return hp.model_copy(update={"freeze_depth": blocks})


def trainable_names(model: nn.Module) -> list[str]:
    """The names of the parameters that train, in the module's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def freeze_below(model: nn.Module, layers: LayerMap, freeze_depth: int, dropout: float | None) -> nn.Module:
    """Freezes the embeddings and the first `freeze_depth` blocks, and lets all else train.

    Frozen layers have no dropout, so that their output for a row never changes and can be computed once.

    Args:
        model: The model, changed in place.
        layers: Its layer map.
        freeze_depth: From 0, which freezes nothing, to the number of blocks.
        dropout: Overrides every dropout that is not frozen, unless None.

    Returns:
        The model.

    Raises:
        ModelError: If the model has fewer blocks.
    """
    frozen = layers.frozen(freeze_depth)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if dropout is not None:
        set_dropout(model, dropout)
    for path in layers.frozen_modules(freeze_depth):
        set_dropout(model.get_submodule(path), 0.0)
    return model


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All that training changes of the prepared module, by name: parameters, and statistics of batch norm."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad} | moving_statistics(model)

"""Low-rank adaptation, through `peft`."""

import copy

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rayft.config import Hyperparameters
from rayft.errors import Fault, ModelError
from rayft.models.dropout import set_dropout
from rayft.models.layers import LayerMap
from rayft.strategies.base import Strategy

PREFIX = "base_model.model."
"""What `peft` puts before every name of the model that it wraps."""


class LoraStrategy(Strategy):
    """Trains a low-rank update of every linear layer or convolution in the blocks (Hu et al. 2022), and all after them.

    Every linear layer, not attention's alone, as Dettmers et al. (2023), section 4, found to be needed to match full
    fine-tuning. What comes after the blocks trains in full like the head, because a checkpoint may lack it (a pooler).
    """

    name = "lora"

    def prepare(self, model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> nn.Module:
        """See `Strategy.prepare`."""
        from peft import LoraConfig, get_peft_model  # takes seconds, which only this strategy should

        if hp.dropout is not None:
            set_dropout(model, hp.dropout)  # before the injection, because `lora_dropout` has a value of its own
        targets = adapted_layers(model, layers)
        adapted: nn.Module = get_peft_model(
            model,
            LoraConfig(
                r=hp.lora_rank,
                lora_alpha=hp.lora_alpha,
                lora_dropout=hp.lora_dropout,
                target_modules=[path for path, _ in targets],
                fan_in_fan_out=isinstance(targets[0][1], Conv1D),  # GPT-2 stores its weights transposed
            ),
        )
        for path, layer in targets:
            if isinstance(layer, nn.Conv2d):  # MobileNet's pad for what they read of a convolution, which peft hides
                shape = {name: getattr(layer, name) for name in ("kernel_size", "stride", "dilation")}
                vars(adapted.get_submodule(PREFIX + path)).update(shape)
        for name in (*layers.after_blocks, *layers.head):
            adapted.get_parameter(PREFIX + name).requires_grad_(True)
        return adapted

    def pretrained_names(self, model: nn.Module, layers: LayerMap) -> frozenset[str]:
        """None: this strategy doesn't read `l2_sp`."""
        return frozenset()

    def exported(self, model: nn.Module) -> PreTrainedModel:
        """A copy of the model with the updates merged into its weights."""
        from peft import PeftModel

        assert isinstance(model, PeftModel)
        return copy.deepcopy(model).merge_and_unload()


def _has_low_rank_update(module: nn.Module) -> bool:
    """Depthwise convolutions have none: each channel's kernel is of rank 1 as it is."""
    return isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def adapted_layers(model: PreTrainedModel, layers: LayerMap) -> list[tuple[str, nn.Module]]:
    """The layers of a model that get an update, by path.

    Raises:
        ModelError: There is none.
    """
    linear = [
        (path, module)
        for path, module in model.named_modules()
        if path.startswith(f"{layers.block_path}.") and _has_low_rank_update(module)
    ]
    if not linear:
        rule = f"strategy lora needs linear layers or convolutions in the blocks, but {type(model).__name__} has none"
        raise ModelError([Fault(where=layers.block_path, key="strategy", rule=rule)])
    return linear

import dataclasses

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rayft.config import Hyperparameters, TaskName
from rayft.errors import ModelError
from rayft.strategies.lora import LoraStrategy
from tests.conftest import FAMILIES, IMAGE_FAMILIES, IMAGE_SIZE, LM_FAMILIES, tiny_layers, tiny_model
from tests.strategies.setups import batch, prepare


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_blocks_is_adapted_and_no_other(family: str) -> None:
    plain, layers = tiny_model(family), tiny_layers(family)
    linear = {path for path, m in plain.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    expected = {path for path in linear if path.startswith(layers.block_path)}
    setup = prepare("lora", family)
    adapted = {name.partition(".lora_")[0] for name in setup.trainable() if ".lora_A." in name}
    assert adapted == {f"base_model.model.{path}" for path in expected}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_at_the_pretrained_model(family: str) -> None:
    with torch.no_grad():
        pretrained = tiny_model(family).eval()(**batch()).logits
    torch.testing.assert_close(prepare("lora", family).logits(), pretrained)


def test_rank_alpha_and_dropout_reach_the_adapters() -> None:
    setup = prepare("lora", "bert", lora_rank=2, lora_alpha=6.0, lora_dropout=0.25)
    adapted = setup.module.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    assert adapted.lora_A["default"].weight.shape == (2, 32)
    assert adapted.scaling["default"] == 3.0
    assert adapted.lora_dropout["default"].p == 0.25


def test_a_fixed_l2_sp_of_other_strategies_is_not_read() -> None:
    setup = prepare("lora", "bert", l2_sp=0.1)
    assert setup.strategy.pretrained_names(setup.module, setup.layers) == frozenset()


def test_blocks_without_linear_layers_are_refused() -> None:
    nowhere = dataclasses.replace(tiny_layers("bert"), block_path="bert.elsewhere")
    with pytest.raises(ModelError, match="strategy lora needs linear layers or convolutions in the blocks"):
        LoraStrategy().prepare(tiny_model("bert"), nowhere, Hyperparameters(strategy="lora"))


OTHERS: list[tuple[TaskName, str]] = [
    *(("image-classification", family) for family in IMAGE_FAMILIES),
    *(("causal-lm", family) for family in LM_FAMILIES),
]


@pytest.mark.parametrize(("task", "family"), OTHERS)
def test_convolutions_and_decoders_are_adapted_too(task: TaskName, family: str) -> None:
    layers, hp = tiny_layers(family, task), Hyperparameters(strategy="lora", lora_rank=2)
    plain = tiny_model(family, task=task).eval()
    adapted = LoraStrategy().prepare(tiny_model(family, task=task), layers, hp).eval()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    low_rank = {name.partition(".lora_")[0] for name in trained if ".lora_A." in name}
    expected = {
        path
        for path, module in plain.named_modules()
        if path.startswith(layers.block_path)
        and (isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    }
    assert low_rank == {f"base_model.model.{path}" for path in expected} != set()

    generator = torch.Generator().manual_seed(0)
    if task == "causal-lm":
        inputs = torch.randint(4, 30, (2, 9), generator=generator)
    else:
        inputs = torch.randn((2, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(adapted(inputs).logits, plain(inputs).logits, rtol=1e-4, atol=1e-5)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        changed = adapted(inputs).logits
        assert not torch.allclose(changed, plain(inputs).logits, atol=1e-3)
        merged = LoraStrategy().exported(adapted).eval()
        torch.testing.assert_close(merged(inputs).logits, changed, rtol=1e-3, atol=1e-3)

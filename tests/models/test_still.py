import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rayft.config import Hyperparameters, StrategyName, TaskName
from rayft.models.still import has_moving_statistics, moving_statistics, train_above
from rayft.strategies import get_strategy
from rayft.strategies.base import trained_tensors
from tests.conftest import IMAGE_FAMILIES, IMAGE_SIZE, NUM_BLOCKS, tiny_layers, tiny_model

TASK: TaskName = "image-classification"
NORMALISED = ["resnet", "efficientnet", "mobilenet-v2"]


def prepared(family: str, strategy: StrategyName, **values: float) -> tuple[nn.Module, int]:
    """A module ready to train, and how many of its blocks are frozen."""
    hp = Hyperparameters(strategy=strategy, **values)  # type: ignore[arg-type]
    chosen = get_strategy(strategy)
    module = chosen.prepare(tiny_model(family, task=TASK), tiny_layers(family, TASK), hp)
    return module, chosen.frozen_blocks(hp)


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers() if "running" in name or "num_b" in name}


def train(module: nn.Module, family: str, frozen: int, steps: int = 2) -> None:
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    train_above(module, tiny_layers(family, TASK), frozen)
    for _ in range(steps):
        pixels = torch.randn((4, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(pixel_values=pixels).logits, torch.tensor([0, 1, 2, 1])).backward()
        optimizer.step()


@pytest.mark.parametrize("depth", range(NUM_BLOCKS + 1))
@pytest.mark.parametrize("family", NORMALISED)
def test_statistics_move_where_layers_train_and_nowhere_else(family: str, depth: int) -> None:
    strategy: StrategyName = "partial" if depth else "full"
    module, frozen = prepared(family, strategy, freeze_depth=depth)
    before, layers = statistics(module), tiny_layers(family, TASK)
    train(module, family, frozen)
    still = layers.frozen(depth)
    moved = {name for name, buffer in statistics(module).items() if not torch.equal(buffer, before[name])}
    expected = {name for name in before if f"{name.rpartition('.')[0]}.weight" not in still}
    assert moved == expected
    assert bool(still) == (moved < before.keys())
    assert moved == moving_statistics(module).keys()
    assert trained_tensors(module).keys() == moved | {n for n, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", NORMALISED)
def test_adapted_blocks_keep_their_statistics(family: str) -> None:
    module, frozen = prepared(family, "lora", lora_rank=2)
    before = statistics(module)
    train(module, family, frozen)
    moved = {name for name, buffer in statistics(module).items() if not torch.equal(buffer, before[name])}
    after_blocks = {f"base_model.model.{name}" for name in tiny_layers(family, TASK).after_blocks}
    assert moved == {name for name in before if f"{name.rpartition('.')[0]}.weight" in after_blocks}
    assert moved == moving_statistics(module).keys()


def test_frozen_layers_drop_nothing() -> None:
    module, frozen = prepared("vit", "partial", freeze_depth=2, dropout=0.5)
    train_above(module, tiny_layers("vit", TASK), frozen)
    layers = tiny_layers("vit", TASK)
    training = {path for path, one in module.named_modules() if isinstance(one, nn.Dropout) and one.training}
    assert training and all(path.startswith(f"{layers.block_path}.2.") for path in training)
    train_above(module, layers, 0)
    assert all(one.training for one in module.modules())


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_models_with_statistics_are_known(family: str) -> None:
    model = tiny_model(family, task=TASK)
    assert has_moving_statistics(model) == (family in NORMALISED)
    assert has_moving_statistics(model) == any(isinstance(one, _BatchNorm) for one in model.modules())
    assert bool(moving_statistics(model)) == has_moving_statistics(model)

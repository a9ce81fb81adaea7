"""What every strategy keeps, on encoders and decoders. A new strategy adds its lines to `SETTINGS` and `FROZEN`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rayft.config import STRATEGIES as CONFIG_STRATEGIES
from rayft.config import StrategyName
from rayft.errors import ModelError
from rayft.models.layers import LayerMap
from rayft.strategies import STRATEGIES, get_strategy
from rayft.strategies.lora import PREFIX
from tests.conftest import NUM_BLOCKS
from tests.strategies.setups import SETTINGS, Setup, batch, prepare


def embeddings_and_blocks(layers: LayerMap, count: int) -> set[str]:
    return {*layers.embeddings, *(name for block in layers.blocks[:count] for name in block)}


FROZEN: dict[StrategyName, Callable[[LayerMap], set[str]]] = {
    "full": lambda layers: set(),
    "partial": lambda layers: embeddings_and_blocks(layers, 2),
    "layerwise": lambda layers: embeddings_and_blocks(layers, 1),
    "adversarial": lambda layers: embeddings_and_blocks(layers, 1),
    "lora": lambda layers: embeddings_and_blocks(layers, NUM_BLOCKS),
}
"""The base model's parameters that must never move under `SETTINGS`; all others must."""


@pytest.fixture(params=["bert", "deberta-v2", "gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CONFIG_STRATEGIES)
def setup(request: pytest.FixtureRequest, family: str) -> Setup:
    return prepare(request.param, family)


def base_name(name: str) -> str:
    """The base model's name of a prepared module's parameter."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def test_registry_and_config_agree() -> None:
    assert tuple(STRATEGIES) == CONFIG_STRATEGIES
    assert set(SETTINGS) == set(FROZEN) == set(CONFIG_STRATEGIES)
    for name in CONFIG_STRATEGIES:
        assert get_strategy(name).name == name


def test_what_must_move_moves_and_nothing_else_does(setup: Setup) -> None:
    before = {name: p.detach().clone() for name, p in setup.module.named_parameters()}
    setup.train()
    frozen = FROZEN[setup.strategy.name](setup.layers)
    for name, parameter in setup.module.named_parameters():
        if "lora_" not in name:
            assert parameter.requires_grad == (base_name(name) not in frozen), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_every_trainable_parameter_has_a_rate_and_no_other(setup: Setup) -> None:
    factors = setup.strategy.rate_factors(setup.module, setup.layers, setup.hp)
    assert list(factors) == list(setup.trainable())
    if setup.strategy.name != "layerwise":
        assert set(factors.values()) == {1.0}


def test_trainable_tensors_are_all_that_a_checkpoint_needs(setup: Setup, tmp_path: Path) -> None:
    setup.train()
    save_file({name: p.detach().contiguous() for name, p in setup.trainable().items()}, tmp_path / "model.safetensors")
    loaded = prepare(setup.strategy.name, setup.family)
    assert not torch.equal(loaded.logits(), setup.logits())
    missing, unexpected = loaded.module.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not unexpected and not set(missing) & set(setup.trainable())
    assert torch.equal(loaded.logits(), setup.logits())


def test_export_is_a_plain_model_with_the_trained_logits(setup: Setup, tmp_path: Path) -> None:
    setup.train()
    before = {name: p.detach().clone() for name, p in setup.module.named_parameters()}
    trained = setup.logits()
    exported = setup.strategy.exported(setup.module)
    exported.save_pretrained(tmp_path)

    plain, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert [path.name for path in tmp_path.glob("adapter*")] == []
    with torch.no_grad():
        logits = plain.eval()(**batch()).logits
    if setup.strategy.name == "lora":
        torch.testing.assert_close(logits, trained, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(logits, trained)
    after = dict(setup.module.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(setup.logits(), trained), "the module trains on as if it had not been exported"


def test_l2_sp_holds_what_was_pretrained(setup: Setup) -> None:
    names = setup.strategy.pretrained_names(setup.module, setup.layers)
    if setup.strategy.name == "lora":
        assert names == frozenset()
    else:
        assert names == set(setup.trainable()) - set(setup.layers.head) != frozenset()


def test_only_the_adversarial_strategy_has_an_adversary(setup: Setup) -> None:
    adversary = setup.strategy.adversary(setup.module, 3, setup.hp, torch.device("cpu"), seed=0)
    assert (adversary is not None) == (setup.strategy.name == "adversarial")


def test_the_same_seed_prepares_the_same_module(setup: Setup) -> None:
    again = prepare(setup.strategy.name, setup.family)
    for (name, parameter), other in zip(setup.module.named_parameters(), again.module.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_dropout_is_overridden_where_layers_train(family: str) -> None:
    for name in CONFIG_STRATEGIES:
        setup = prepare(name, family, dropout=0.5)
        dropouts = {path: m.p for path, m in setup.module.named_modules() if isinstance(m, torch.nn.Dropout)}
        lora = {path: p for path, p in dropouts.items() if "lora_dropout" in path}
        assert all(p == setup.hp.lora_dropout for p in lora.values()) and bool(lora) == (name == "lora")
        last_block = setup.base.get_submodule(f"{setup.layers.block_path}.{NUM_BLOCKS - 1}")
        numbers = [m.attention_dropout for m in last_block.modules() if hasattr(m, "attention_dropout")]
        own = [m.p for path, m in last_block.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" not in path]
        assert set(own + [p for p in numbers if isinstance(p, float)]) == {0.5}


@pytest.mark.parametrize("strategy", ["partial", "layerwise", "adversarial"])
@pytest.mark.parametrize("dropout", [None, 0.5])
def test_frozen_layers_give_the_same_output_every_time(
    family: str, strategy: StrategyName, dropout: float | None
) -> None:
    setup = prepare(strategy, family, freeze_depth=2, dropout=dropout)
    outputs: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        outputs.append(output if isinstance(output, torch.Tensor) else output[0])

    setup.module.get_submodule(f"{setup.layers.block_path}.1").register_forward_hook(keep)
    with torch.no_grad():
        setup.module.train()(**batch())
    setup.train()
    with torch.no_grad():
        setup.module.eval()(**batch())
    assert torch.equal(outputs[0], outputs[-1])


@pytest.mark.parametrize("strategy", ["partial", "layerwise", "adversarial"])
def test_freezing_all_blocks_trains_the_head_and_what_is_after_the_blocks(family: str, strategy: StrategyName) -> None:
    setup = prepare(strategy, family, freeze_depth=NUM_BLOCKS)
    assert set(setup.trainable()) == {*setup.layers.after_blocks, *setup.layers.head}


@pytest.mark.parametrize("strategy", ["partial", "layerwise", "adversarial"])
def test_freezing_too_many_blocks_is_refused(strategy: StrategyName) -> None:
    with pytest.raises(ModelError, match="must lie in 0 to 3"):
        prepare(strategy, "bert", freeze_depth=NUM_BLOCKS + 1)

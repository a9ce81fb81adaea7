import copy

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM

from rayft.config import STRATEGIES, Hyperparameters, StrategyName
from rayft.models.sharing import own_trainable, sharing_copy
from rayft.strategies import get_strategy
from tests.conftest import FAMILIES, tiny_layers, tiny_model
from tests.strategies.setups import SETTINGS, Setup


def addresses(module: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in module.named_parameters()}


def train(strategy: StrategyName, base: nn.Module, family: str) -> Setup:
    """Some real steps of a trial on a copy of the base model."""
    chosen, layers = get_strategy(strategy), tiny_layers(family)
    hp = Hyperparameters(strategy=strategy, **SETTINGS[strategy])  # type: ignore[arg-type]
    shared = sharing_copy(base)
    module = chosen.prepare(shared, layers, hp)
    own_trainable(module)
    setup = Setup(chosen, family, shared, layers, hp, module)
    torch.manual_seed(0)  # of dropout
    setup.train()
    return setup


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copys_parameters_lie_where_the_originals_do(family: str) -> None:
    model = tiny_model(family)
    shared = sharing_copy(model)

    assert addresses(shared) == addresses(model)
    for (name, one), other in zip(model.named_parameters(), shared.parameters(), strict=True):
        assert one is not other, name


def test_a_copys_modules_buffers_and_flags_are_its_own() -> None:
    model = tiny_model("bert")
    shared = sharing_copy(model)
    buffers = dict(model.named_buffers())
    assert buffers and buffers.keys() == dict(shared.named_buffers()).keys()
    for name, buffer in shared.named_buffers():
        assert buffer.data_ptr() != buffers[name].data_ptr() and torch.equal(buffer, buffers[name]), name
    shared.requires_grad_(False)
    shared.eval()
    shared.classifier = nn.Linear(32, 7)
    shared.config.pad_token_id = 9

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training and model.classifier.out_features == 3 and model.config.pad_token_id == 0


def test_statistics_that_move_in_training_are_a_copys_own() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(model.state_dict())
    shared = sharing_copy(model).train()
    shared(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) + 5)

    assert not torch.equal(shared[1].running_mean, before["1.running_mean"])
    assert torch.equal(model[1].running_mean, before["1.running_mean"])


def test_what_is_frozen_stays_so_in_a_copy_and_gradients_stay_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model(torch.ones(1, 4)).sum().backward()
    shared = sharing_copy(model)

    assert [p.requires_grad for p in shared.parameters()] == [False, False, True, True]
    assert model[1].weight.grad is not None and shared[1].weight.grad is None


def test_only_what_trains_gets_memory_of_its_own() -> None:
    model = tiny_model("bert")
    shared = sharing_copy(model)
    for parameter in shared.bert.parameters():
        parameter.requires_grad_(False)
    own_trainable(shared)
    there, here = addresses(model), addresses(shared)

    assert {name for name in there if there[name] != here[name]} == {"classifier.weight", "classifier.bias"}
    for (name, one), other in zip(model.named_parameters(), shared.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_training_leaves_the_base_as_it_is_bit_for_bit(family: str, strategy: StrategyName) -> None:
    base = tiny_model(family)
    before = copy.deepcopy(base.state_dict())
    trained = train(strategy, base, family)
    exported = trained.strategy.exported(trained.module)  # merges LoRA's updates into weights

    moved = [name for name, tensor in exported.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved, "it was trained"
    assert base.state_dict().keys() == before.keys()
    assert [name for name, tensor in base.state_dict().items() if not torch.equal(tensor, before[name])] == []
    assert all(p.requires_grad and p.grad is None for p in base.parameters())


def test_two_copies_train_without_meeting() -> None:
    base = tiny_model("bert")
    alone = train("full", tiny_model("bert"), "bert")
    train("full", base, "bert")
    second = train("full", base, "bert")

    for (name, one), other in zip(alone.module.named_parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_tied_weights_stay_tied() -> None:
    model = BertForMaskedLM(FAMILIES["bert"]())
    embeddings, decoder = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert decoder.weight is embeddings.weight
    before = embeddings.weight.detach().clone()
    shared = sharing_copy(model)
    embeddings, decoder = shared.bert.embeddings.word_embeddings, shared.cls.predictions.decoder
    assert decoder.weight is embeddings.weight
    own_trainable(shared)
    assert decoder.weight is embeddings.weight and decoder.weight.data_ptr() == embeddings.weight.data_ptr()

    with torch.no_grad():
        decoder.weight.add_(1.0)
    assert torch.equal(embeddings.weight, before + 1.0)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before)

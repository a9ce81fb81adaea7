import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DebertaV2ForSequenceClassification, PreTrainedModel

from rayft.models.layers import LayerMap, map_layers
from rayft.models.prefix_input import PrefixInput, block_output
from rayft.strategies.base import freeze_below
from tests.conftest import FAMILIES, NUM_BLOCKS, tiny_layers, tiny_model

LENGTHS = (9, 4, 1)
DEPTHS = range(1, NUM_BLOCKS + 1)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def padded_batch(lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """Rows of several lengths, padded with token 0."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(4, 30, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


def hidden_alone(model: PreTrainedModel, layers: LayerMap, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the first blocks give for each row by itself, with zeros after its end."""
    model.eval()
    lengths = inputs["attention_mask"].sum(1).tolist()
    with torch.no_grad():
        rows = [
            block_output(model, layers, depth, {k: v[i : i + 1, :n] for k, v in inputs.items()})[0]
            for i, n in enumerate(lengths)
        ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def frozen_model(family: str, depth: int) -> PreTrainedModel:
    """Ready to train, with dropout where it isn't frozen."""
    model = tiny_model(family)
    model.config.pad_token_id = 0
    freeze_below(model, tiny_layers(family), depth, dropout=0.1)
    return model


def training_pass(
    model: nn.Module, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The logits of a pass with dropout, and all gradients."""
    torch.manual_seed(3)
    model.train().zero_grad(set_to_none=True)
    logits = model(**inputs).logits
    nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])[: len(logits)]).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_the_same_from_the_middle(family: str, depth: int) -> None:
    """Also its dropout: passing blocks over draws no random numbers and misses none."""
    model, inputs = frozen_model(family, depth), padded_batch()
    hidden = hidden_alone(model, tiny_layers(family), depth, inputs)
    logits, gradients = training_pass(model, inputs)
    with PrefixInput(model, tiny_layers(family), depth).feeding(hidden):
        fed_logits, fed_gradients = training_pass(model, inputs)
    torch.testing.assert_close(fed_logits, logits, **CLOSE)
    assert {name for name, gradient in gradients.items() if gradient is None} == tiny_layers(family).frozen(depth)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fed_gradients[name], gradient, msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_given_hidden_states_are_what_counts(family: str) -> None:
    """The prefix itself has no part in the logits, so a wrong one would show."""
    model, inputs = frozen_model(family, 2).eval(), padded_batch()
    hidden = hidden_alone(model, tiny_layers(family), 2, inputs)
    prefix = PrefixInput(model, tiny_layers(family), 2)
    with torch.no_grad():
        logits = model(**inputs).logits
        with prefix.feeding(hidden + torch.randn(hidden.shape[-1])):
            assert not torch.allclose(model(**inputs).logits, logits, atol=1e-3)
        for name in {name for block in tiny_layers(family).blocks[:2] for name in block}:
            model.get_parameter(name).fill_(torch.nan)
        with prefix.feeding(hidden):
            torch.testing.assert_close(model(**inputs).logits, logits, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_deeper_from_shallower_is_as_from_the_tokens(family: str) -> None:
    model, layers, inputs = tiny_model(family).eval(), tiny_layers(family), padded_batch()
    real = inputs["attention_mask"].bool()
    shallow = hidden_alone(model, layers, 1, inputs)
    with torch.no_grad(), PrefixInput(model, layers, 1).feeding(shallow):
        deep = block_output(model, layers, 3, inputs)
    torch.testing.assert_close(deep[real], hidden_alone(model, layers, 3, inputs)[real], **CLOSE)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_may_keep_their_key_value_cache(family: str, use_cache: bool) -> None:
    model, layers, inputs = tiny_model(family).eval(), tiny_layers(family), padded_batch()
    model.config.pad_token_id = 0
    hidden = hidden_alone(model, layers, 2, inputs)
    with torch.no_grad():
        logits = model(**inputs).logits
        with PrefixInput(model, layers, 2).feeding(hidden):
            torch.testing.assert_close(model(**inputs, use_cache=use_cache).logits, logits, **CLOSE)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_convolution_between_blocks_still_runs(depth: int) -> None:
    config = FAMILIES["deberta-v2"]()
    config.conv_kernel_size, config.conv_act = 3, "gelu"
    model, inputs = DebertaV2ForSequenceClassification(config).eval(), padded_batch()
    layers = map_layers(model)
    with torch.no_grad():
        logits = model(**inputs).logits
        with PrefixInput(model, layers, depth).feeding(hidden_alone(model, layers, depth, inputs)):
            torch.testing.assert_close(model(**inputs).logits, logits, **CLOSE)


def test_the_model_is_untouched_outside() -> None:
    model, inputs = tiny_model("bert").train(), padded_batch()
    model.bert.encoder.layer[0].eval()
    modes = {path: module.training for path, module in model.named_modules()}
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    state = torch.get_rng_state()
    prefix = PrefixInput(model, tiny_layers("bert"), 2)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"hidden must be of shape \[3, 9, 32\], but got \[3, 8, 32\]"):  # noqa: SIM117
        with prefix.feeding(torch.zeros(3, 8, 32)):
            model(**inputs)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    copy.deepcopy(model)(**inputs)


def test_a_forward_that_someone_else_has_replaced_comes_back() -> None:
    model = tiny_model("bert").eval()
    block = model.bert.encoder.layer[0]
    own = block.forward
    block.forward = own
    with PrefixInput(model, tiny_layers("bert"), 1).feeding(torch.zeros(3, 9, 32)):
        model(**padded_batch())
        assert block.forward != own
    assert block.forward == own


def test_blocks_that_give_no_tensor_are_refused() -> None:
    model = tiny_model("bert")
    model.bert.encoder.layer[0].forward = lambda *_args, **_kwargs: {"hidden": 1}
    with pytest.raises(TypeError, match="must give a tensor or a tuple that starts with one, but gave dict"):
        PrefixInput(model, tiny_layers("bert"), 1)


@pytest.fixture
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap_first", [True, False])
def test_distributed_data_parallel_around_the_model(wrap_first: bool) -> None:
    model, inputs = frozen_model("bert", 2), padded_batch()
    hidden = hidden_alone(model, tiny_layers("bert"), 2, inputs)
    _, gradients = training_pass(model, inputs)
    if wrap_first:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        prefix = PrefixInput(model, tiny_layers("bert"), 2)
    else:
        prefix = PrefixInput(model, tiny_layers("bert"), 2)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    with prefix.feeding(hidden):
        _, fed = training_pass(wrapped, inputs)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fed[f"module.{name}"], gradient, msg=name, rtol=1e-4, atol=1e-6)

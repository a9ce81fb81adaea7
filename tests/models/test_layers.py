from collections import Counter

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    XLMConfig,
    XLMForSequenceClassification,
)

from rayft.errors import ModelError
from rayft.models.layers import LayerMap, map_layers
from tests.conftest import FAMILIES, NUM_BLOCKS, tiny_layers, tiny_model

BLOCK_PATHS = {
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "deberta-v2": "deberta.encoder.layer",
    "modernbert": "model.layers",
    "gpt2": "transformer.h",
    "llama": "model.layers",
}
TOKENS = torch.tensor([[2, 9, 5, 17, 12, 3]])


def last_block_output(model: PreTrainedModel, layers: LayerMap) -> torch.Tensor:
    outputs = []
    last = model.get_submodule(f"{layers.block_path}.{len(layers.blocks) - 1}")
    handle = last.register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        model.eval()(input_ids=TOKENS)
    handle.remove()
    return outputs[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_place(family: str) -> None:
    layers = tiny_layers(family)
    placed = Counter([*layers.embeddings, *layers.after_blocks, *layers.head])
    for block in layers.blocks:
        placed.update(block)
    assert placed == Counter(name for name, _ in tiny_model(family).named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_found_in_order(family: str) -> None:
    layers = tiny_layers(family)
    assert layers.block_path == BLOCK_PATHS[family]
    assert len(layers.blocks) == NUM_BLOCKS
    for index, block in enumerate(layers.blocks):
        assert block and all(name.startswith(f"{BLOCK_PATHS[family]}.{index}.") for name in block)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_depends_on_the_embeddings_and_on_nothing_after_it(family: str) -> None:
    model, layers = tiny_model(family), tiny_layers(family)
    before = last_block_output(model, layers)
    for name in (*layers.embeddings, *layers.after_blocks, *layers.head):
        parameter = model.get_parameter(name)
        original = parameter.detach().clone()
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        changed = not torch.equal(last_block_output(model, layers), before)
        assert changed == (name in layers.embeddings), name
        parameter.data.copy_(original)


@pytest.mark.parametrize(
    ("family", "embeddings", "after_blocks", "head"),
    [
        ("bert", "bert.embeddings.", "bert.pooler.", "classifier."),
        ("distilbert", "distilbert.embeddings.", None, ("pre_classifier.", "classifier.")),
        ("roberta", "roberta.embeddings.", None, "classifier."),
        ("electra", ("electra.embeddings.", "electra.embeddings_project."), None, "classifier."),
        (
            "deberta-v2",
            ("deberta.embeddings.", "deberta.encoder.rel_embeddings.", "deberta.encoder.LayerNorm."),
            None,
            ("pooler.", "classifier."),
        ),
        ("modernbert", "model.embeddings.", "model.final_norm.", ("head.", "classifier.")),
        ("gpt2", ("transformer.wte.", "transformer.wpe."), "transformer.ln_f.", "score."),
        ("llama", "model.embed_tokens.", "model.norm.", "score."),
    ],
)
def test_what_lies_around_the_blocks(
    family: str, embeddings: str | tuple[str, ...], after_blocks: str | None, head: str | tuple[str, ...]
) -> None:
    layers = tiny_layers(family)
    assert layers.embeddings and all(name.startswith(embeddings) for name in layers.embeddings)
    assert layers.head and all(name.startswith(head) for name in layers.head)
    if after_blocks is None:
        assert layers.after_blocks == ()
    else:
        assert layers.after_blocks and all(name.startswith(after_blocks) for name in layers.after_blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_mapping_leaves_the_model_as_it_was(family: str) -> None:
    model = tiny_model(family).train()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {path: module.training for path, module in model.named_modules()}
    map_layers(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [frozen]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_convolution_between_blocks_is_frozen_with_the_first() -> None:
    config = FAMILIES["deberta-v2"]()
    config.conv_kernel_size, config.conv_act = 3, "gelu"
    layers = map_layers(DebertaV2ForSequenceClassification(config))
    assert {n for n in layers.frozen(1) if ".conv." in n} == {n for n in layers.embeddings if ".conv." in n} != set()


@pytest.mark.parametrize("family", FAMILIES)
def test_freeze_depth_counts_blocks_from_the_embeddings_up(family: str) -> None:
    layers = tiny_layers(family)
    assert layers.frozen(0) == frozenset()
    assert layers.frozen(1) == {*layers.embeddings, *layers.blocks[0]}
    assert layers.frozen(NUM_BLOCKS) == {*layers.embeddings, *(name for block in layers.blocks for name in block)}


@pytest.mark.parametrize("freeze_depth", [-1, NUM_BLOCKS + 1])
def test_freezing_more_blocks_than_there_are_is_refused(freeze_depth: int) -> None:
    with pytest.raises(ModelError, match=rf"freeze_depth: must lie in 0 to 3, .* but got {freeze_depth}"):
        tiny_layers("bert").frozen(freeze_depth)


def test_shared_blocks_are_refused() -> None:
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
    )
    with pytest.raises(
        ModelError, match=r"AlbertForSequenceClassification .*without sharing weights, but ran as 0, 0, 0"
    ):
        map_layers(AlbertForSequenceClassification(config))


def test_two_stacks_are_refused_by_name() -> None:
    config = BartConfig(
        vocab_size=40,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
    )
    with pytest.raises(ModelError, match=r"one list of blocks .* has model\.encoder\.layers, model\.decoder\.layers"):
        map_layers(BartForSequenceClassification(config))


def test_layers_that_are_not_blocks_are_refused() -> None:
    config = XLMConfig(vocab_size=40, emb_dim=32, n_layers=2, n_heads=2, max_position_embeddings=64)
    with pytest.raises(
        ModelError, match=r"one list of blocks .* has transformer\.attentions, transformer\.layer_norm1"
    ):
        map_layers(XLMForSequenceClassification(config))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="no base model apart from its head"):
        map_layers(tiny_model("bert").base_model)


def test_a_model_that_needs_more_than_token_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")

    def forward(input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> None:
        raise ValueError("pixel_values are needed")

    monkeypatch.setattr(model.base_model, "forward", forward)
    with pytest.raises(ModelError, match=r"can't be run on token ids alone \(pixel_values are needed\)"):
        map_layers(model)

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

from rayft.config import TaskName
from rayft.errors import ModelError
from rayft.models.layers import LayerMap, map_layers
from tests.conftest import FAMILIES, IMAGE_SIZE, LM_FAMILIES, NUM_BLOCKS, tiny_layers, tiny_model

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
BLOCK_PATHS_OF_OTHERS: dict[tuple[TaskName, str], str] = {
    ("causal-lm", "gpt2"): "transformer.h",
    ("causal-lm", "llama"): "model.layers",
    ("causal-lm", "qwen2"): "model.layers",
    ("causal-lm", "qwen3"): "model.layers",
    ("causal-lm", "smollm3"): "model.layers",
    ("image-classification", "resnet"): "resnet.encoder.stages",
    ("image-classification", "vit"): "vit.layers",
    ("image-classification", "convnext"): "convnext.encoder.stages",
    ("image-classification", "efficientnet"): "efficientnet.encoder.blocks",
    ("image-classification", "mobilenet-v2"): "mobilenet_v2.layer",
}
MODELS: list[tuple[TaskName, str]] = [
    *(("text-classification", family) for family in FAMILIES),
    *BLOCK_PATHS_OF_OTHERS,
]
ALL = pytest.mark.parametrize(("task", "family"), MODELS, ids=[f"{task} {family}" for task, family in MODELS])
TOKENS = torch.tensor([[2, 9, 5, 17, 12, 3]])
PIXELS = torch.rand((1, 3, IMAGE_SIZE, IMAGE_SIZE), generator=torch.Generator().manual_seed(0))


def last_block_output(model: PreTrainedModel, layers: LayerMap) -> torch.Tensor:
    outputs = []
    last = model.get_submodule(f"{layers.block_path}.{len(layers.blocks) - 1}")
    handle = last.register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        model.eval()(PIXELS if model.main_input_name == "pixel_values" else TOKENS)
    handle.remove()
    return outputs[0]


@ALL
def test_every_parameter_is_in_exactly_one_place(task: TaskName, family: str) -> None:
    layers = tiny_layers(family, task)
    placed = Counter([*layers.embeddings, *layers.after_blocks, *layers.head])
    for block in layers.blocks:
        placed.update(block)
    assert placed == Counter(name for name, _ in tiny_model(family, task=task).named_parameters())


@ALL
def test_blocks_are_found_in_order(task: TaskName, family: str) -> None:
    layers = tiny_layers(family, task)
    expected = BLOCK_PATHS_OF_OTHERS.get((task, family)) or BLOCK_PATHS[family]
    assert layers.block_path == expected
    assert len(layers.blocks) == (16 if family == "mobilenet-v2" else NUM_BLOCKS)
    for index, block in enumerate(layers.blocks):
        assert block and all(name.startswith(f"{expected}.{index}.") for name in block)


@ALL
def test_the_last_block_depends_on_the_embeddings_and_on_nothing_after_it(task: TaskName, family: str) -> None:
    model, layers = tiny_model(family, task=task), tiny_layers(family, task)
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


@pytest.mark.parametrize(
    ("family", "embeddings", "after_blocks", "head", "input_modules"),
    [
        ("resnet", "resnet.embedder.", None, "classifier.", 1),
        ("vit", "vit.embeddings.", "vit.layernorm.", "classifier.", 1),
        ("convnext", "convnext.embeddings.", "convnext.layernorm.", "classifier.", 0),
        ("efficientnet", "efficientnet.embeddings.", "efficientnet.encoder.top_", "classifier.", 1),
        ("mobilenet-v2", "mobilenet_v2.conv_stem.", "mobilenet_v2.conv_1x1.", "classifier.", 3),
    ],
)
def test_what_lies_around_the_blocks_of_image_models(
    family: str, embeddings: str, after_blocks: str | None, head: str, input_modules: int
) -> None:
    layers = tiny_layers(family, "image-classification")
    assert layers.embeddings and all(name.startswith(embeddings) for name in layers.embeddings)
    assert layers.head and all(name.startswith(head) for name in layers.head)
    assert bool(layers.after_blocks) == bool(after_blocks)
    assert all(name.startswith(after_blocks or "") for name in layers.after_blocks)
    assert len(layers.input_modules) == input_modules
    assert all(path.startswith(embeddings) for path in layers.input_modules)


@pytest.mark.parametrize("family", LM_FAMILIES)
def test_a_head_that_is_the_embeddings_is_frozen_with_them(family: str) -> None:
    model, layers = tiny_model(family, task="causal-lm"), tiny_layers(family, "causal-lm")
    is_shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_shared == (family in ("gpt2", "smollm3"))
    assert layers.head == (() if is_shared else ("lm_head.weight",))
    assert next(name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight) in set(
        layers.embeddings
    )
    assert len(layers.after_blocks) == (2 if family == "gpt2" else 1)


@ALL
def test_mapping_leaves_the_model_as_it_was(task: TaskName, family: str) -> None:
    model = tiny_model(family, task=task).train()
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


@ALL
def test_freeze_depth_counts_blocks_from_the_embeddings_up(task: TaskName, family: str) -> None:
    layers = tiny_layers(family, task)
    assert layers.frozen(0) == frozenset()
    assert layers.frozen(1) == {*layers.embeddings, *layers.blocks[0]}
    every = {*layers.embeddings, *(name for block in layers.blocks for name in block)}
    assert layers.frozen(len(layers.blocks)) == every


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

"""Tiny models of every family and a tokenizer, made in code: no hub, no downloads."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    ConvNextConfig,
    DebertaV2Config,
    DistilBertConfig,
    EfficientNetConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MobileNetV2Config,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    ResNetConfig,
    RobertaConfig,
    SmolLM3Config,
    ViTConfig,
)

from rayft.config import TaskName
from rayft.models.layers import LayerMap, map_layers
from rayft.tasks import get_task

WORDS = ["the", "it", "is", "was", "not", "very", "good", "great", "nice", "lovely", "bad", "poor", "awful", "dull"]
WORDS += ["film", "book", "food", "song", "team", "game", "goal", "bank", "market", "price", "phone", "chip", "code"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = {token: index for index, token in enumerate(SPECIAL + WORDS)}
CHAT = ["<|im_start|>", "<|im_end|>", "system", "user", "assistant"]
LM_VOCABULARY = {token: index for index, token in enumerate(SPECIAL + WORDS + CHAT)}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML's."""
IMAGE_SIZE = 16
NUM_BLOCKS = 3


torch.set_num_threads(1)  # tiny products wait for each other's threads more than they compute


@pytest.fixture(scope="session", autouse=True)
def cache_of_frozen_layers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leaves the user's own alone, for the programs that tests start as well."""
    os.environ["RAYFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


_SHAPE = {"hidden_size": 32, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2}
_SIZES = {"vocab_size": len(VOCABULARY), **_SHAPE}
_ENCODER = {**_SIZES, "intermediate_size": 64, "max_position_embeddings": 64}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_ENCODER),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=32, hidden_dim=64, n_layers=NUM_BLOCKS, n_heads=2, max_position_embeddings=64
    ),
    "roberta": lambda: RobertaConfig(**_ENCODER, **_TOKENS),
    "electra": lambda: ElectraConfig(**_ENCODER, embedding_size=16),
    "deberta-v2": lambda: DebertaV2Config(
        **_ENCODER, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm"
    ),
    "modernbert": lambda: ModernBertConfig(
        **_ENCODER, **_TOKENS, cls_token_id=2, sep_token_id=3, attention_dropout=0.1, mlp_dropout=0.1
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=32, n_layer=NUM_BLOCKS, n_head=2, n_positions=64, **_TOKENS
    ),
    "llama": lambda: LlamaConfig(**_ENCODER, **_TOKENS, num_key_value_heads=2),
}
"""Configs of three blocks and hidden size 32, by family."""

_DECODER = {**_ENCODER, **_TOKENS, "vocab_size": len(LM_VOCABULARY), "num_key_value_heads": 2}

LM_FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(
        vocab_size=len(LM_VOCABULARY), n_embd=32, n_layer=NUM_BLOCKS, n_head=2, n_positions=64, **_TOKENS
    ),
    "llama": lambda: LlamaConfig(**_DECODER),
    "qwen2": lambda: Qwen2Config(**_DECODER),
    "qwen3": lambda: Qwen3Config(**_DECODER, head_dim=16),
    "smollm3": lambda: SmolLM3Config(**_DECODER),
}
"""The same of models that go on with a text."""

_STAGES = {"hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}

IMAGE_FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "resnet": lambda: ResNetConfig(**_STAGES, embedding_size=8, layer_type="basic"),
    "vit": lambda: ViTConfig(**_SHAPE, intermediate_size=64, image_size=IMAGE_SIZE, patch_size=8),
    "convnext": lambda: ConvNextConfig(**_STAGES, num_stages=3, patch_size=2, image_size=IMAGE_SIZE),
    "efficientnet": lambda: EfficientNetConfig(
        image_size=IMAGE_SIZE,
        width_coefficient=0.25,
        depth_coefficient=0.1,
        hidden_dim=320,
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5],
        strides=[1, 2, 2],
        num_block_repeats=[1, 1, 1],
        expand_ratios=[1, 6, 6],
    ),
    "mobilenet-v2": lambda: MobileNetV2Config(image_size=IMAGE_SIZE, depth_multiplier=0.25),
}
"""Configs of models of images; their blocks are stages, layers or single blocks."""

_OTHERS: dict[TaskName, dict[str, Callable[[], PretrainedConfig]]] = {
    "causal-lm": LM_FAMILIES,
    "image-classification": IMAGE_FAMILIES,
}


def tiny_model(family: str, num_labels: int = 3, task: TaskName = "text-classification") -> PreTrainedModel:
    """A tiny model of the family for a task, with the same random weights each time."""
    config = _OTHERS.get(task, FAMILIES)[family]()
    config.num_labels = num_labels
    get_task(task).configure(config, (), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, get_task(task).auto_class).from_config(config)  # type: ignore[no-any-return]


@cache
def tiny_layers(family: str, task: TaskName = "text-classification") -> LayerMap:
    return map_layers(tiny_model(family, task=task))


def tiny_lm_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and an end-of-text token that the task itself puts behind each text; chats in ChatML."""
    tokenizer = Tokenizer(models.WordLevel(LM_VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        additional_special_tokens=CHAT[:2],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, BERT's special tokens, single rows and pairs."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model_folder(family)`: a folder with the family's tiny pretrained base model and the tokenizer."""

    @cache
    def folder(family: str) -> Path:
        path = tmp_path_factory.mktemp("models") / family
        tiny_model(family).base_model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        return path

    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often each fault is tried, which `make faults` sets."""
    parser.addoption("--fault-repeats", type=int, default=1, help="how often each fault is tried")

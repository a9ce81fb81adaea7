"""A small data set of each task, which a tiny model can learn from, and its way into an encoded folder."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from transformers import PreTrainedModel, ViTImageProcessorPil

from rayft.config import DataConfig, Hyperparameters, StrategyName, TaskName
from rayft.data.encode import encode_splits
from rayft.data.encoded import EncodedData
from rayft.data.splits import Rows, Splits
from rayft.models.layers import map_layers
from rayft.tasks import get_task
from rayft.training.loop import FineTuning
from tests.conftest import IMAGE_SIZE, WORDS, tiny_lm_tokenizer, tiny_model, tiny_tokenizer
from tests.training.conftest import ALONE, STRATEGY_VALUES

LABEL_NAMES: dict[TaskName, tuple[str, ...]] = {
    "text-classification": ("film", "team", "bank"),
    "multi-label-classification": ("film", "team", "bank"),
    "regression": (),
    "token-classification": ("B-ORG", "B-WORK", "I-ORG", "O"),
    "causal-lm": (),
    "image-classification": ("blue", "green", "red"),
}
FAMILY: dict[TaskName, str] = {
    "text-classification": "bert",
    "multi-label-classification": "bert",
    "regression": "bert",
    "token-classification": "bert",
    "causal-lm": "llama",
    "image-classification": "resnet",
}
"""What learns it in the tests."""
DEFAULTS = {"learning_rate": 1e-2, "batch_size": 8}
TAGS = {"film": 1, "book": 1, "song": 1, "bank": 0, "market": 0, "price": 2}


def preprocessor_of(task: TaskName) -> Any:
    if task == "image-classification":
        return ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return tiny_lm_tokenizer() if task == "causal-lm" else tiny_tokenizer()


def rows_of(task: TaskName, count: int, seed: int, chat: bool = False) -> Rows:
    draw = random.Random(seed)
    if task == "image-classification":
        labels = [row % 3 for row in range(count)]
        return Rows({"image": [image(label, draw) for label in labels]}, np.array(labels))
    words = [draw.choices(WORDS, k=draw.randint(3, 12)) for _ in range(count)]
    texts = [" ".join(row) for row in words]
    if task == "causal-lm":
        return chat_rows(count, draw) if chat else Rows({"text": [sequence(draw) for _ in range(count)]}, None)
    if task == "token-classification":
        return Rows({"tokens": words}, [[TAGS.get(word, 3) for word in row] for row in words])
    if task == "regression":
        numbers = [draw.randrange(3) for _ in range(count)]
        texts = [
            " ".join(draw.choices(WORDS[9 * number : 9 * number + 9], k=draw.randint(3, 12))) for number in numbers
        ]
        return Rows({"text": texts}, np.array([100 + 20 * number for number in numbers], dtype=np.float32))
    if task == "multi-label-classification":
        names = LABEL_NAMES[task]
        return Rows({"text": texts}, np.array([[name in row for name in names] for row in words], dtype=np.float32))
    marked = [draw.randrange(3) for _ in range(count)]
    named = [f"{text} {LABEL_NAMES[task][label]}" for text, label in zip(texts, marked, strict=True)]
    return Rows({"text": named}, np.array(marked))


def sequence(draw: random.Random) -> str:
    """Words in the order of the vocabulary, which can be learnt."""
    start = draw.randrange(len(WORDS))
    return " ".join((WORDS + WORDS)[start : start + draw.randint(2, 10)])


def chat_rows(count: int, draw: random.Random) -> Rows:
    turns = [
        f'[{{"role": "user", "content": "is it {a}"}}, {{"role": "assistant", "content": "it is {a} {b}"}}]'
        for a, b in (draw.choices(WORDS, k=2) for _ in range(count))
    ]
    return Rows({"messages": turns}, None)


def image(channel: int, draw: random.Random, size: tuple[int, int] = (20, 24)) -> bytes:
    """A PNG file of noise, brighter in one channel."""
    generator = np.random.default_rng(draw.randrange(2**32))
    pixels = generator.integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[:, :, 2 - channel] += 100
    return png(pixels)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def splits_of(task: TaskName, train: int = 40, validation: int = 24, chat: bool = False) -> Splits:
    rows = [rows_of(task, count, seed, chat) for seed, count in enumerate((train, validation))]
    return Splits(task, rows[0], rows[1], None, None, LABEL_NAMES[task], ())


def encode(splits: Splits, folder: Path, **config: Any) -> EncodedData:
    """Encodes splits with the task's tiny tokenizer or image processor."""
    given = DataConfig(**{"train": "train", "max_length": 16, **config})
    encode_splits(splits, get_task(splits.task), preprocessor_of(splits.task), given, folder)
    return EncodedData.open(folder)


def fine_tuning(
    data: EncodedData, strategy: StrategyName = "full", family: str | None = None, **given: Any
) -> FineTuning:
    """A trial on the task's tiny model.

    Args:
        data: From `encode`.
        strategy: With `STRATEGY_VALUES`.
        family: Another model than `FAMILY` says.
        given: Hyperparameters, or arguments of `FineTuning`.
    """
    own = {name: given.pop(name) for name in ("micro_batch", "acceleration", "seed", "base", "epochs") if name in given}
    hp = Hyperparameters(strategy=strategy, **{**DEFAULTS, **STRATEGY_VALUES[strategy], **given})
    family = family or FAMILY[data.task]
    base = own.pop("base", None) or base_model(data, family)
    arguments: dict[str, Any] = {"epochs": 3, "seed": 0, "workers": ALONE, **own}
    return FineTuning(base, map_layers(base), data, hp, **arguments)


def base_model(data: EncodedData, family: str | None = None) -> PreTrainedModel:
    model = tiny_model(family or FAMILY[data.task], max(1, len(data.label_names)), data.task).eval()
    model.config.pad_token_id = data.pad_token_id
    return model

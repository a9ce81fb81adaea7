"""A small labelled data set, encoded for real, and the parts of a trial on a tiny BERT."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayft.config import Hyperparameters, StrategyName
from rayft.data.encoded import EncodedData
from rayft.data.splits import Rows
from rayft.strategies import get_strategy
from rayft.training.acceleration import PLAIN, Acceleration
from rayft.training.forward import Forward
from rayft.training.gradients import BatchGradients, GlobalBatch
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers
from tests.conftest import tiny_layers, tiny_model, tiny_tokenizer
from tests.texts import encode_texts, text_rows, text_splits

LABEL_NAMES = ("review", "sport", "market")
TOPICS = (
    ["film", "book", "song", "play", "boring", "lovely"],
    ["team", "game", "match", "goal", "two", "three"],
    ["bank", "market", "price", "stock", "good", "bad"],
)
FILLERS = ["a", "the", "it", "is", "was", "not", "very"]
ALONE = Workers(rank=0, world_size=1, device=torch.device("cpu"))

STRATEGY_VALUES: dict[StrategyName, dict[str, float]] = {
    "full": {},
    "partial": {"freeze_depth": 2},
    "layerwise": {"layer_decay": 0.7, "freeze_depth": 1},
    "adversarial": {"adversarial_weight": 0.5},
    "lora": {"lora_rank": 2, "lora_dropout": 0.1},
}
"""What each strategy's trials have beside the defaults."""


def rows(count: int, seed: int, labelled: bool = True) -> Rows:
    """Rows of 3 to 14 words, most of them of the label's topic."""
    draw = random.Random(seed)
    labels = [index % len(TOPICS) for index in range(count)]
    texts = [
        " ".join(draw.choice(TOPICS[label] if draw.random() < 0.9 else FILLERS) for _ in range(draw.randint(3, 14)))
        for label in labels
    ]
    return text_rows(texts, labels=np.array(labels, dtype=np.int64) if labelled else None)


def hyperparameters(strategy: StrategyName = "full", **values: float | None) -> Hyperparameters:
    defaults = {"learning_rate": 2e-3, "batch_size": 8, "warmup_ratio": 0.2}
    return Hyperparameters(strategy=strategy, **{**defaults, **STRATEGY_VALUES[strategy], **values})


def fine_tuning(
    data: EncodedData,
    hp: Hyperparameters,
    *,
    seed: int = 0,
    epochs: int = 3,
    workers: Workers = ALONE,
    micro_batch: int | None = None,
    acceleration: Acceleration = PLAIN,
    histograms: bool = False,
) -> FineTuning:
    """A trial on the tiny BERT."""
    return FineTuning(
        tiny_model("bert", len(LABEL_NAMES)),
        tiny_layers("bert"),
        data,
        hp,
        epochs=epochs,
        seed=seed,
        workers=workers,
        micro_batch=micro_batch,
        acceleration=acceleration,
        histograms=histograms,
    )


def plain_forward(model: nn.Module, data: EncodedData, workers: Workers = ALONE) -> Forward:
    return Forward(model, tiny_layers("bert"), 0, data, hyperparameters(), workers, PLAIN)


def gradients_of(
    data: EncodedData, strategy: StrategyName, batch: GlobalBatch, micro_batch: int, workers: Workers = ALONE
) -> tuple[float, dict[str, torch.Tensor]]:
    """This worker's part of a batch's loss; the model's gradients, and those with which the adversary took its step."""
    hp = hyperparameters(strategy, label_smoothing=0.1)
    model = tiny_model("bert", len(LABEL_NAMES)).eval()  # without dropout, which would differ
    adversary = get_strategy(strategy).adversary(model, len(LABEL_NAMES), hp, workers.device, seed=0)
    result = BatchGradients(plain_forward(model, data, workers), data, hp, workers, adversary, micro_batch).compute(
        batch
    )
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    if adversary:
        found |= {f"adversary.{name}": p.grad for name, p in adversary.discriminator.named_parameters()}
    return float(result.loss), found


@pytest.fixture(scope="session")
def encoded_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """`encoded_folder(unlabeled)`: the data set, with or without unlabeled rows."""
    folders = {}
    for unlabeled in (False, True):
        splits = text_splits(
            train=rows(41, seed=1),  # in batches of 8, the last has a single row
            validation=rows(30, seed=2),
            unlabeled=rows(19, seed=3, labelled=False) if unlabeled else None,
            label_names=LABEL_NAMES,
        )
        folders[unlabeled] = tmp_path_factory.mktemp("encoded")
        encode_texts(splits, tiny_tokenizer(), 32, folders[unlabeled])
    return folders.__getitem__


@pytest.fixture(scope="session")
def data(encoded_folder: Callable[[bool], Path]) -> EncodedData:
    return EncodedData.open(encoded_folder(False))


@pytest.fixture(scope="session")
def data_with_unlabeled(encoded_folder: Callable[[bool], Path]) -> EncodedData:
    return EncodedData.open(encoded_folder(True))

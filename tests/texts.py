"""Rows of texts with a class each, and their way into an encoded folder."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rayft.config import DataConfig
from rayft.data.batches import token_inputs
from rayft.data.encode import encode_splits
from rayft.data.encoded import EncodedSplit
from rayft.data.splits import Labels, Rows, Splits
from rayft.tasks import get_task

TEXTS = get_task("text-classification")


def text_rows(texts: list[str], pairs: list[str] | None = None, labels: Labels | None = None) -> Rows:
    return Rows({"text": texts} if pairs is None else {"text": texts, "text_pair": pairs}, labels)


def text_splits(
    train: Rows,
    validation: Rows,
    test: Rows | None = None,
    unlabeled: Rows | None = None,
    label_names: tuple[str, ...] = ("a", "b"),
) -> Splits:
    return Splits("text-classification", train, validation, test, unlabeled, label_names, ())


def encode_texts(splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path) -> None:
    encode_splits(splits, TEXTS, tokenizer, DataConfig(train="train.csv", max_length=max_length), folder)


def token_inputs_of(split: EncodedSplit, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """What the models of `tests.conftest` read."""
    return token_inputs(split, rows, 0)

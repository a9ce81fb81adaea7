"""Run folders of one real, trained trial each, made as a sweep makes them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rayft.config import SweepConfig
from rayft.data.encoded import EncodedData
from rayft.data.splits import Rows
from rayft.models.layers import map_layers
from rayft.models.load import load_model, load_tokenizer
from rayft.search_space import resolve
from rayft.sweep.trial_record import TrialRecord
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers
from tests.texts import TEXTS, encode_texts, text_rows, text_splits

LABELS = ("negative", "neutral", "positive")
PARAMS = {
    "full": {"strategy": "full", "learning_rate": 3e-3},
    "partial": {"strategy": "partial", "learning_rate": 3e-3, "freeze_depth": 2},
    "layerwise": {"strategy": "layerwise", "learning_rate": 3e-3, "layer_decay": 0.7},
    "adversarial": {"strategy": "adversarial", "learning_rate": 3e-3, "adversarial_weight": 0.2},
    "lora": {"strategy": "lora", "learning_rate": 1e-2, "lora_rank": 4},
}


@dataclass(frozen=True)
class TrainedRun:
    """A run folder, its sweep and its one trial."""

    config: SweepConfig
    folder: Path
    trial: TrialRecord

    @property
    def data(self) -> EncodedData:
        return EncodedData.open(self.folder / "encoded")


def rows(count: int, seed: int, paired: bool = False) -> Rows:
    """Texts of 2 to 11 words, of which one names the label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(LABELS), count)
    labels[: len(LABELS)] = range(len(LABELS))
    fillers = ["the", "film", "it", "is", "market", "bank", "song", "one", "two"]
    marks = ["bad", "food", "great"]
    texts = [
        " ".join([*generator.choice(fillers, generator.integers(1, 11)), marks[label]]) for label in labels.tolist()
    ]
    return text_rows(texts, ["a nice play"] * count if paired else None, labels)


def train_run(folder: Path, model: Path, strategy: str, paired: bool = False) -> TrainedRun:
    """Trains one epoch and leaves what a sweep leaves."""
    config = SweepConfig.model_validate(
        {
            "model": str(model),
            "data": {
                "train": "train.csv",
                "test": 0.1,
                "max_length": 9,
                "columns": {"text": ["premise", "hypothesis"] if paired else "text"},
            },
            "training": {"epochs": 1},
            "search_space": {
                "strategy": list(PARAMS),
                "learning_rate": {"low": 1e-5, "high": 1e-1},
                "freeze_depth": {"low": 1, "high": 3, "when": {"strategy": "partial"}},
                "layer_decay": {"low": 0.5, "high": 0.9},
                "adversarial_weight": {"low": 0.1, "high": 0.3},
                "lora_rank": [4, 8],
            },
        }
    )
    tokenizer = load_tokenizer(config.model)
    splits = text_splits(rows(96, 0, paired), rows(48, 1, paired), rows(32, 2, paired), None, LABELS)
    encode_texts(splits, tokenizer, config.data.max_length, folder / "encoded")
    params = PARAMS[strategy]
    base = load_model(config.model, TEXTS, LABELS, tokenizer.pad_token_id, config.search.seed)
    tuning = FineTuning(
        base,
        map_layers(base),
        EncodedData.open(folder / "encoded"),
        resolve(config, params),
        epochs=1,
        seed=5,
        workers=Workers(rank=0, world_size=1, device=torch.device("cpu")),
    )
    result = tuning.train_epoch()
    packed = tuning.pack()
    packed.write(folder / "trials/3/checkpoint-1")
    trial = TrialRecord(
        number=3,
        state="complete",
        params=params,
        value=result.metrics["accuracy"],
        best_epoch=1,
        epochs=1,
        values={1: result.metrics["accuracy"]},
        metrics=result.metrics,
        seconds=result.seconds,
        checkpoint="trials/3/checkpoint-1",
        digest=packed.digest,
    )
    return TrainedRun(config, folder, trial)


@pytest.fixture(scope="session")
def trained_run(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]
) -> Callable[..., TrainedRun]:
    """`trained_run(strategy, family, paired)`: trained once a session; to be left as it is."""

    @cache
    def run(strategy: str, family: str = "bert", paired: bool = False) -> TrainedRun:
        return train_run(tmp_path_factory.mktemp("run"), model_folder(family), strategy, paired)

    return run

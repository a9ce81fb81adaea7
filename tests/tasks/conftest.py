from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayft.config import DataConfig, Hyperparameters, TaskName
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.splits import Splits, load_splits
from rayft.errors import DataError
from rayft.tasks import get_task

Load = Callable[..., Splits]
Faults = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    """`load(task, train, **keys)`: reads, checks and splits; half of train is validation unless the keys say more."""

    def splits_of(task: TaskName, train: str, **keys: Any) -> Splits:
        return load_splits(DataConfig(**{"train": train, "validation": 0.5, **keys}), seed=0, task=get_task(task))

    return splits_of


@pytest.fixture
def faults(load: Load) -> Faults:
    """The faults of the same, as text."""

    def faults_of(task: TaskName, train: str, **keys: Any) -> list[str]:
        with pytest.raises(DataError) as caught:
            load(task, train, **keys)
        return [str(fault) for fault in caught.value.faults]

    return faults_of


def loss_of(data: EncodedData, logits: torch.Tensor, labels: torch.Tensor, **hp: Any) -> float:
    """The task's summed loss."""
    return float(get_task(data.task).loss_sum(logits, labels, Hyperparameters(**hp), data))


def collated(data: EncodedData, split: EncodedSplit, rows: list[int]) -> dict[str, torch.Tensor]:
    return get_task(data.task).collate(split, np.array(rows), data)

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from rayft.config import SweepConfig
from rayft.search_space import Params
from rayft.sweep.study import SweepStudy

OpenStudy = Callable[..., SweepStudy]

SPACE: dict[str, Any] = {
    "strategy": ["full", "partial", "layerwise"],
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "batch_size": [16, 32],
    "freeze_depth": {"low": 1, "high": 6, "when": {"strategy": "partial"}},
    "layer_decay": {"low": 0.6, "high": 0.95, "when": {"strategy": "layerwise"}},
    "dropout": {"low": 0.0, "high": 0.5},
}


def sweep(epochs: int = 2, space: dict[str, Any] | None = None, **sections: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "model": "model",
            "data": {"train": "train.csv"},
            "training": {"epochs": epochs},
            "search_space": SPACE if space is None else space,
            **sections,
        }
    )


def quality(params: Params) -> float:
    """A made-up accuracy that the sampler can learn: best at a learning rate of 1e-4 and with `partial`."""
    rate = params["learning_rate"]
    assert isinstance(rate, float)
    return 0.9 - 0.2 * abs(math.log10(rate) + 4) - (0.0 if params.get("strategy") == "partial" else 0.05)


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "loss": 1.0 - accuracy}


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with Optuna's tables and no study: making them is slower than most tests."""
    path = tmp_path_factory.mktemp("tables") / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    return path


@pytest.fixture
def open_study(tmp_path: Path, tables: Path) -> OpenStudy:
    """`open_study(config)`: the study in the test's SQLite file, each time as a new process would open it."""

    def open_it(config: SweepConfig, name: str = "study.db") -> SweepStudy:
        path = tmp_path / name
        if not path.exists():
            shutil.copy(tables, path)
        return SweepStudy(config, f"sqlite:///{path}")

    return open_it


@pytest.fixture
def optuna_trials(tmp_path: Path) -> Callable[[], list[Any]]:
    """What another program, such as optuna-dashboard, reads from the test's study."""

    def read(name: str = "study.db") -> list[Any]:
        study = optuna.load_study(study_name="rayft", storage=f"sqlite:///{tmp_path / name}")
        return study.get_trials()

    return read

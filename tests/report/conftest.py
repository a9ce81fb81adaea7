import pytest

from rayft.config import SweepConfig


@pytest.fixture
def config() -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "model": "model",
            "data": {"train": "train.csv"},
            "training": {"epochs": 4},
            "search_space": {
                "strategy": ["full", "partial"],
                "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
                "batch_size": [16, 32],
                "freeze_depth": {"low": 1, "high": 6, "when": {"strategy": "partial"}},
                "max_grad_norm": [None, 1.0],
            },
            "search": {"metric": "macro_f1", "trials": 6},
        }
    )

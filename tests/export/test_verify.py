from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayft.errors import VerificationError
from rayft.export.model_folder import write_model
from rayft.export.verify import Verifier, compare
from tests.export.conftest import TrainedRun

WEIGHTS = "model.safetensors"
RECORDED = {"loss": 0.5, "accuracy": 0.75}
NO_SLACK = {"loss": 0.0, "accuracy": 0.0, "other": 0.0}


@pytest.fixture
def run(trained_run: Callable[..., TrainedRun]) -> TrainedRun:
    return trained_run("full")


@pytest.fixture
def exported(run: TrainedRun, tmp_path: Path) -> Path:
    write_model(run.config, run.folder, run.trial, run.data, tmp_path / "model")
    return tmp_path / "model"


def verify(folder: Path, run: TrainedRun, recorded: dict[str, float], precision: str, score_test: bool) -> None:
    with Verifier() as verifier:
        verifier.verify(folder, run.data, run.folder / "encoded/raw", recorded, precision, score_test)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_a_corrupted_weight_is_found(run: TrainedRun, exported: Path) -> None:
    change_weights(exported, lambda tensors: tensors["classifier.weight"][0].add_(0.5))
    with pytest.raises(VerificationError, match="doesn't score on validation what the search recorded: loss is"):
        verify(exported, run, run.trial.metrics, "fp32", score_test=False)


def test_a_missing_weight_is_named_though_transformers_would_draw_one(run: TrainedRun, exported: Path) -> None:
    change_weights(exported, lambda tensors: tensors.pop("classifier.weight"))
    with pytest.raises(VerificationError, match=r"plain transformers: .* missing keys: classifier\.weight$"):
        verify(exported, run, run.trial.metrics, "fp32", score_test=False)


def test_rounding_is_no_difference() -> None:
    compare({"loss": 0.5 + 0.9e-3, "accuracy": 0.75 - 0.9e-3, "other": 0.0}, RECORDED, 1e-3, NO_SLACK)
    compare({"loss": 0.5, "accuracy": 0.73}, RECORDED, 1e-3, {"loss": 0.0, "accuracy": 0.02})


@pytest.mark.parametrize("loss", [0.5 + 1.1e-3, 0.5 - 1.1e-3, float("nan"), float("inf")])
def test_every_metric_has_to_be_reached(loss: float) -> None:
    with pytest.raises(VerificationError, match=r"loss is \S+, but 0\.500000 is on record$"):
        compare({"loss": loss, "accuracy": 0.75}, RECORDED, 1e-3, NO_SLACK)
    with pytest.raises(VerificationError, match=r"loss is .*; accuracy is"):
        compare({"loss": loss, "accuracy": loss}, RECORDED, 1e-3, NO_SLACK)

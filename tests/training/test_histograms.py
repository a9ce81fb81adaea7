import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rayft.config import STRATEGIES, StrategyName
from rayft.data.encoded import EncodedData
from rayft.training.histograms import BINS, histogram, histograms
from rayft.training.results import EpochResult
from tests.training.conftest import fine_tuning, hyperparameters


def test_the_bins_are_numpys_and_the_moments_are_of_all_values() -> None:
    values = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    found = histogram(values)
    assert found is not None
    counts, _ = np.histogram(values.numpy(), BINS)
    assert found.counts == tuple(counts)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.total == pytest.approx(float(values.sum()), rel=1e-4)
    assert found.squares == pytest.approx(float(values.square().sum()), rel=1e-4)


def test_what_is_no_number_is_left_out_and_equal_values_have_one_bin() -> None:
    assert histogram(torch.tensor([float("nan"), float("inf")])) is None
    assert histogram(torch.tensor([1.0, float("nan"), 3.0])).counts[0] == 1  # type: ignore[union-attr]
    assert histogram(torch.ones(7)) == (1.0, 1.0, (7,), 7.0, 7.0)
    assert histogram(torch.ones(7, dtype=torch.bfloat16)) == (1.0, 1.0, (7,), 7.0, 7.0)
    assert histograms({"a": torch.ones(0)}, {"a": None}) == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_epoch_has_those_of_all_that_trains(data: EncodedData, strategy: StrategyName) -> None:
    hp = hyperparameters(strategy)
    trial = fine_tuning(data, hp, histograms=True)
    result = trial.train_epoch()
    trained = {name for name, parameter in trial._model.named_parameters() if parameter.requires_grad}
    assert result.histograms is not None
    assert {name for name in result.histograms if name.startswith("weights/")} == {f"weights/{n}" for n in trained}
    gradients = {name: p.grad for name, p in trial._model.named_parameters() if p.requires_grad and p.grad is not None}
    assert gradients
    found = {name.removeprefix("gradients/"): h for name, h in result.histograms.items() if "gradients/" in name}
    assert {name: (h.low, h.high) for name, h in found.items()} == {
        name: (float(gradient.min()), float(gradient.max())) for name, gradient in gradients.items()
    }
    assert fine_tuning(data, hp).train_epoch().metrics == result.metrics, "looking changes nothing"


def test_a_checkpoint_doesnt_keep_them(data: EncodedData, tmp_path: Path) -> None:
    trial = fine_tuning(data, hyperparameters("partial"), histograms=True)
    result = trial.train_epoch()
    kept = EpochResult.from_state_dict(json.loads(json.dumps(result.state_dict())))
    assert kept == replace(result, histograms=None)
    trial.pack().write(tmp_path / "checkpoint")
    again = fine_tuning(data, hyperparameters("partial"), histograms=True)
    again.resume(tmp_path / "checkpoint")
    assert again.history == [kept]

"""Two worker processes over gloo do what one does, and what one does without the cache of frozen blocks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from rayft.config import StrategyName
from rayft.data.encoded import EncodedData
from rayft.models.prefix_cache import PrefixCache
from rayft.training.acceleration import Acceleration
from rayft.training.failures import DivergedError
from rayft.training.gradients import GlobalBatch
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers
from tests.conftest import tiny_layers, tiny_model
from tests.texts import token_inputs_of
from tests.training.conftest import ALONE, LABEL_NAMES, fine_tuning, gradients_of, hyperparameters

EPOCHS = 2
TRIALS: dict[StrategyName, dict[str, float | None]] = {
    "full": {"l2_sp": 0.01, "label_smoothing": 0.1},
    "adversarial": {},
    "lora": {"lora_dropout": 0.0},
}
FREEZING: dict[StrategyName, dict[str, float | None]] = {
    "partial": {"freeze_depth": 2},
    "layerwise": {"freeze_depth": 1},
    "adversarial": {"freeze_depth": 2},
}
"""Trials that two workers train with the cache and a single one without."""


BATCHES = {
    "full": GlobalBatch(np.arange(9), np.arange(0)),  # 3 and 2 passes, in micro-batches of 2
    "adversarial": GlobalBatch(np.arange(9), np.arange(4, 9)),
    "one row": GlobalBatch(np.arange(1), np.arange(0)),
    "one of each": GlobalBatch(np.arange(1), np.arange(1)),
}


def all_gradients(workers: Workers, encoded: Path) -> dict[str, torch.Tensor]:
    """The gradients of every batch, by batch and parameter."""
    data = EncodedData.open(encoded)
    found = {}
    for name, batch in BATCHES.items():
        strategy: StrategyName = "full" if name == "full" else "adversarial"
        _, gradients = gradients_of(data, strategy, batch, 2, workers)
        found |= {f"{name}/{parameter}": gradient for parameter, gradient in gradients.items()}
    return found


def run_trials(workers: Workers, encoded: Path, folder: Path) -> dict[str, Any]:
    """Every trial, one after the other on the same workers, and a diverging one between them."""
    data = EncodedData.open(encoded)
    found: dict[str, Any] = {}
    for strategy, values in TRIALS.items():
        # Dropout would differ, since every worker draws its own.
        trial = fine_tuning(data, hyperparameters(strategy, dropout=0.0, **values), epochs=EPOCHS, workers=workers)
        results = [trial.train_epoch() for _ in range(EPOCHS)]
        found[strategy] = [result.state_dict() for result in results]
        found[f"{strategy} checksum"] = sum(
            float(p.detach().double().sum()) for p in trial.trained_model().parameters()
        )
        if workers.rank == 0:
            trial.pack().write(folder / strategy / f"checkpoint-{EPOCHS}")
    diverging = fine_tuning(data, hyperparameters(learning_rate=1e30, max_grad_norm=None), workers=workers)
    with pytest.raises(DivergedError) as caught:
        diverging.train_epoch()
    return found | {"diverged": str(caught.value), "micro_batch": trial.micro_batch}


def run_freezing_trials(workers: Workers, encoded: Path, cache_folder: Path | None) -> dict[str, Any]:
    """The epochs of each trial, and how often its lowest block really ran."""
    data, layers = EncodedData.open(encoded), tiny_layers("bert")
    base = tiny_model("bert", len(LABEL_NAMES)).eval()
    cache = None
    if cache_folder:
        cache = PrefixCache(base, layers, token_inputs_of, cache_folder, 10**9, workers.device, min_speedup=0.0)
    found: dict[str, Any] = {}
    for strategy, values in FREEZING.items():
        hp = hyperparameters(strategy, dropout=0.0, **values)
        parts = {"seed": 0, "workers": workers, "acceleration": Acceleration(cache=cache)}
        trial = FineTuning(base, layers, data, hp, epochs=EPOCHS, **parts)
        runs: list[None] = []
        attention = trial.trained_model().get_submodule(f"{layers.block_path}.0.attention")
        attention.register_forward_hook(lambda *_, runs=runs: runs.append(None))
        found[strategy] = [trial.train_epoch().state_dict() for _ in range(EPOCHS)]
        found[f"{strategy} runs"] = len(runs)
    return found


def run_worker(rank: int, encoded: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    workers = replace(ALONE, rank=rank, world_size=2)
    save_file(all_gradients(workers, encoded), folder / f"rank-{rank}.safetensors")
    found = run_trials(workers, encoded, folder)
    found["with cache"] = run_freezing_trials(workers, encoded, folder / "cache")
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(
    encoded_folder: Callable[[bool], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What each of two workers, and a single one, found."""
    encoded, folder = encoded_folder(True), tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(run_worker, args=(encoded, folder), nprocs=2)
    workers = {str(rank): json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)}
    alone = tmp_path_factory.mktemp("alone")
    single = run_trials(ALONE, encoded, alone) | {"without cache": run_freezing_trials(ALONE, encoded, None)}
    return {**workers, "alone": json.loads(json.dumps(single)), "folder": {"path": folder}}


@pytest.mark.parametrize("rank", [0, 1])
def test_two_workers_have_the_gradients_of_one(
    found: dict[str, dict[str, Any]], encoded_folder: Callable[[bool], Path], rank: int
) -> None:
    # Gradients, since Adam would hide that they are off by a factor.
    two = load_file(found["folder"]["path"] / f"rank-{rank}.safetensors")
    torch.testing.assert_close(two, all_gradients(ALONE, encoded_folder(True)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strategy", TRIALS)
def test_two_workers_train_as_one(found: dict[str, dict[str, Any]], strategy: StrategyName) -> None:
    # The last batch has one row, so that one of the workers has none.
    for two, one in zip(found["0"][strategy], found["alone"][strategy], strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-3)
        assert [step for step, _, _ in two["curve"]] == [step for step, _, _ in one["curve"]]
        assert [loss for _, loss, _ in two["curve"]] == pytest.approx([loss for _, loss, _ in one["curve"]], rel=5e-3)


@pytest.mark.parametrize("strategy", FREEZING)
def test_two_workers_with_the_cache_train_as_one_without(
    found: dict[str, dict[str, Any]], strategy: StrategyName
) -> None:
    with_cache, without = found["0"]["with cache"], found["alone"]["without cache"]
    assert with_cache[f"{strategy} runs"] == found["1"]["with cache"][f"{strategy} runs"] == 0
    assert without[f"{strategy} runs"] > 0
    for two, one in zip(with_cache[strategy], without[strategy], strict=True):
        # As without the cache: halves of a batch have other widths and sums than the whole.
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-3)
        assert [step for step, _, _ in two["curve"]] == [step for step, _, _ in one["curve"]]
        assert [loss for _, loss, _ in two["curve"]] == pytest.approx([loss for _, loss, _ in one["curve"]], rel=5e-3)


@pytest.mark.parametrize("strategy", FREEZING)
def test_both_workers_with_the_cache_know_the_same(found: dict[str, dict[str, Any]], strategy: StrategyName) -> None:
    for one, other in zip(found["0"]["with cache"][strategy], found["1"]["with cache"][strategy], strict=True):
        assert one["metrics"] == other["metrics"]
        assert (one["train_loss"], one["curve"]) == (other["train_loss"], other["curve"])


def test_two_workers_share_the_files_of_the_cache(found: dict[str, dict[str, Any]]) -> None:
    # Train and validation behind one and behind two blocks, and the unlabeled rows behind two.
    assert len(list((found["folder"]["path"] / "cache").glob("*/manifest.json"))) == 5


@pytest.mark.parametrize("strategy", TRIALS)
def test_both_workers_know_the_same(found: dict[str, dict[str, Any]], strategy: StrategyName) -> None:
    for one, other in zip(found["0"][strategy], found["1"][strategy], strict=True):
        assert one["metrics"] == other["metrics"]
        assert (one["train_loss"], one["curve"]) == (other["train_loss"], other["curve"])
        assert one["padding"] == other["padding"]
    assert found["0"][f"{strategy} checksum"] == found["1"][f"{strategy} checksum"]


def test_metrics_are_over_the_whole_split(found: dict[str, dict[str, Any]], data_with_unlabeled: EncodedData) -> None:
    trial = fine_tuning(data_with_unlabeled, hyperparameters(dropout=0.0, **TRIALS["full"]), epochs=EPOCHS)
    trial.resume(found["folder"]["path"] / "full" / f"checkpoint-{EPOCHS}")

    alone = trial.evaluate(data_with_unlabeled.validation)
    assert found["0"]["full"][-1]["metrics"] == pytest.approx(alone, abs=1e-5)


def test_each_worker_takes_its_share_of_the_batch(found: dict[str, dict[str, Any]]) -> None:
    assert (found["0"]["micro_batch"], found["alone"]["micro_batch"]) == (4, 8)


def test_divergence_ends_the_trial_on_all_workers_at_the_same_step(found: dict[str, dict[str, Any]]) -> None:
    assert found["0"]["diverged"] == found["1"]["diverged"]

"""Every task through the train loop, with every strategy that it takes."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rayft.config import STRATEGIES, StrategyName, TaskName
from rayft.config_tasks import TASK_RULES, TASKS
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.splits import Splits
from rayft.models.layers import map_layers
from rayft.models.prefix_cache import PrefixCache
from rayft.models.still import moving_statistics
from rayft.tasks import get_task
from rayft.training.acceleration import Acceleration
from rayft.training.loop import FineTuning, seed_generators
from tests.examples import LABEL_NAMES, base_model, encode, fine_tuning, rows_of, splits_of
from tests.training.conftest import ALONE

Encode = Callable[..., EncodedData]
PAIRS = [(task, strategy) for task in TASKS for strategy in STRATEGIES if strategy not in TASK_RULES[task].refused]


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encode:
    """`encoded(task)`: its example, encoded once a session."""
    return cache(lambda task: encode(splits_of(task), tmp_path_factory.mktemp(task)))


def weights(trial: FineTuning) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trial.trained_model().state_dict().items()}


def losses(trial: FineTuning) -> list[float]:
    return [point.loss for result in trial.history for point in result.curve]


@pytest.mark.parametrize(("task", "strategy"), PAIRS)
def test_every_strategy_trains(encoded: Encode, task: TaskName, strategy: StrategyName) -> None:
    data = encoded(task)
    trial = fine_tuning(data, strategy, dropout=0.0, epochs=8)
    before, start = weights(trial), trial.evaluate(data.train)
    results = [trial.train_epoch() for _ in range(8)]
    assert trial.evaluate(data.train)["loss"] < start["loss"]
    for result in results:
        assert set(result.metrics) == set(TASK_RULES[task].metrics)
        assert all(math.isfinite(value) for value in (result.train_loss, *result.metrics.values()))
    after = weights(trial)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    has_classes = task not in ("causal-lm", "regression", "multi-label-classification")
    assert (results[0].confusion is not None) == has_classes


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"image-classification"}))
def test_two_micro_batches_are_one(encoded: Encode, task: TaskName) -> None:
    whole = fine_tuning(encoded(task), dropout=0.0)
    halves = fine_tuning(encoded(task), dropout=0.0, micro_batch=4)
    for trial in (whole, halves):
        trial.train_epoch()
    assert losses(halves) == pytest.approx(losses(whole), rel=1e-4)
    expected = weights(whole)
    for name, value in weights(halves).items():
        if ".key.bias" not in name:  # nothing but rounding moves it, by steps of any size
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_trial_equals_an_uninterrupted_one(encoded: Encode, task: TaskName, tmp_path: Path) -> None:
    whole = fine_tuning(encoded(task))
    whole.train_epoch()
    whole.pack().write(tmp_path / "checkpoint-1")
    expected = whole.train_epoch()
    seed_generators(7, 7, 7)
    resumed = fine_tuning(encoded(task))
    resumed.resume(tmp_path / "checkpoint-1")
    assert resumed.history[0].state_dict() == whole.history[0].state_dict()
    found = resumed.train_epoch()
    assert (found.metrics, found.curve, found.confusion) == (expected.metrics, expected.curve, expected.confusion)
    after = weights(resumed)
    assert all(torch.equal(after[name], value) for name, value in weights(whole).items())


# ---- statistics of batch norm


@pytest.mark.parametrize("strategy", ["full", "partial", "lora"])
def test_statistics_are_in_checkpoints_and_exports(encoded: Encode, strategy: StrategyName, tmp_path: Path) -> None:
    data = encoded("image-classification")
    trial = fine_tuning(data, strategy, "efficientnet")
    started = {name: value.clone() for name, value in base_model(data, "efficientnet").named_buffers()}
    trial.train_epoch()
    trial.pack().write(tmp_path / "checkpoint-1")
    resumed = fine_tuning(data, strategy, "efficientnet")
    resumed.resume(tmp_path / "checkpoint-1")
    assert resumed.evaluate(data.validation) == trial.evaluate(data.validation)

    exported = dict(trial.trained_model().named_buffers())
    again = dict(resumed.trained_model().named_buffers())
    moved = {name for name, value in exported.items() if not torch.equal(value, started[name])}
    assert moved and all(torch.equal(again[name], value) for name, value in exported.items())
    assert (moved == set(exported)) == (strategy == "full")
    assert moved == set(moving_statistics(trial.trained_model())) or strategy == "lora"


def test_a_last_batch_of_one_image_joins_the_one_before(tmp_path: Path) -> None:
    data = encode(splits_of("image-classification", train=17), tmp_path)
    result = fine_tuning(data).train_epoch()
    assert [point.step for point in result.curve] == [1, 2], "8 rows, and 9"


# ---- the cache of frozen layers


def cache_of(data: EncodedData, family: str, folder: Path) -> tuple[PrefixCache, dict[str, object]]:
    """A cache that always pays, and the arguments of a trial that has it."""
    base, task = base_model(data, family), get_task(data.task)

    def collate(split: EncodedSplit, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return task.collate(split, rows, data)

    made = PrefixCache(base, map_layers(base), collate, folder, 10**9, ALONE.device, min_speedup=0.0)
    return made, {"base": base, "acceleration": Acceleration(cache=made)}


CACHED: list[tuple[TaskName, str]] = [
    ("image-classification", "resnet"),
    ("image-classification", "vit"),
    ("token-classification", "bert"),
    ("causal-lm", "gpt2"),
    ("causal-lm", "llama"),
]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("task", "family"), CACHED)
def test_each_step_is_that_without_the_cache(
    encoded: Encode, task: TaskName, family: str, depth: int, tmp_path: Path
) -> None:
    data = encoded(task)
    _, arguments = cache_of(data, family, tmp_path)
    plain = fine_tuning(data, "partial", family, freeze_depth=depth)
    cached = fine_tuning(data, "partial", family, freeze_depth=depth, **arguments)
    for trial in (plain, cached):
        trial.train_epoch()
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
    assert len(losses(cached)) > 2 and losses(cached) == pytest.approx(losses(plain), rel=1e-4)
    assert cached.history[0].metrics == pytest.approx(plain.history[0].metrics, rel=1e-4, abs=1e-5)


def test_images_that_change_at_random_are_not_kept(encoded: Encode, tmp_path: Path) -> None:
    data = encoded("image-classification")
    _, arguments = cache_of(data, "resnet", tmp_path)
    changed = {"flip": True, "crop": 0.4, "randaugment": 9}
    plain = fine_tuning(data, "partial", freeze_depth=2, **changed)
    cached = fine_tuning(data, "partial", freeze_depth=2, **changed, **arguments)
    for trial in (plain, cached):
        trial.train_epoch()
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1, "validation's"
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-4)
    assert cached.history[0].metrics == pytest.approx(plain.history[0].metrics, rel=1e-4, abs=1e-5)
    unchanged = fine_tuning(data, "partial", freeze_depth=2)
    unchanged.train_epoch()
    assert losses(unchanged) != pytest.approx(losses(plain), rel=1e-3)


# ---- adversarial


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_adversarial_training_takes_unlabeled_images(tmp_path: Path, family: str) -> None:
    labelled = splits_of("image-classification")
    unlabeled = rows_of("image-classification", 15, seed=9)
    unlabeled = type(unlabeled)(unlabeled.inputs, None)
    names = LABEL_NAMES["image-classification"]
    splits = Splits("image-classification", labelled.train, labelled.validation, None, unlabeled, names, ())
    data = encode(splits, tmp_path)
    alone = encode(labelled, tmp_path / "alone")
    trials = [fine_tuning(one, "adversarial", family, adversarial_weight=1.0) for one in (data, alone)]
    results = [trial.train_epoch() for trial in trials]
    assert all(math.isfinite(value) for result in results for value in result.metrics.values())
    assert losses(trials[0]) != losses(trials[1])


# ---- class weights


@pytest.mark.parametrize("task", ["text-classification", "multi-label-classification", "image-classification"])
def test_balanced_classes_change_the_loss_and_no_metric(tmp_path: Path, task: TaskName) -> None:
    splits = splits_of(task)
    is_first = np.asarray(splits.train.labels).reshape(40, -1)[:, 0] == 0
    kept = np.concatenate([np.flatnonzero(is_first), np.flatnonzero(~is_first)[:4]])
    splits = Splits(task, splits.train.taken(kept), splits.validation, None, None, splits.label_names, ())
    plain = encode(splits, tmp_path / "plain")
    balanced = encode(splits, tmp_path / "balanced", class_weights="balanced")
    trials = [fine_tuning(data) for data in (plain, balanced)]
    assert trials[0].evaluate(plain.validation) == trials[1].evaluate(balanced.validation)
    for trial in trials:
        trial.train_epoch()
    assert losses(trials[0]) != pytest.approx(losses(trials[1]), rel=1e-3)

"""The cache of frozen blocks in training: it changes how long a trial takes, and nothing else."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from rayft.config import STRATEGIES, Hyperparameters, StrategyName
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.models.prefix_cache import PrefixCache
from rayft.training.acceleration import PLAIN, Acceleration
from rayft.training.checkpoint import OPTIMIZER
from rayft.training.forward import Batch, Forward
from rayft.training.loop import FineTuning, seed_generators
from rayft.training.results import EpochResult
from tests.conftest import NUM_BLOCKS, tiny_layers, tiny_model
from tests.texts import token_inputs_of
from tests.training.conftest import ALONE, LABEL_NAMES, hyperparameters

EPOCHS = 3
"""The horizon. Two are trained, so that the adversary and the optimiser are still there to be compared."""
STEPS_PER_EPOCH = 6

FREEZING: dict[str, tuple[StrategyName, dict[str, float]]] = {
    "partial, one block": ("partial", {"freeze_depth": 1}),
    "partial, two blocks": ("partial", {"freeze_depth": 2}),
    "partial, all blocks": ("partial", {"freeze_depth": NUM_BLOCKS}),
    "layerwise": ("layerwise", {"freeze_depth": 1}),
    "adversarial": ("adversarial", {"freeze_depth": 2}),
}


def freezing(case: str) -> Hyperparameters:
    strategy, values = FREEZING[case]
    return hyperparameters(strategy, **values)


def base_model() -> PreTrainedModel:
    return tiny_model("bert", len(LABEL_NAMES)).eval()


def cache_in(folder: Path, base: PreTrainedModel, autocast: torch.dtype | None = None) -> PrefixCache:
    """A cache that always pays, whatever the clock says."""
    layers, device = tiny_layers("bert"), torch.device("cpu")
    return PrefixCache(base, layers, token_inputs_of, folder, 10**9, device, autocast, min_speedup=0.0)


def trial_of(
    base: PreTrainedModel,
    data: EncodedData,
    hp: Hyperparameters,
    acceleration: Acceleration = PLAIN,
    micro_batch: int | None = None,
) -> FineTuning:
    layers = tiny_layers("bert")
    return FineTuning(
        base,
        layers,
        data,
        hp,
        epochs=EPOCHS,
        seed=0,
        workers=ALONE,
        micro_batch=micro_batch,
        acceleration=acceleration,
    )


def cached_trial(folder: Path, data: EncodedData, hp: Hyperparameters, micro_batch: int | None = None) -> FineTuning:
    """As in a process of its own: base model and cache are new, and the folder may hold what others left."""
    base = base_model()
    return trial_of(base, data, hp, Acceleration(cache=cache_in(folder, base)), micro_batch)


def plain_trial(data: EncodedData, hp: Hyperparameters, micro_batch: int | None = None) -> FineTuning:
    return trial_of(base_model(), data, hp, micro_batch=micro_batch)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.exists() else set()


@dataclass
class LowestBlock:
    """How often a model's lowest block really runs.

    It is counted inside the block: hooks of the block itself run also where its output is only handed on.
    """

    model: PreTrainedModel
    runs: int = field(default=0)

    def __post_init__(self) -> None:
        attention = self.model.get_submodule(f"{tiny_layers('bert').block_path}.0.attention")
        attention.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.runs += 1


def losses(results: list[EpochResult]) -> list[float]:
    return [point.loss for result in results for point in result.curve]


def state(trial: FineTuning) -> dict[str, torch.Tensor]:
    """The trainable weights, and the moments and the adversary that go on from them."""
    trained = {name: p.detach().clone() for name, p in trial.trained_model().named_parameters() if p.requires_grad}
    return trained | safetensors.torch.load(trial.pack().files[OPTIMIZER])


def without_key_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All but the bias of attention's keys, which adds the same to every score of a query.

    Softmax takes that out, so its gradient is nothing but rounding, which Adam may scale up to steps of full size.
    """
    return {name: tensor for name, tensor in tensors.items() if ".key.bias" not in name}


def assert_trained_alike(cached: FineTuning, plain: FineTuning) -> None:
    # Not to the last bit: when features are computed, rows lie in other batches and are padded to other lengths, which
    # rounds differently. That is some 1e-7 here; another BLAS gets ten times that.
    steps = [point.step for result in plain.history for point in result.curve]
    assert steps == list(range(1, STEPS_PER_EPOCH * len(plain.history) + 1)), "one point for each step"
    assert [point.step for result in cached.history for point in result.curve] == steps
    assert losses(cached.history) == pytest.approx(losses(plain.history), rel=1e-5)
    for one, other in zip(cached.history, plain.history, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-6)
        assert one.padding == other.padding
        assert [point.learning_rate for point in one.curve] == [point.learning_rate for point in other.curve]
    found, expected = without_key_biases(state(cached)), without_key_biases(state(plain))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("case", FREEZING)
def test_a_trial_with_the_cache_is_the_trial_without(
    tmp_path: Path, data_with_unlabeled: EncodedData, case: str
) -> None:
    data = data_with_unlabeled
    plain = plain_trial(data, freezing(case))
    really = LowestBlock(plain.trained_model())
    base = base_model()
    cached = trial_of(base, data, freezing(case), Acceleration(cache=cache_in(tmp_path, base)))
    skipped, building = LowestBlock(cached.trained_model()), LowestBlock(base)
    for trial in (plain, cached):
        trial.train_epoch()
    builds = building.runs
    for trial in (plain, cached):
        trial.train_epoch()

    assert_trained_alike(cached, plain)
    assert really.runs > 0 and skipped.runs == 0
    assert building.runs == builds > 0, "what was computed in the first epoch is there for all later ones"
    assert len(entries(tmp_path)) == (3 if case == "adversarial" else 2)  # a file for each split that is read


@pytest.mark.parametrize("case", ["partial, two blocks", "adversarial"])
def test_micro_batches_take_the_cache_as_well(tmp_path: Path, data_with_unlabeled: EncodedData, case: str) -> None:
    plain = plain_trial(data_with_unlabeled, freezing(case), micro_batch=3)
    cached = cached_trial(tmp_path, data_with_unlabeled, freezing(case), micro_batch=3)
    skipped = LowestBlock(cached.trained_model())
    for trial in (plain, cached):
        trial.train_epoch()

    assert_trained_alike(cached, plain)
    assert skipped.runs == 0


def test_rows_that_no_epoch_has_looked_up_go_the_whole_way(tmp_path: Path, data: EncodedData) -> None:
    hp = freezing("partial, two blocks")
    plain, cached = plain_trial(data, hp), cached_trial(tmp_path, data, hp)
    lowest = LowestBlock(cached.trained_model())

    assert cached.evaluate(data.validation) == plain.evaluate(data.validation)
    assert lowest.runs > 0 and entries(tmp_path) == set()


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_nothing_is_computed_for_strategies_that_freeze_nothing(
    tmp_path: Path, data_with_unlabeled: EncodedData, strategy: StrategyName
) -> None:
    plain = plain_trial(data_with_unlabeled, hyperparameters(strategy))
    cached = cached_trial(tmp_path, data_with_unlabeled, hyperparameters(strategy))
    for trial in (plain, cached):
        trial.train_epoch()

    assert entries(tmp_path) == set()
    assert losses(cached.history) == losses(plain.history)  # to the last bit
    assert cached.history[0].metrics == plain.history[0].metrics


@pytest.mark.parametrize("case", FREEZING)
def test_a_resumed_trial_with_the_cache_equals_an_uninterrupted_one(
    tmp_path: Path, data_with_unlabeled: EncodedData, case: str
) -> None:
    folder, data = tmp_path / "cache", data_with_unlabeled
    whole = cached_trial(folder, data, freezing(case))
    whole.train_epoch()
    whole.pack().write(tmp_path / "checkpoint-1")
    expected = whole.train_epoch()
    seed_generators(seed=7, epoch=7, rank=7)  # a process that resumes may have them in any state
    resumed = cached_trial(folder, data, freezing(case))
    resumed.resume(tmp_path / "checkpoint-1")
    found = resumed.train_epoch()

    # To the last bit, since both read the same files.
    assert (found.metrics, found.train_loss, found.curve) == (expected.metrics, expected.train_loss, expected.curve)
    weights, others = state(whole), state(resumed)
    assert weights.keys() == others.keys()
    assert [name for name, tensor in weights.items() if not torch.equal(tensor, others[name])] == []


def test_a_trial_that_began_without_the_cache_goes_on_with_it(tmp_path: Path, data: EncodedData) -> None:
    hp = freezing("partial, two blocks")
    plain = plain_trial(data, hp)
    plain.train_epoch()
    plain.pack().write(tmp_path / "checkpoint-1")
    plain.train_epoch()
    resumed = cached_trial(tmp_path / "cache", data, hp)
    resumed.resume(tmp_path / "checkpoint-1")
    resumed.train_epoch()

    assert_trained_alike(resumed, plain)


def test_strategies_share_what_the_same_blocks_gave(tmp_path: Path, data: EncodedData) -> None:
    base = base_model()
    acceleration = Acceleration(cache=cache_in(tmp_path, base))
    trial_of(base, data, hyperparameters("partial", freeze_depth=2), acceleration).train_epoch()
    before, lowest = entries(tmp_path), LowestBlock(base)
    for strategy in ("layerwise", "adversarial"):
        other = trial_of(base, data, hyperparameters(strategy, freeze_depth=2), acceleration)
        other.train_epoch()
    assert entries(tmp_path) == before and len(before) == 2
    assert lowest.runs == 0

    trial_of(base, data, hyperparameters("partial", freeze_depth=1), acceleration).train_epoch()
    assert len(entries(tmp_path)) == 4 and lowest.runs > 0


@pytest.fixture
def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], bool]]:
    """The split and the rows of each forward pass, and whether it starts behind frozen blocks."""
    seen: list[tuple[str, list[int], bool]] = []
    real: Callable[[Forward, EncodedSplit, np.ndarray], Batch] = Forward.batch

    def spy(self: Forward, split: EncodedSplit, rows: np.ndarray) -> Batch:
        batch = real(self, split, rows)
        seen.append((split.name, rows.tolist(), batch.hidden is not None))
        return batch

    monkeypatch.setattr(Forward, "batch", spy)
    return seen


def test_every_strategy_sees_the_same_rows_with_the_cache_and_without(
    tmp_path: Path, data_with_unlabeled: EncodedData, read_rows: list[tuple[str, list[int], bool]]
) -> None:
    rows_of: dict[tuple[StrategyName, bool], list[tuple[str, list[int]]]] = {}
    cached_passes = {}
    for strategy in STRATEGIES:
        depth = {"freeze_depth": 1} if strategy in ("partial", "layerwise", "adversarial") else {}
        for make in (plain_trial, lambda *args: cached_trial(tmp_path, *args)):
            read_rows.clear()
            make(data_with_unlabeled, hyperparameters(strategy, **depth)).train_epoch()
            is_cached = make is not plain_trial
            rows_of[strategy, is_cached] = [(name, rows) for name, rows, _ in read_rows]
            cached_passes[strategy, is_cached] = {hidden for _, _, hidden in read_rows}
    expected = rows_of["full", False]
    assert sum(len(rows) for name, rows in expected if name == "train") == len(data_with_unlabeled.train)
    for (strategy, is_cached), found in rows_of.items():
        labelled = [entry for entry in found if entry[0] != "unlabeled"]
        assert labelled == expected, (strategy, is_cached)
        assert (len(labelled) < len(found)) == (strategy == "adversarial")
        assert cached_passes[strategy, is_cached] == {is_cached and strategy not in ("full", "lora")}
    assert rows_of["adversarial", True] == rows_of["adversarial", False]


def test_a_trial_under_autocast_takes_the_cache_too(tmp_path: Path, data_with_unlabeled: EncodedData) -> None:
    hp, base, low = freezing("adversarial"), base_model(), torch.bfloat16
    plain = trial_of(base_model(), data_with_unlabeled, hp, Acceleration(low))
    cached = trial_of(base, data_with_unlabeled, hp, Acceleration(low, cache_in(tmp_path, base, low)))
    lowest = LowestBlock(cached.trained_model())
    for trial in (plain, cached):
        trial.train_epoch()

    # bfloat16 has 8 bits: where one pass rounds up and another down, a value is off by 0.4 %.
    assert losses(cached.history) == pytest.approx(losses(plain.history), rel=1e-2)
    assert lowest.runs == 0 and len(entries(tmp_path)) == 3


def test_a_cache_that_does_not_pay_is_left_out(
    tmp_path: Path, data: EncodedData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rayft.models.prefix_cache")
    hp, base = freezing("partial, two blocks"), base_model()
    never = PrefixCache(base, tiny_layers("bert"), token_inputs_of, tmp_path, 10**9, ALONE.device, min_speedup=1e9)
    plain, cached = plain_trial(data, hp), trial_of(base, data, hp, Acceleration(cache=never))
    for trial in (plain, cached):
        trial.train_epoch()

    assert losses(cached.history) == losses(plain.history)
    assert entries(tmp_path) == set()
    assert "it doesn't pay" in caplog.text

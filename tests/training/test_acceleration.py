import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rayft.config import STRATEGIES, Hyperparameters, StrategyName
from rayft.data.encoded import EncodedData
from rayft.models import linear
from rayft.training import acceleration
from rayft.training.acceleration import (
    PLAIN,
    WORTHWHILE,
    Acceleration,
    choose_autocast,
    choose_onednn,
    compile_blocks,
)
from rayft.training.checkpoint import read_checkpoint
from rayft.training.forward import Forward
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers
from tests.conftest import NUM_BLOCKS, tiny_layers, tiny_model
from tests.training.conftest import ALONE, LABEL_NAMES, hyperparameters

LOW = Acceleration(torch.bfloat16)
COMPILED = Acceleration(compiled=True)

Seconds = Callable[..., None]


def trial_of(data: EncodedData, hp: Hyperparameters, chosen: Acceleration) -> FineTuning:
    base, layers = tiny_model("bert", len(LABEL_NAMES)), tiny_layers("bert")
    return FineTuning(base, layers, data, hp, epochs=2, seed=0, workers=ALONE, acceleration=chosen)


def losses(trial: FineTuning) -> list[float]:
    return [point.loss for result in trial.history for point in result.curve]


# --- what precision auto takes


@pytest.fixture
def products_take(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    """`products_take(full, low)`: how long this machine's processor needs in float32 and in bfloat16.

    `onednn` is how long oneDNN needs in float32; as long as torch by itself if not given.
    """

    def set_seconds(full: float, low: float = 1.0, onednn: float | None = None) -> None:
        seconds = {torch.float32: full, torch.bfloat16: low}

        def fastest(compute: Any, inputs: Tensor, weights: Tensor) -> float:
            assert inputs.dtype == weights.dtype
            if compute is linear.product and onednn is not None:
                return onednn
            return seconds[inputs.dtype]

        monkeypatch.setattr(acceleration, "_fastest", fastest)

    return set_seconds


@dataclass(frozen=True)
class OneOfTwo(Workers):
    """A worker of two, of which the other one has said already whether it gains."""

    other: int = 0

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + self.other


@pytest.mark.parametrize(
    ("low", "expected"),
    [
        (0.5, torch.bfloat16),
        (0.99 / WORTHWHILE, torch.bfloat16),
        (1.01 / WORTHWHILE, None),  # it gains, but too little to round for
        (1.0, None),
        (20.0, None),  # emulated
    ],
)
def test_auto_is_bfloat16_where_the_processor_gains_from_it(
    products_take: Seconds, low: float, expected: torch.dtype | None
) -> None:
    products_take(1.0, low)
    assert choose_autocast("auto", ALONE) == expected


def test_auto_compares_bfloat16_with_the_faster_way_to_compute_in_float32(products_take: Seconds) -> None:
    products_take(1.0, 0.5, onednn=0.5)
    assert choose_autocast("auto", ALONE) is None


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, True), (0.99 / WORTHWHILE, True), (1.0, False), (3.0, False)])
def test_onednn_gets_the_products_that_it_is_faster_at(products_take: Seconds, seconds: float, expected: bool) -> None:
    products_take(1.0, onednn=seconds)
    assert choose_onednn(PLAIN, ALONE) == expected
    assert not choose_onednn(PLAIN, OneOfTwo(0, 2, ALONE.device, other=0)), "the other worker doesn't gain"
    assert choose_onednn(PLAIN, OneOfTwo(0, 2, ALONE.device, other=1)) == expected


@pytest.mark.parametrize("chosen", [LOW, COMPILED, "a GPU"], ids=str)
def test_onednn_is_for_float32_on_a_cpu(products_take: Seconds, chosen: Any) -> None:
    products_take(1.0, onednn=0.1)
    workers = ALONE
    if chosen == "a GPU":
        chosen, workers = PLAIN, replace(ALONE, device=torch.device("cuda"))
    assert not choose_onednn(chosen, workers)


@pytest.mark.parametrize(
    ("own", "other", "expected"), [(0.5, 1, torch.bfloat16), (0.5, 0, None), (2.0, 1, None), (2.0, 0, None)]
)
def test_auto_is_bfloat16_only_if_all_workers_gain(
    products_take: Seconds, own: float, other: int, expected: torch.dtype | None
) -> None:
    products_take(1.0, own)
    assert choose_autocast("auto", OneOfTwo(0, 2, ALONE.device, other=other)) == expected


def test_auto_on_this_machine_is_what_was_measured_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, measured = acceleration._fastest, {}

    def fastest(compute: Any, inputs: Tensor, weights: Tensor) -> float:
        seconds = real(compute, inputs, weights)
        measured[inputs.dtype] = min(seconds, measured.get(inputs.dtype, math.inf))
        return seconds

    monkeypatch.setattr(acceleration, "_fastest", fastest)
    found = choose_autocast("auto", ALONE)

    assert measured.keys() == {torch.float32, torch.bfloat16}
    assert all(0 < seconds < math.inf for seconds in measured.values())
    assert (found is torch.bfloat16) == (measured[torch.float32] > WORTHWHILE * measured[torch.bfloat16])


@pytest.mark.parametrize(("precision", "expected"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_given_is_taken_without_a_measurement(
    monkeypatch: pytest.MonkeyPatch, precision: Any, expected: torch.dtype | None
) -> None:
    def fastest(*_: object) -> float:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(acceleration, "_fastest", fastest)
    assert choose_autocast(precision, ALONE) is expected
    assert choose_autocast(precision, OneOfTwo(0, 2, ALONE.device, other=0)) is expected


# --- bfloat16


def test_logits_under_autocast_are_float32_and_rounded(data: EncodedData) -> None:
    model, rows = tiny_model("bert", len(LABEL_NAMES)).eval(), torch.arange(8).numpy()
    full, low = (
        Forward(model, tiny_layers("bert"), 0, data, hyperparameters(), ALONE, chosen) for chosen in (PLAIN, LOW)
    )
    with torch.no_grad():
        expected, found = (forward.logits(forward.batch(data.train, rows)) for forward in (full, low))

    assert found.dtype == expected.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert torch.equal(found, found.bfloat16().float())  # the head's product was one of bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_under_autocast_rounds_products_and_keeps_weights_in_float32(
    data_with_unlabeled: EncodedData, strategy: StrategyName
) -> None:
    full, low = (trial_of(data_with_unlabeled, hyperparameters(strategy), chosen) for chosen in (PLAIN, LOW))
    for trial in (full, low):
        trial.train_epoch()

    assert {p.dtype for p in low.trained_model().parameters()} == {torch.float32}
    assert losses(low) != losses(full)
    assert losses(low) == pytest.approx(losses(full), rel=0.02)
    assert low.history[0].metrics["loss"] == pytest.approx(full.history[0].metrics["loss"], rel=0.02)


@pytest.mark.skipif(not linear.is_available(), reason="this build of torch is without oneDNN")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_with_onednn_gives_the_same_step_by_step(
    data_with_unlabeled: EncodedData, monkeypatch: pytest.MonkeyPatch, strategy: StrategyName
) -> None:
    plain = trial_of(data_with_unlabeled, hyperparameters(strategy), PLAIN)
    monkeypatch.setattr(linear, "NARROWEST", 1)  # the tiny model has nothing wide
    base = tiny_model("bert", len(LABEL_NAMES))
    linear.use_onednn(base)
    hp = hyperparameters(strategy)
    faster = FineTuning(base, tiny_layers("bert"), data_with_unlabeled, hp, epochs=2, seed=0, workers=ALONE)
    for trial in (plain, faster):
        trial.train_epoch()
        trial.train_epoch()

    assert any(isinstance(module, linear.OneDnnLinear) for module in faster._model.modules())
    assert losses(faster) == pytest.approx(losses(plain), rel=1e-4)
    expected, found = plain.trained_model().state_dict(), faster.trained_model().state_dict()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("chosen", "precision"), [(PLAIN, "fp32"), (LOW, "bf16")])
def test_a_checkpoint_says_what_it_was_trained_in(
    data: EncodedData, tmp_path: Path, chosen: Acceleration, precision: str
) -> None:
    trial = trial_of(data, hyperparameters(), chosen)
    trial.train_epoch()
    trial.pack().write(tmp_path / "checkpoint-1")

    state = read_checkpoint(tmp_path / "checkpoint-1")
    assert state.precision == precision
    assert {tensor.dtype for tensor in (*state.model.values(), *state.optimizer.values())} == {torch.float32}


# --- compiled blocks


@pytest.mark.parametrize("frozen", range(NUM_BLOCKS + 1))
def test_blocks_that_train_are_marked_for_compilation_in_place(frozen: int) -> None:
    model, layers = tiny_model("bert"), tiny_layers("bert")
    names = list(model.state_dict())
    compile_blocks(model, layers, frozen)

    blocks = [model.get_submodule(f"{layers.block_path}.{index}") for index in range(NUM_BLOCKS)]
    assert [block._compiled_call_impl is not None for block in blocks] == [
        index >= frozen for index in range(NUM_BLOCKS)
    ]
    assert list(model.state_dict()) == names


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="torch.compile makes C++ for CPUs and there is no g++: COMPILED TRAINING IS NOT TESTED",
)
@pytest.mark.parametrize("strategy", ["full", "partial"])
def test_compiled_trials_train_as_others_do_and_the_second_compiles_nothing(
    data: EncodedData, strategy: StrategyName
) -> None:
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for learning_rate in (2e-3, 5e-4):
        # Dropout would differ, since a compiled block draws other numbers.
        hp = hyperparameters(strategy, dropout=0.0, learning_rate=learning_rate)
        plain, compiled = trial_of(data, hp, PLAIN), trial_of(data, hp, COMPILED)
        for trial in (plain, compiled):
            trial.train_epoch()
            trial.train_epoch()
        # Fused products and sums round in another order.
        assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
        assert compiled.history[-1].metrics == pytest.approx(plain.history[-1].metrics, rel=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])

    assert graphs[0] > 0, "something was compiled"
    assert graphs[1] == graphs[0], "the second trial took what was there"
    assert counters["graph_break"] == {}

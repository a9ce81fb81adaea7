import json
import math

import pytest
import torch

from rayft.training.epoch_log import MAX_CURVE_POINTS, EpochLog, check_finite
from rayft.training.failures import DivergedError
from rayft.training.results import CurvePoint, EpochResult
from rayft.training.workers import Workers

ALONE = Workers(rank=0, world_size=1, device=torch.device("cpu"))


def log_of(losses: list[float], finished_steps: int = 0) -> EpochLog:
    log = EpochLog(ALONE, epoch=2, steps=len(losses), finished_steps=finished_steps)
    for loss in losses:
        log.add(torch.tensor(loss), learning_rate=0.5, rows=4, tokens=30, padded_tokens=40)
    return log


@pytest.mark.parametrize("steps", [1, 49, 50, 51, 99, 1234])
def test_the_curve_is_thinned_and_ends_at_the_last_step(steps: int) -> None:
    _, curve, _, _ = log_of([1.0] * steps, finished_steps=1000).finish()

    assert min(steps, MAX_CURVE_POINTS / 2) <= len(curve) <= MAX_CURVE_POINTS
    assert curve[-1] == CurvePoint(step=1000 + steps, loss=1.0, learning_rate=0.5)


def test_a_point_is_the_mean_since_the_point_before() -> None:
    loss, curve, _, padding = log_of([float(step) for step in range(100)]).finish()

    assert loss == pytest.approx(49.5)
    assert [point.loss for point in curve] == [2 * index + 0.5 for index in range(50)]
    assert padding == pytest.approx(0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_names_the_step_at_which_it_began(value: float) -> None:
    losses = [1.0] * 100
    losses[60] = value

    with pytest.raises(DivergedError, match=f"train loss is {value} at epoch 2, step 1061"):
        log_of(losses, finished_steps=1000).finish()


def test_a_metric_that_is_no_number_is_divergence() -> None:
    check_finite({"loss": 1.0}, epoch=3, step=40)
    with pytest.raises(DivergedError, match="validation loss is nan at epoch 3, step 40"):
        check_finite({"accuracy": 0.5, "loss": math.nan}, epoch=3, step=40)


def test_an_epoch_survives_json_bit_for_bit() -> None:
    curve = (CurvePoint(1, 1 / 3, 1e-5), CurvePoint(2, 0.1 + 0.2, 2e-5))
    result = EpochResult(1, {"loss": 2 / 3}, 0.7, curve, 1.5, 100.0, 0.25)

    assert EpochResult.from_state_dict(json.loads(json.dumps(result.state_dict()))) == result

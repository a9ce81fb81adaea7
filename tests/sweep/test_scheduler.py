import copy
import itertools
import random
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from rayft.config import Hyperparameters, SweepConfig
from rayft.sweep.protocol import Assignment
from rayft.sweep.ranking import dominates
from rayft.sweep.scheduler import front_numbers, make_scheduler, replay
from rayft.sweep.trial_record import TrialRecord
from tests.sweep.conftest import metrics, sweep


class TuneTrial:
    """What the scheduler reads of Tune's trials."""

    def __init__(self, trial_id: str, number: int = 99) -> None:
        self.trial_id = trial_id
        self.config = {"assignment": Assignment(number, "model", Hyperparameters())}


def config(epochs: int = 9, mode: str = "max", grace: int = 1) -> SweepConfig:
    return sweep(epochs, search={"mode": mode}, early_stopping={"grace_epochs": grace, "reduction_factor": 3})


def record(number: int, values: list[float], state: Any = "pruned") -> TrialRecord:
    return TrialRecord(number, state, {}, epochs=len(values), values=dict(enumerate(values, 1)))


def report(scheduler: TrialScheduler, trial: TuneTrial, epoch: int, value: float, epochs: int = 9) -> str:
    """One epoch's result as `TuneController._process_trial_result` passes it on; the last one says that it is done."""
    result = {"epoch": epoch, **metrics(value)}
    if epoch == epochs:
        scheduler.on_trial_complete(None, trial, result)
        return str(TrialScheduler.STOP)
    return str(scheduler.on_trial_result(None, trial, result))


def rungs(scheduler: Any, below: int = 9) -> dict[int, list[float]]:
    """The values by milestone. Nothing is decided at the last epoch, so what is noted there has no effect."""
    found = {milestone: sorted(seen.values()) for milestone, seen in scheduler._brackets[0]._rungs}
    return {milestone: values for milestone, values in found.items() if milestone < below}


def live_run(
    config: SweepConfig, curves: dict[int, list[float]], order: list[int]
) -> tuple[TrialScheduler, dict[int, list[float]]]:
    """Feeds epochs in the order in which trials take turns; a stopped trial's later turns are void."""
    scheduler = make_scheduler(config)
    trials = {number: TuneTrial(f"tune-{number}", number) for number in curves}
    seen: dict[int, list[float]] = {number: [] for number in curves}
    stopped = set()
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    for number in order:
        if number not in stopped:
            seen[number].append(curves[number][len(seen[number])])
            if report(scheduler, trials[number], len(seen[number]), seen[number][-1]) == TrialScheduler.STOP:
                stopped.add(number)
    return scheduler, seen


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("grace", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_replay_rebuilds_the_rungs_that_a_restored_scheduler_lacks(mode: str, grace: int, seed: int) -> None:
    numbers = random.Random(seed)
    curves = {number: [round(numbers.random(), 6) for _ in range(9)] for number in range(12)}
    order = numbers.sample(sorted(curves) * 9, 108)
    live, seen = live_run(config(mode=mode, grace=grace), curves, order)

    rebuilt = make_scheduler(config(mode=mode, grace=grace))
    naive = copy.deepcopy(rebuilt)  # what `Tuner.restore` goes on with
    for number, values in sorted(seen.items()):
        replay(rebuilt, config(), record(number, values))

    assert any(len(values) < 9 for values in seen.values())  # ASHA has stopped some
    assert rungs(rebuilt) == rungs(live)
    assert set(map(tuple, rungs(naive).values())) == {()}


def test_a_poor_trial_is_stopped_after_a_resume_where_a_restored_scheduler_lets_it_through() -> None:
    rebuilt, naive = make_scheduler(config()), make_scheduler(config())
    for number, value in enumerate([0.7, 0.8, 0.9]):
        replay(rebuilt, config(), record(number, [value]))
    poor = TuneTrial("poor")
    for scheduler in (rebuilt, naive):
        scheduler.on_trial_add(None, poor)

    assert report(rebuilt, poor, 1, 0.5) == TrialScheduler.STOP
    assert report(naive, poor, 1, 0.5) == TrialScheduler.CONTINUE


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([0.5], True),  # ASHA stopped it, and the driver died before the study heard of it
        ([0.95], False),
        ([0.95, 0.1], False),  # no rung at epoch 2
        ([0.95, 0.9, 0.2], True),
        ([0.95] * 9, True),  # trained to its end
        ([], False),
    ],
)
def test_the_decision_on_the_last_epoch_is_repeated(values: list[float], stops: bool) -> None:
    scheduler = make_scheduler(config())
    for number, curve in enumerate([[0.7] * 3, [0.8] * 3, [0.9] * 3]):
        replay(scheduler, config(), record(number, curve))

    assert replay(scheduler, config(), record(3, values, "running")) is stops


def test_a_resumed_trial_stands_once_in_each_rung_where_rays_asha_counts_it_twice() -> None:
    ours = make_scheduler(config())
    replay(ours, config(), record(0, [0.5, 0.6], "running"))
    naive = AsyncHyperBandScheduler("epoch", "accuracy", "max", max_t=9, reduction_factor=3)
    before = TuneTrial("before", 0)
    naive.on_trial_add(None, before)
    for epoch, value in ((1, 0.5), (2, 0.6)):
        report(naive, before, epoch, value)

    resumed = TuneTrial("resumed", 0)
    for scheduler in (ours, naive):
        scheduler.on_trial_add(None, resumed)  # Tune adds the trial after `suggest` has replayed it
        for epoch in (3, 4, 5):
            assert report(scheduler, resumed, epoch, 0.7) == TrialScheduler.CONTINUE

    assert rungs(ours) == {1: [0.5], 3: [0.7]}
    assert rungs(naive) == {1: [0.5, 0.7], 3: [0.7]}


def test_a_trial_that_goes_on_in_another_group_is_replayed_without_effect() -> None:
    scheduler = make_scheduler(config())
    first, second = TuneTrial("first", 0), TuneTrial("second", 0)
    scheduler.on_trial_add(None, first)
    report(scheduler, first, 1, 0.5)
    scheduler.on_trial_complete(None, first, {"outcome": "group lost", "done": True})

    assert not replay(scheduler, config(), record(0, [0.5], "running"))
    scheduler.on_trial_add(None, second)
    report(scheduler, second, 2, 0.6)
    assert rungs(scheduler) == {1: [0.5], 3: []}


def test_a_resumed_trial_is_judged_by_its_epoch_and_not_by_tunes_count() -> None:
    ours = make_scheduler(config())
    for number, curve in enumerate([[0.3, 0.5, 0.7], [0.4, 0.6, 0.8], [0.5, 0.7, 0.9]]):
        replay(ours, config(), record(number, curve))
    naive, trial = copy.deepcopy(ours), TuneTrial("resumed", 3)
    replay(ours, config(), record(3, [0.5, 0.55], "running"))
    naive.on_trial_add(None, trial)

    assert report(ours, trial, 3, 0.6) == TrialScheduler.STOP
    # After `Tuner.restore`, `training_iteration` is 1 again: a third epoch is held against first ones.
    assert report(naive, trial, 1, 0.6) == TrialScheduler.CONTINUE


def test_a_result_without_the_metric_is_left_alone() -> None:
    scheduler = make_scheduler(config())
    trial = TuneTrial("failed")
    scheduler.on_trial_add(None, trial)
    failure = {"outcome": "failed", "done": True}

    assert scheduler.on_trial_result(None, trial, failure) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(None, trial, failure)
    assert rungs(scheduler) == {1: [], 3: []}


def test_settings_reach_asha() -> None:
    scheduler = make_scheduler(sweep(8, early_stopping={"grace_epochs": 2, "reduction_factor": 2}))
    assert isinstance(scheduler, AsyncHyperBandScheduler)
    assert sorted(rungs(scheduler, below=99)) == [2, 4, 8]


def test_without_early_stopping_nothing_is_stopped() -> None:
    plain = sweep(3, early_stopping=None)
    scheduler = make_scheduler(plain)
    assert isinstance(scheduler, FIFOScheduler)
    curves = itertools.product([0.9, 0.1], repeat=2)
    assert not any(replay(scheduler, plain, record(n, list(values))) for n, values in enumerate(curves))


# --- several objectives

SEVERAL = sweep(9, search={"metric": ["accuracy", "train_seconds"]})


@pytest.mark.parametrize("seed", range(3))
def test_fronts_are_peeled_off_one_after_another(seed: int) -> None:
    generator = random.Random(seed)
    points = [(generator.randint(0, 5), generator.randint(0, 5)) for _ in range(30)]
    left, expected, number = dict(enumerate(points)), {}, 0
    while left:
        front = [i for i, one in left.items() if not any(dominates(o, one, ("max", "min")) for o in left.values())]
        for index in front:
            expected[index] = number
            del left[index]
        number += 1
    assert front_numbers(points, ("max", "min")) == [expected[index] for index in range(30)]
    assert front_numbers([], ("max", "min")) == []


def tell(scheduler: TrialScheduler, number: int, epoch: int, *point: float) -> bool:
    """Whether a trial goes on after an epoch."""
    trial = TuneTrial(f"tune-{number}", number)
    result = {"epoch": epoch, "accuracy": point[0], "point": point}
    return bool(scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE)


def test_a_trial_that_no_other_one_beats_is_never_stopped() -> None:
    scheduler = make_scheduler(SEVERAL)
    for number in range(12):  # each is better in one and worse in the other than any before it
        assert tell(scheduler, number, 1, 0.5 + 0.01 * number, 1.0 + number)
    assert not tell(scheduler, 12, 1, 0.4, 20.0)
    assert tell(scheduler, 13, 1, 0.4, 0.5), "the fastest, however poor"


def test_without_a_trade_off_one_in_three_goes_on() -> None:
    scheduler = make_scheduler(SEVERAL)
    better_first = [tell(scheduler, number, 1, 0.9 - 0.01 * number, 1.0 + number) for number in range(9)]
    assert better_first == [True] + [False] * 8
    scheduler = make_scheduler(SEVERAL)
    assert all(tell(scheduler, number, 1, 0.1 + 0.01 * number, 9.0 - number) for number in range(9))
    # Of ten trials the four best go on, so the fifth best is stopped.
    assert not tell(scheduler, 9, 1, 0.1 + 0.01 * 4 + 0.001, 9.0 - 4)


def test_trials_are_judged_at_rungs_and_end_with_the_last_epoch() -> None:
    scheduler = make_scheduler(SEVERAL)
    assert tell(scheduler, 0, 1, 0.9, 1.0)
    for epoch in (2, 4, 8):
        assert tell(scheduler, 1, epoch, 0.1, 9.0)
    assert not tell(scheduler, 1, 1, 0.1, 9.0)
    assert not tell(scheduler, 0, 9, 0.9, 9.0), "the last epoch"
    failed = {"outcome": "a failure"}
    assert scheduler.on_trial_result(None, TuneTrial("tune-7", 7), failed) == TrialScheduler.CONTINUE


def test_replay_rebuilds_the_rungs_of_several_objectives() -> None:
    live, rebuilt = make_scheduler(SEVERAL), make_scheduler(SEVERAL)
    generator = random.Random(0)
    for number in range(20):
        values, seconds = {}, {}
        for epoch in range(1, 10):
            values[epoch], seconds[epoch] = generator.random(), {"train_seconds": generator.random()}
            if not tell(live, number, epoch, values[epoch], *seconds[epoch].values()):
                break
        replay(rebuilt, SEVERAL, TrialRecord(number, "pruned", {}, values=values, further=seconds))
    assert rebuilt._rungs == live._rungs
    assert 3 < len(live._rungs[3]) < 20

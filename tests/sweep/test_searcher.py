import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from rayft.config import SweepConfig
from rayft.sweep.scheduler import make_scheduler
from rayft.sweep.searcher import StudySearcher
from rayft.sweep.study import SweepStudy
from tests.sweep.conftest import OpenStudy, metrics, sweep
from tests.sweep.test_scheduler import TuneTrial, report, rungs


def config(trials: int = 6, **search: Any) -> SweepConfig:
    return sweep(9, search={"trials": trials, "sampler": "random", **search})


def searcher_of(study: SweepStudy, config: SweepConfig, slots: int = 4) -> tuple[StudySearcher, Any]:
    scheduler = make_scheduler(config)
    return StudySearcher(study, scheduler, config, slots), scheduler


def train(study: SweepStudy, number: int, values: list[float]) -> None:
    for epoch, value in enumerate(values, 1):
        study.record_epoch(number, epoch, metrics(value), seconds=1.0)


def suggest(searcher: StudySearcher, trial_id: str) -> dict[str, Any]:
    suggested = searcher.suggest(trial_id)
    assert isinstance(suggested, dict)
    return suggested


def past_sweep(study: SweepStudy, finished: list[list[float]], unfinished: list[list[float]]) -> None:
    """A record of trials: first those that have ended, then those that a killed driver left open."""
    for values in finished + unfinished:
        train(study, study.ask()[0], values)
    for number in range(len(finished)):
        study.finish(number)


def test_each_trial_gets_a_slot_of_its_own(open_study: OpenStudy) -> None:
    searcher, _ = searcher_of(open_study(config()), config(), slots=2)
    first, second = suggest(searcher, "a"), suggest(searcher, "b")

    assert {first["slot"], second["slot"]} == {0, 1}
    assert searcher.suggest("c") is None  # later
    searcher.release(second["slot"])
    third = suggest(searcher, "c")
    assert third["slot"] == second["slot"]
    assert [s["assignment"].trial for s in (first, second, third)] == [0, 1, 2]


def test_the_assignment_holds_fixed_and_searched_values(open_study: OpenStudy) -> None:
    study = open_study(config())
    given = suggest(searcher_of(study, config())[0], "a")
    assert given["reported"] == 0
    hyperparameters = given["assignment"].hyperparameters.model_dump()
    assert hyperparameters.items() >= study.record(0).params.items()
    assert hyperparameters["weight_decay"] == config().training.weight_decay


def test_the_sweep_ends_with_its_last_trial(open_study: OpenStudy) -> None:
    study = open_study(config(3))
    searcher, _ = searcher_of(study, config(3))
    assert searcher.remaining == 3
    for name in "abc":
        suggest(searcher, name)
    for slot in range(3):
        assert searcher.suggest("d") is None  # a running trial may still be given back
        searcher.release(slot)
    assert searcher.suggest("d") == Searcher.FINISHED
    assert len(study.records()) == 3


@pytest.mark.parametrize(("trials", "remaining"), [(6, 4), (3, 1), (2, 1), (1, 1)])
def test_unfinished_trials_come_first_then_new_ones(open_study: OpenStudy, trials: int, remaining: int) -> None:
    past_sweep(open_study(config()), finished=[[0.5], [0.6]], unfinished=[[0.9, 0.9]])
    study = open_study(config(trials))
    before = study.record(2).params
    searcher, _ = searcher_of(study, config(trials))

    assert searcher.remaining == remaining  # an unfinished trial is brought to its end, however few are wanted
    given = [suggest(searcher, str(n)) for n in range(remaining)]
    assert [g["assignment"].trial for g in given] == [2, 3, 4, 5][:remaining]
    assert [g["reported"] for g in given] == [2, 0, 0, 0][:remaining]
    assert given[0]["assignment"].hyperparameters.model_dump().items() >= before.items()
    for one in given:
        searcher.release(one["slot"])
    assert searcher.suggest("z") == Searcher.FINISHED


def test_a_trial_without_an_epoch_is_taken_up_with_its_values(open_study: OpenStudy) -> None:
    params = open_study(config()).ask()[1]
    given = suggest(searcher_of(open_study(config()), config())[0], "a")

    assert (given["assignment"].trial, given["reported"]) == (0, 0)
    assert given["assignment"].hyperparameters.model_dump().items() >= params.items()


def test_finished_trials_stand_in_the_rungs_and_judge_new_ones(open_study: OpenStudy) -> None:
    past_sweep(open_study(config()), finished=[[0.7], [0.8], [0.9] * 3], unfinished=[])
    searcher, scheduler = searcher_of(open_study(config()), config())
    assert rungs(scheduler) == {1: [0.7, 0.8, 0.9], 3: [0.9]}

    suggest(searcher, "new")
    scheduler.on_trial_add(None, TuneTrial("new", 3))
    assert report(scheduler, TuneTrial("new", 3), 1, 0.5) == TrialScheduler.STOP


@pytest.mark.parametrize("values", [[0.1], [0.95] * 9], ids=["stopped by ASHA", "trained to its end"])
def test_a_trial_that_only_lacks_its_end_gets_it(open_study: OpenStudy, values: list[float]) -> None:
    past_sweep(open_study(config()), finished=[[0.7], [0.8], [0.9]], unfinished=[values])
    study = open_study(config())
    searcher, scheduler = searcher_of(study, config())

    assert searcher.remaining == 3
    assert suggest(searcher, "next")["assignment"].trial == 4
    assert study.record(3).state == ("complete" if len(values) == 9 else "pruned")
    assert rungs(scheduler)[1] == sorted([0.7, 0.8, 0.9, values[0]])


def test_the_next_trial_is_judged_though_one_was_just_ended_in_its_place(open_study: OpenStudy) -> None:
    """Tune's id is then that of two trials, and ASHA passes over a trial that it has seen at a rung."""
    past_sweep(open_study(config()), finished=[[0.7], [0.8], [0.9]], unfinished=[[0.1]])
    searcher, scheduler = searcher_of(open_study(config()), config())
    trial = TuneTrial("tune-id", suggest(searcher, "tune-id")["assignment"].trial)
    scheduler.on_trial_add(None, trial)

    assert report(scheduler, trial, 1, 0.2) == TrialScheduler.STOP
    assert rungs(scheduler)[1] == [0.1, 0.2, 0.7, 0.8, 0.9]


def test_a_resumed_trial_stands_once_in_each_rung(open_study: OpenStudy) -> None:
    past_sweep(open_study(config()), finished=[[0.7], [0.8]], unfinished=[[0.9, 0.9]])
    searcher, scheduler = searcher_of(open_study(config()), config())
    trial = TuneTrial("tune-id", suggest(searcher, "tune-id")["assignment"].trial)
    scheduler.on_trial_add(None, trial)
    for epoch in (3, 4):
        assert report(scheduler, trial, epoch, 0.9) == TrialScheduler.CONTINUE

    assert rungs(scheduler) == {1: [0.7, 0.8, 0.9], 3: [0.9]}


def test_a_trial_that_lost_its_group_goes_on_in_another_one(open_study: OpenStudy) -> None:
    study = open_study(config(2))
    searcher, scheduler = searcher_of(study, config(2), slots=2)
    first, second = suggest(searcher, "a"), suggest(searcher, "b")
    trial = TuneTrial("a", 0)
    scheduler.on_trial_add(None, trial)
    train(study, 0, [0.5])
    report(scheduler, trial, 1, 0.5)

    assert searcher.give_back(first["slot"], 0)
    assert searcher.suggest("c") is None  # there is no other group before the second trial is over
    searcher.release(second["slot"])
    again = suggest(searcher, "c")
    assert (again["slot"], again["assignment"], again["reported"]) == (second["slot"], first["assignment"], 1)
    assert rungs(scheduler)[1] == [0.5]
    assert not searcher.give_back(second["slot"], 0)  # the last group is lost too


def test_all_that_is_left_may_be_to_end_trials(open_study: OpenStudy) -> None:
    past_sweep(open_study(config(2)), finished=[], unfinished=[[0.9] * 9, [0.8] * 9])
    study = open_study(config(2))
    searcher, _ = searcher_of(study, config(2), slots=1)

    assert searcher.suggest("a") == Searcher.FINISHED
    assert [record.state for record in study.records()] == ["complete", "complete"]


def test_resumed_trials_get_the_proposals_of_an_uninterrupted_sweep(open_study: OpenStudy) -> None:
    whole, _ = searcher_of(open_study(config(), "whole.db"), config())
    expected = [suggest(whole, str(n))["assignment"] for n in range(4)]

    first, _ = searcher_of(open_study(config()), config())
    for n in range(2):
        suggest(first, str(n))
    second, _ = searcher_of(open_study(config()), config())

    assert [suggest(second, str(n))["assignment"] for n in range(4)] == expected


def test_tunes_snapshots_hold_nothing(open_study: OpenStudy, tmp_path: Path) -> None:
    """`Tuner.restore` would unpickle them; rayft neither fills nor reads them."""
    searcher, _ = searcher_of(open_study(config()), config())
    searcher.save(str(tmp_path / "searcher.pkl"))
    assert (tmp_path / "searcher.pkl").read_bytes() == b""
    (tmp_path / "searcher.pkl").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    searcher.restore(str(tmp_path / "searcher.pkl"))
    assert not Path("harm").exists()
    assert type(pickle.loads(pickle.dumps(searcher))) is object

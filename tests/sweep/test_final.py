from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rayft.config import SweepConfig
from rayft.search_space import Params
from rayft.sweep.final import SAME, FinalRun, compare, cost, decide, default_params, plan
from rayft.sweep.trial_record import TrialRecord


def sweep(final: Any = None, metric: str = "accuracy", **search: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "model": "m",
            "data": {"train": "t.csv"},
            "training": {"epochs": 4},
            "search_space": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
            "search": {"metric": metric, "trials": 4, **search},
            "final": final,
        }
    )


def searched(number: int, value: float | None, seconds: float = 8.0, **fields: Any) -> TrialRecord:
    values = {} if value is None else {4: value}
    found = {"state": "complete", "epochs": len(values) * 4, "values": values, **fields}
    best = None if value is None else 4
    params: Params = {"learning_rate": 1e-4 * (number + 1)}
    return TrialRecord(number=number, params=params, value=value, best_epoch=best, seconds=seconds, **found)


def trained_again(number: int, of: int | None, seed: int, value: float, **fields: Any) -> TrialRecord:
    record = searched(number, value, **fields)
    params = {} if of is None else {"learning_rate": 1e-4 * (of + 1)}
    return TrialRecord(**{**vars(record), "role": "final", "final_of": of, "seed": seed, "params": params})


SEARCH = [searched(0, 0.8), searched(1, 0.9), searched(2, 0.85), searched(3, 0.7, state="pruned")]
TWICE = {"top": 2, "seeds": 2}


def finals(values: dict[int | None, Sequence[float]], first: int = 4) -> list[TrialRecord]:
    runs = [(of, seed, value) for of, own in values.items() for seed, value in enumerate(own, start=1)]
    return [trained_again(first + index, *run) for index, run in enumerate(runs)]


def test_the_best_and_the_default_are_trained_again() -> None:
    params = {of: {"learning_rate": 1e-4 * (of + 1)} for of in (1, 2)}
    wanted = [FinalRun(of, params[of], seed) for of in (1, 2) for seed in (1, 2)]
    wanted += [FinalRun(None, {}, seed) for seed in (1, 2)]
    assert plan(sweep(TWICE), SEARCH) == wanted
    # What is on record is not trained again, whether it is over or goes on.
    on_record = [trained_again(4, 1, 1, 0.88), trained_again(5, 1, 2, 0.87, state="running")]
    assert plan(sweep(TWICE), [*SEARCH, *on_record]) == wanted[2:]
    assert plan(sweep(TWICE), [*SEARCH, searched(4, 0.6, state="running")]) == [], "the search isn't over"
    assert plan(sweep(None), SEARCH) == []
    assert plan(sweep(TWICE), [searched(0, None, state="failed")]) == []


def test_lower_may_be_better() -> None:
    assert {run.of for run in plan(sweep({"top": 1, "seeds": 2}, "loss"), SEARCH)} == {3, None}


def test_a_default_that_leads_is_trained_once() -> None:
    config = sweep(TWICE, start_with=[{"learning_rate": 2e-4}])
    assert default_params(config) == {"learning_rate": 2e-4}
    assert {run.of for run in plan(config, SEARCH)} == {1, 2}
    decision = decide(config, [*SEARCH, *finals({1: (0.88, 0.89), 2: (0.8, 0.8)})])
    assert decision is not None
    assert (decision.winner.trial, decision.default.trial, decision.against_default) == (1, 1, SAME)


def test_without_being_asked_for_it_takes_little_time() -> None:
    assert cost(sweep("auto"), SEARCH) == pytest.approx(3 * 3 * 8 / 32)
    assert plan(sweep("auto"), SEARCH) == []
    many = [*SEARCH, *(searched(number, 0.5) for number in range(4, 40))]
    assert cost(sweep("auto"), many) == pytest.approx(3 * 3 * 8 / 320)
    assert len(plan(sweep("auto"), many)) == 9
    assert len(plan(sweep(TWICE), many)) == 6


def test_the_winner_has_the_best_mean_and_the_export_is_its_best_run() -> None:
    records = [*SEARCH, *finals({1: (0.9, 0.7), 2: (0.84, 0.86), None: (0.6, 0.61)})]
    decision = decide(sweep(TWICE), records)
    assert decision is not None
    assert (decision.winner.trial, decision.run, decision.winner.mean) == (2, 7, pytest.approx(0.85))
    assert [one.trial for one in decision.configurations] == [2, 1]
    assert decision.difference == pytest.approx(0.245)
    assert decision.drop == pytest.approx(0.0)
    assert decision.against_default == "better"
    state = decision.state_dict("accuracy")
    assert state["words"][0].startswith("trained again with 2 other seeds, trial 2 has accuracy 0.8500 in the mean")
    assert "the search had said 0.8500, the same" in state["words"][0]
    assert state["words"][2].startswith("the model is that of the best of these runs, trial 7 with 0.8600; the mean is")
    assert (state["exported"], state["failed"], len(state["words"])) == (0.86, [], 3)
    assert state["words"][1].startswith("that is better than the untuned default's 0.6050 (+0.2450, 95 % interval +0.")


def test_the_luck_of_the_search_is_told() -> None:
    records = [*SEARCH, *finals({1: (0.82, 0.84), 2: (0.7, 0.7), None: (0.83, 0.84)})]
    decision = decide(sweep(TWICE), records)
    assert decision is not None
    assert decision.drop == pytest.approx(0.07)
    assert "the search had said 0.9000, 0.0700 too good" in decision.in_words("accuracy")[0]
    assert decision.against_default == SAME
    assert "that is the same within noise as the untuned default's" in decision.in_words("accuracy")[1]


def test_what_was_not_trained_to_its_end_decides_nothing() -> None:
    whole = finals({1: (0.82, 0.84), 2: (0.7, 0.7), None: (0.83, 0.84)})
    assert decide(sweep(TWICE), SEARCH) is None
    assert decide(sweep(TWICE), [*SEARCH, *whole[:-1]]) is None, "there is nothing to compare with"
    decision = decide(sweep(TWICE), [*SEARCH, *whole[:2], *whole[4:]])
    assert decision is not None
    assert [one.trial for one in decision.configurations] == [1]


def test_what_a_limit_cut_off_is_trained_anew() -> None:
    config = sweep(TWICE)
    cut_off = [*SEARCH, trained_again(4, 1, 1, 0.88), trained_again(5, 1, 2, 0.8, state="pruned")]
    assert plan(config, cut_off)[0] == FinalRun(1, {"learning_rate": 2e-4}, 2)
    assert len(plan(config, cut_off)) == 5
    assert decide(config, cut_off) is None


def test_a_configuration_whose_training_fails_with_another_seed_cant_win_and_that_is_said() -> None:
    config = sweep(TWICE)
    good = finals({2: (0.7, 0.7), None: (0.6, 0.62)}, first=6)
    records = [*SEARCH, trained_again(4, 1, 1, 0.95), trained_again(5, 1, 2, 0.9, state="failed"), *good]
    decision = decide(config, records)
    assert decision is not None
    assert (decision.winner.trial, decision.failed) == (2, (1,))
    assert "trial 1 can't win: with another seed the training failed" in decision.in_words("accuracy")
    assert plan(config, records) == [], "it would fail again"


def test_a_default_that_fails_leaves_a_winner_without_a_comparison() -> None:
    config = sweep(TWICE)
    failed = trained_again(8, None, 1, 0.1, state="failed")
    decision = decide(config, [*SEARCH, *finals({1: (0.9, 0.8), 2: (0.7, 0.7)}), failed])
    assert decision is not None
    assert (decision.winner.trial, decision.default, decision.against_default) == (1, None, None)
    assert decision.in_words("accuracy")[1].startswith("the untuned default can't be compared")
    assert decision.state_dict("accuracy")["default"] is None


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_differences_are_judged_by_welchs_interval(metric: str) -> None:
    config, generator = sweep(metric=metric), np.random.default_rng(0)
    for _ in range(50):
        one, other = generator.normal(0.8, 0.05, 3).tolist(), generator.normal(0.75, 0.01, 4).tolist()
        words, interval = compare(one, other, config)
        assert interval is not None
        p_value = stats.ttest_ind(one, other, equal_var=False).pvalue
        assert (words == SAME) == (p_value > 0.05) == (interval[0] <= 0 <= interval[1])
        higher = sum(one) / 3 > sum(other) / 4
        assert words in (SAME, "better" if higher == (metric == "accuracy") else "worse")
    assert compare([0.8, 0.8], [0.7, 0.7], config) == ("better" if metric == "accuracy" else "worse", None)
    assert compare([0.8, 0.8], [0.8, 0.8], config) == (SAME, None)

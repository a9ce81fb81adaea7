import random
import subprocess
import sys
from typing import Any

import pytest

from rayft.sweep.ranking import best_epoch, dominates, is_better, leaders, pareto_front, ranking
from rayft.sweep.trial_record import TrialRecord


def test_the_mode_says_which_value_is_better() -> None:
    assert is_better(0.8, 0.7, "max")
    assert is_better(0.7, 0.8, "min")
    assert not is_better(0.7, 0.7, "max")
    assert not is_better(0.7, 0.7, "min")


def test_of_equal_epochs_the_earliest_is_the_best() -> None:
    assert best_epoch({3: 0.7, 2: 0.8, 1: 0.8}, "max") == 1
    assert best_epoch({1: 0.3, 2: 0.2, 3: 0.2}, "min") == 2
    assert best_epoch({}, "max") is None


def test_of_equal_trials_the_earlier_leads_and_failures_never_do() -> None:
    def record(number: int, value: float | None, state: Any = "complete") -> TrialRecord:
        return TrialRecord(number, state, {}, value)

    records = [record(0, 0.7), record(1, 0.9, "failed"), record(2, 0.8), record(3, 0.8), record(4, None, "pruned")]

    assert [r.number for r in leaders(records, "max", 2)] == [2, 3]
    assert [r.number for r in leaders(records, "min", 9)] == [0, 2, 3]
    assert leaders([record(0, 0.0), record(1, 0.5)], "min", 1)[0].number == 0  # a zero is a value


def test_a_process_that_only_ranks_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "optuna", "sqlalchemy", "numpy", "pydantic"}
    code = f"import sys, rayft.sweep.ranking; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- several objectives

MODES = ("max", "min")


def point_record(number: int, accuracy: float, seconds: float, state: Any = "complete") -> TrialRecord:
    return TrialRecord(number, state, {}, accuracy, best_epoch=1, further={1: {"train_seconds": seconds}})


def test_a_point_dominates_what_is_worse_in_one_and_better_in_none() -> None:
    assert dominates((0.9, 1.0), (0.9, 2.0), MODES)
    assert dominates((0.9, 1.0), (0.8, 1.0), MODES)
    assert not dominates((0.9, 1.0), (0.9, 1.0), MODES)
    assert not dominates((0.9, 2.0), (0.8, 1.0), MODES)
    assert not dominates((0.8, 1.0), (0.9, 2.0), MODES)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_trial_dominates(seed: int) -> None:
    generator = random.Random(seed)
    records = [point_record(n, generator.randint(0, 6) / 10, generator.randint(1, 6)) for n in range(25)]
    records.append(point_record(25, 1.0, 0.0, "failed"))
    scored = records[:25]
    expected = {
        record.point for record in scored if not any(dominates(other.point, record.point, MODES) for other in scored)
    }
    front = pareto_front(records, MODES)
    assert {record.point for record in front} == expected
    assert len(front) == len(expected), "of equals, one"
    assert all(record.number == min(r.number for r in scored if r.point == record.point) for record in front)
    assert [record.point[0] for record in front] == sorted((p[0] for p in expected), reverse=True)


def test_with_one_objective_the_front_is_the_leader() -> None:
    records = [TrialRecord(n, "complete", {}, value, best_epoch=1) for n, value in enumerate([0.5, 0.9, 0.9])]
    assert [record.number for record in pareto_front(records, ("max",))] == [1]
    assert pareto_front([], ("max",)) == []


def test_of_trials_that_are_equal_in_the_first_objective_the_better_in_the_second_leads() -> None:
    records = [point_record(0, 0.95, 8.0), point_record(1, 0.9, 1.0), point_record(2, 0.95, 3.0)]
    assert [record.number for record in ranking(records, MODES)] == [2, 0, 1]
    assert [record.number for record in pareto_front(records, MODES)] == [2, 1]

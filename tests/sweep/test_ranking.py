import subprocess
import sys
from typing import Any

from rayft.sweep.ranking import best_epoch, is_better, leaders
from rayft.sweep.study import TrialRecord


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

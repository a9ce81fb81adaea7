import json
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.overhead import per_trial
from benchmarks.report import (
    Target,
    console,
    disagreement,
    paired_ratios,
    ratio_rows,
    ratios_table,
    seconds_table,
    write_json,
)
from benchmarks.runner import Run


def run(seconds: float, *accuracies: float) -> Run:
    return Run(seconds, [{"index": i, "accuracy": a, "epochs": 2} for i, a in enumerate(accuracies)])


FAILED = Run(3.0, error="exit status 1; see output.log")


def test_ratios_are_of_runs_of_the_same_repeat() -> None:
    assert paired_ratios([run(10), run(40)], [run(5), run(10)]) == [2.0, 4.0]


def test_repeats_in_which_an_arm_failed_have_no_ratio() -> None:
    assert paired_ratios([run(10), FAILED, run(9)], [run(5), run(10), FAILED]) == [2.0]


@pytest.mark.parametrize(("ratio", "at_most", "holds"), [(3.0, False, True), (2.9, False, False), (3.1, True, False)])
def test_a_target_bounds_from_above_or_below(ratio: float, at_most: bool, holds: bool) -> None:
    assert Target("a", "b", 3.0, at_most).holds(ratio) is holds


def test_targets_come_first_and_arms_that_did_not_run_are_left_out() -> None:
    runs = {"rayft": [run(10)], "hps": [run(35)], "expert": [run(9)], "broken": [FAILED]}
    targets = [Target("hps", "rayft", 3.0), Target("rayft", "expert", 1.05, at_most=True), Target("x", "rayft", 1.0)]
    rows = ratio_rows(runs, targets, ["rayft"])
    found = [(row["arm"], row["base"], row["target"], row["met"]) for row in rows]
    assert found == [
        ("hps", "rayft", ">= 3", True),
        ("rayft", "expert", "<= 1.05", False),
        ("expert", "rayft", None, None),
        ("broken", "rayft", None, None),
    ]
    assert [row["median"] for row in rows] == [3.5, pytest.approx(10 / 9), 0.9, None]


def test_disagreement_is_the_largest_distance_from_the_median_of_the_arms() -> None:
    runs = {"a": [FAILED, run(1, 0.8, 0.9)], "b": [run(1, 0.82, 0.7)], "c": [run(1, 0.81, 0.9)], "d": [FAILED]}
    assert disagreement(runs) == {"a": pytest.approx(0.01), "b": pytest.approx(0.2), "c": pytest.approx(0.0)}


def test_tables_show_failures_and_flag_disagreement(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"rayft": [run(10, 0.9)], "hps": [run(20, 0.9)], "odd": [run(30, 0.5)], "broken": [FAILED]}
    console().print(
        seconds_table("title", runs), ratios_table(ratio_rows(runs, [Target("hps", "rayft", 3)], ["rayft"]))
    )
    shown = capsys.readouterr().out
    assert "0.400 !" in shown and "failed" in shown and "missed" in shown and "no result" in shown


def test_seconds_per_trial_are_gaps_between_completions() -> None:
    found = per_trial([float(second) for second in range(301)] + [300.0 + 2 * second for second in range(1, 101)])
    assert found["seconds_per_trial"] == pytest.approx(500 / 400)
    assert (found["seconds_per_trial_first"], found["seconds_per_trial_last"], found["last_over_first"]) == (1, 2, 2)


def test_the_machine_is_described_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "result.json", machine.describe())
    described = json.loads((tmp_path / "new" / "result.json").read_text())
    assert described["cores"] >= 1 and described["memory_gib"] > 0 and described["cpu"]
    assert set(described["versions"]) == {"torch", "ray", "transformers", "optuna"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.json"]

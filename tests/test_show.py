"""`rayft show`: one trial, for people and for programs."""

import io
import json

import pytest

from rayft.report.curve import Chart, CurvePoint
from rayft.report.tables import output_console
from tests.program import STARTS, exit_status, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_run(tmp_path_factory.mktemp("runs")).path)


def shown(run: str, number: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert exit_status("show", run, str(number)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    return [" ".join(line.split()) for line in lines]


def as_json(run: str, number: int, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert exit_status("show", run, str(number), "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_complete_trial(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(run, 1, capsys)
    for line in (
        "trial 1, place 1 of 5",
        "state complete",
        "time 3s in 2 of 2 epochs",
        "best epoch 2",
        "validation accuracy 0.9000, loss 0.1000",
        "checkpoint trials/1/checkpoint-2",
        "learning_rate 0.0002 searched",
        "freeze_depth 3 searched",
        "weight_decay 0.01 fixed",
    ):
        assert line in lines
    assert not any("reason" in line for line in lines)


def test_only_what_its_strategy_and_task_read_is_listed(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    full, layerwise = (as_json(run, number, capsys)["hyperparameters"] for number in (0, 4))
    assert isinstance(full, dict) and isinstance(layerwise, dict)
    assert layerwise.keys() - full.keys() == {"freeze_depth", "layer_decay"}
    assert full.keys().isdisjoint({"lora_rank", "adversarial_weight", "flip", "freeze_fraction"})
    assert {name for name, given in layerwise.items() if given["searched"]} == STARTS[4].keys()
    assert {name: layerwise[name]["value"] for name in STARTS[4]} == STARTS[4]


def test_why_a_trial_ended_early(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = shown(run, 3, capsys)
    assert "reason train loss is nan" in failed
    assert "trial 3" in failed, "a failed trial has no place"
    assert "reason early stopping: others were better by then" in shown(run, 2, capsys)
    assert as_json(run, 2, capsys)["reason"] is None


def test_a_trial_without_an_epoch(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(run, 4, capsys)
    assert lines[-1] == "no epoch is finished"
    assert "checkpoint none: only those of the leading trials are kept" in lines
    view = as_json(run, 4, capsys)
    assert (view["value"], view["metrics"], view["checkpoint"], view["curve"]) == (None, {}, None, [])


def test_the_curve_is_beside_the_median_of_those_that_trained_so_long(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_json(run, 0, capsys)["curve"] == [
        {"epoch": 1, "value": 0.5, "median": pytest.approx(0.55), "trials": 4},
        {"epoch": 2, "value": 0.7, "median": pytest.approx(0.8), "trials": 2},
    ]


@pytest.mark.parametrize("number", ["5", "99"])
def test_an_unknown_trial(number: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("show", run, number, "--json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"TRIAL: must be one of 0 to 4, but got {number}" in printed.err


# The chart


def chart(points: list[CurvePoint], metric: str = "accuracy", best: int = 1, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    output_console(file).print(Chart(points, metric, best), width=80)
    return file.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


def bars(lines: list[str], start: str) -> list[str]:
    """What is right of the columns of numbers."""
    return [line[lines[0].index(start) :] for line in lines[1:-1]]


def test_the_longest_bar_is_the_highest_value_and_a_mark_is_the_median() -> None:
    lines = chart([CurvePoint(1, 0.0, 0.5, 3), CurvePoint(2, 1.0, 0.5, 2)])
    assert lines[0].split() == ["epoch", "accuracy", "median", "trials", "0.0000", "1.0000"]
    lowest, highest = bars(lines, "0.0000")
    assert lowest.startswith("█ ") and lowest.rstrip().endswith("│")
    assert len(highest) == len(lines[0]) - lines[0].index("0.0000")
    assert highest.count("█") == len(highest) - 1
    assert lowest.index("│") == highest.index("│")


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation"])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_it_fits_80_columns(metric: str, scale: float) -> None:
    lines = chart([CurvePoint(epoch, epoch * scale, scale, 1000) for epoch in range(1, 1001)], metric)
    assert max(map(len, lines)) <= 80


def test_it_is_ascii_where_nothing_else_can_be_shown() -> None:
    assert any("#" in line and "|" in line for line in chart([CurvePoint(1, 0.1, 0.4, 2)], encoding="ascii"))


def test_of_many_epochs_the_first_the_last_and_the_best_are_shown() -> None:
    lines = chart([CurvePoint(epoch, 0.5, 0.5, 1) for epoch in range(1, 201)], best=123)
    epochs = [int(line.split()[0]) for line in lines[1:-1]]
    assert epochs == sorted(epochs) and len(epochs) <= 25
    assert {1, 123, 200} <= set(epochs)

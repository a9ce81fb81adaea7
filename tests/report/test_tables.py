import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayft.config import SearchConfig, SweepConfig
from rayft.report.tables import (
    format_duration,
    format_params,
    output_console,
    ranked,
    trials_json,
    trials_table,
    winner_table,
)
from rayft.sweep.trial_record import TrialRecord

CONFIG = SweepConfig.model_validate({"model": "model", "data": {"train": "train.csv"}})
COMPLETE = TrialRecord(
    number=0,
    state="complete",
    params={"learning_rate": 2.1234e-05, "strategy": "partial", "freeze_depth": 3},
    value=0.91237,
    best_epoch=3,
    epochs=4,
    values={1: 0.8, 2: 0.85, 3: 0.91237, 4: 0.9},
    metrics={"accuracy": 0.91237, "loss": 0.3},
    seconds=72.4,
    checkpoint="trials/0/checkpoint-3",
    digest="ab",
)
PRUNED = TrialRecord(number=1, state="pruned", params={"strategy": "full"}, value=0.95, best_epoch=1, epochs=1)
FAILED = TrialRecord(
    number=2,
    state="failed",
    params={"strategy": "lora"},
    value=0.99,
    best_epoch=1,
    epochs=1,
    reason="train loss is nan",
)
RUNNING = TrialRecord(number=3, state="running", params={"strategy": "full"})
RECORDS = [RUNNING, FAILED, COMPLETE, PRUNED]


def lines(renderable: object) -> list[str]:
    text = io.StringIO()
    output_console(text).print(renderable)
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]


def test_the_best_comes_first_and_failures_never_lead() -> None:
    assert [record.number for record in ranked(RECORDS, ("max",))] == [1, 0, 2, 3]
    assert [record.number for record in ranked(RECORDS, ("min",))] == [0, 1, 2, 3]


def test_table_is_plain_text_where_there_is_no_terminal() -> None:
    title, _, *rows = lines(trials_table(RECORDS, CONFIG))
    assert title.split() == ["trial", "state", "accuracy", "epochs", "time", "parameters"]
    assert rows[1].split() == [
        *("0", "complete", "0.9124", "4", "1m12s"),
        *("strategy=partial", "learning_rate=2.12e-05", "freeze_depth=3"),
    ]
    assert [row.split()[0] for row in rows] == ["1", "0", "2", "train", "3"]
    assert "\x1b" not in "".join(rows)


def test_a_long_row_of_a_piped_table_is_not_broken_at_80_columns() -> None:
    params = {f"hyperparameter_{index}": 0.125 for index in range(5)}
    rows = lines(trials_table([TrialRecord(number=7, state="complete", params=params)], CONFIG))
    assert len(rows) == 3
    assert rows[2].endswith("hyperparameter_4=0.125")


def test_table_fits_a_narrow_terminal() -> None:
    config = CONFIG.model_copy(update={"search": SearchConfig(metric="matthews_correlation")})
    text = io.StringIO()
    Console(file=text, force_terminal=True, width=60).print(trials_table(RECORDS, config))
    plain = Console(file=io.StringIO()).render_str(text.getvalue())
    assert all(len(line) <= 60 for line in plain.plain.splitlines() if "\x1b" not in line)
    assert "matthews_correlation" in text.getvalue()


def test_text_with_brackets_is_not_read_as_markup() -> None:
    record = TrialRecord(number=0, state="failed", params={}, reason="shape [red] of x[/bold]")
    assert any("shape [red] of x[/bold]" in line for line in lines(trials_table([record], CONFIG)))


def test_json_holds_the_contract_of_the_command() -> None:
    rows = json.loads(json.dumps(trials_json(RECORDS, CONFIG, {1})))
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert rows[0] == {
        "number": 0,
        "state": "complete",
        "params": {"learning_rate": 2.1234e-05, "strategy": "partial", "freeze_depth": 3},
        "value": 0.91237,
        "best_epoch": 3,
        "epochs": 4,
        "seconds": 72.4,
        "reason": None,
        "role": "search",
        "final_of": None,
        "seed": 0,
        "objectives": {"accuracy": 0.91237},
        "on_front": False,
    }
    assert rows[3]["value"] is None
    assert [row["on_front"] for row in rows] == [False, True, False, False]
    assert rows[3]["objectives"] == {}


WINNER: dict[str, Any] = {
    "trial": 7,
    "epoch": 2,
    "params": {"strategy": "full"},
    "validation": {"accuracy": 0.9},
    "test": None,
    "final": None,
    "front": None,
    "latency_ms": None,
    "metric": "accuracy",
    "interval": {"split": "validation", "95%": [0.85, 0.94]},
}


def test_winner_names_trial_scores_and_folder() -> None:
    best = WINNER
    shown = lines(winner_table(best, Path("runs/x/best")))
    assert [line.split(maxsplit=1)[0] for line in shown] == ["best", "parameters", "validation", "95", "model"]
    assert shown[0].endswith("7, epoch 2")
    assert shown[2].endswith("accuracy 0.9000")
    shown = lines(winner_table({**best, "test": {"accuracy": 0.8}}, Path("runs/x/best")))
    assert shown[3].split() == ["test", "accuracy", "0.8000"]
    shown = lines(winner_table({**best, "final": {"trial": 3, "words": ["it is lucky"]}}, Path("runs/x/best")))
    assert shown[3].endswith("accuracy 0.8500 to 0.9400 on validation (bootstrap over rows)")
    assert shown[4].split(maxsplit=2) == ["last", "stage", "it is lucky"]
    assert shown[0].endswith("3, trained again as trial 7, epoch 2")


def test_values_read_as_in_the_yaml() -> None:
    params = {"batch_size": 16, "max_grad_norm": None, "strategy": "full", "weight_decay": 0.010000000001}
    assert format_params(params) == "strategy=full batch_size=16 max_grad_norm=null weight_decay=0.01"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (3900, "1h05m"), (90000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_runs_of_the_last_stage_come_after_the_search_and_say_what_they_repeat() -> None:
    params = {"learning_rate": 1e-4}
    records = [
        TrialRecord(number=0, state="complete", params=params, value=0.8),
        TrialRecord(number=1, state="complete", params=params, value=0.9, role="final", final_of=0, seed=1),
        TrialRecord(number=2, state="complete", params={}, value=0.95, role="final", seed=2),
    ]
    assert [record.number for record in ranked(records, ("max",))] == [0, 2, 1]
    shown = "\n".join(lines(trials_table(records, CONFIG)))
    assert "trial 0 again, seed +1: learning_rate=0.0001" in shown
    assert "the default again, seed +2:" in shown
    assert [(one["role"], one["final_of"], one["seed"]) for one in trials_json(records, CONFIG, ())] == [
        ("search", None, 0),
        ("final", 0, 1),
        ("final", None, 2),
    ]


def test_several_objectives_have_a_column_each_and_the_front_is_marked() -> None:
    config = CONFIG.model_copy(update={"search": SearchConfig(metric=["accuracy", "train_seconds"])})
    record = replace(PRUNED, further={1: {"train_seconds": 2.5}})
    other = replace(COMPLETE, further={epoch: {"train_seconds": 9.0} for epoch in COMPLETE.values})
    title, _, first, second = lines(trials_table([other, record], config, {1}))
    assert title.split() == ["trial", "state", "accuracy", "train_seconds", "front", "epochs", "time", "parameters"]
    assert first.split()[:5] == ["1", "pruned", "0.9500", "2.5000", "*"]
    assert "*" not in second
    shown = "\n".join(
        lines(winner_table({**WINNER, "front": [front_entry(7, 0.9, 3.0), front_entry(2, 0.8, 1.5)]}, Path("x")))
    )
    assert "2 trials that no other one beats in all" in shown
    assert "trial 2: accuracy 0.8000, latency_ms 1.5000" in shown


def front_entry(trial: int, accuracy: float, latency: float) -> dict[str, Any]:
    return {"trial": trial, "params": {}, "objectives": {"accuracy": accuracy, "latency_ms": latency}}

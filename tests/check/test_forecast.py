"""Shares, memory and times that `rayft check` foretells."""

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from rayft.check.check import check_facts, print_check
from rayft.check.expected_epochs import expected_epochs, passing
from rayft.check.forecast import (
    CONSTANT_SECONDS,
    Forecast,
    Machine,
    about,
    draw_configurations,
    epoch_seconds,
    sweep_seconds,
    worker_bytes,
)
from rayft.check.measure import ModelCost, StepCost
from rayft.check.trainable import count_trainable, trainable_parts
from rayft.config import EarlyStoppingConfig, Hyperparameters, SearchConfig, SweepConfig, TaskName
from rayft.errors import ModelError
from rayft.strategies import get_strategy
from rayft.strategies.base import with_freeze_depth
from rayft.sweep.scheduler import make_scheduler, replay
from rayft.sweep.trial_record import TrialRecord
from tests.conftest import FAMILIES, IMAGE_FAMILIES, LM_FAMILIES, NUM_BLOCKS, WORDS, tiny_layers, tiny_model

MODELS: list[tuple[TaskName, str]] = [
    *(("text-classification", family) for family in FAMILIES),
    *(("causal-lm", family) for family in LM_FAMILIES),
    *(("image-classification", family) for family in IMAGE_FAMILIES),
]
SECONDS_PER_TOKEN = 1e-4
STEP = StepCost(seconds=0.01, token_seconds=3 * SECONDS_PER_TOKEN, token_bytes=1e6)
ROWS, LENGTH, VALIDATION_TOKENS = 640, 10, 1000


def sweep(**sections: Any) -> SweepConfig:
    sections.setdefault("final", "off")
    return SweepConfig.model_validate({"model": "m", "data": {"train": "t.csv"}} | sections)


def cost(rows: int = ROWS) -> ModelCost:
    """Of a model of three blocks, each 30 % of its forward pass, on rows of one length."""
    return ModelCost(
        steps=dict.fromkeys(("full", "partial", "layerwise", "adversarial", "lora"), STEP),
        forward_seconds=SECONDS_PER_TOKEN,
        blocks=(0.3,) * NUM_BLOCKS,
        layers=tiny_layers("bert"),
        lengths=np.full(rows, LENGTH),
        rows=rows,
        validation_tokens=VALIDATION_TOKENS,
        precision="fp32",
        device="cpu",
    )


def seconds(
    config: SweepConfig,
    rows: int = ROWS,
    groups: int = 1,
    limit: float = math.inf,
    *,
    stops: bool = False,
    cached: bool = False,
) -> float:
    """Of the trials alone."""
    drawn = draw_configurations(config)
    whole = sweep_seconds(config, {"m": cost(rows)}, drawn, groups, limit, stops=stops, cached=cached)
    return whole - CONSTANT_SECONDS


# What trains


@pytest.mark.parametrize(("task", "family"), MODELS, ids=lambda value: str(value))
@pytest.mark.parametrize(
    "values",
    [
        {"strategy": "full"},
        {"strategy": "partial", "freeze_depth": 1},
        {"strategy": "layerwise", "freeze_depth": NUM_BLOCKS},
        {"strategy": "adversarial", "freeze_fraction": 0.5},
        {"strategy": "lora", "lora_rank": 3},
    ],
    ids=lambda values: values["strategy"],
)
def test_what_is_counted_is_what_a_prepared_model_trains(task: TaskName, family: str, values: dict[str, Any]) -> None:
    hp, layers = Hyperparameters(**values), tiny_layers(family, task)
    with torch.device("meta"):
        counted = count_trainable(tiny_model(family, task=task), layers, hp)
    prepared = get_strategy(hp.strategy).prepare(tiny_model(family, task=task), layers, with_freeze_depth(hp, layers))
    assert counted == sum(p.numel() for p in prepared.parameters() if p.requires_grad)


def test_each_strategy_is_shown_at_its_lowest_middle_and_highest_depth_and_rank() -> None:
    config = sweep(
        search_space={
            "strategy": ["full", "partial", "layerwise", "lora"],
            "freeze_depth": {"low": 1, "high": 3, "when": {"strategy": "partial"}},
            "lora_rank": [16, 2, 4, 8],
        }
    )
    model = tiny_model("bert")
    parts = trainable_parts(config, "m", model, tiny_layers("bert"))
    shown = [(part.strategy, part.freeze_depth, part.lora_rank) for part in parts]
    assert shown == [
        ("full", None, None),
        *(("partial", depth, None) for depth in (1, 2, 3)),
        ("layerwise", 0, None),
        *(("lora", None, rank) for rank in (2, 8, 16)),
    ]
    whole = sum(p.numel() for p in model.parameters())
    assert (parts[0].parameters, parts[0].share, parts[0].bytes) == (whole, 1.0, 4 * whole + 16 * whole)
    shares = [part.share for part in parts[:4]]
    assert shares == sorted(shares, reverse=True)


def test_a_fraction_is_shown_as_the_model_s_depth() -> None:
    config = sweep(training={"strategy": "partial"}, search_space={"freeze_fraction": {"low": 0.3, "high": 1}})
    parts = trainable_parts(config, "m", tiny_model("bert"), tiny_layers("bert"))
    assert [part.freeze_depth for part in parts] == [1, 2, 3]


# Early stopping


def test_who_passes_a_rung_by_hand() -> None:
    # Each against those before it: 0.2 < 0.5; 0.41 >= 0.4, two thirds of the way from 0.2 to 0.5; 0.3 < 0.44, a third
    # of the way from 0.41 to 0.5; 0.6 is above all.
    assert list(passing([0.5, 0.2, 0.41, 0.3, 0.6], 3)) == [0.5, 0.41, 0.6]
    assert list(passing([0.5, 0.2, 0.39], 3)) == [0.5], "the quantile of 0.2 and 0.5 is 0.4"
    assert list(passing([0.5, 0.5], 2)) == [0.5, 0.5], "a tie goes on"
    many = np.random.default_rng(0).random(3000).tolist()
    assert len(list(passing(many, 3))) / 3000 == pytest.approx(1 / 3, abs=0.02)


def test_expected_epochs_by_hand() -> None:
    stopping = EarlyStoppingConfig(grace_epochs=1, reduction_factor=3)
    assert expected_epochs(stopping, 1, 8) == 1
    assert expected_epochs(stopping, 4, 1) == 4, "nobody to be held against"
    # Two trials: the second stops after 1 of 4 epochs if it is worse than the first, else neither stops.
    assert expected_epochs(stopping, 4, 2) == pytest.approx((4 + (1 + 4) / 2) / 2, abs=0.03)


@pytest.mark.parametrize(("grace", "factor", "epochs", "trials"), [(1, 3, 4, 16), (1, 2, 8, 40), (2, 4, 12, 30)])
def test_expected_epochs_are_those_of_ray_s_asha(grace: int, factor: int, epochs: int, trials: int) -> None:
    stopping = {"grace_epochs": grace, "reduction_factor": factor}
    config = sweep(training={"epochs": epochs}, early_stopping=stopping)
    draw, total, repeats = np.random.default_rng(0), 0, 60
    for _ in range(repeats):
        scheduler = make_scheduler(config)
        for number in range(trials):
            value = float(draw.random())
            for epoch in range(1, epochs + 1):
                total += 1
                record = TrialRecord(number, "running", {}, epochs=epoch, values=dict.fromkeys([epoch], value))
                if epoch == epochs or replay(scheduler, config, record):
                    break
    found = expected_epochs(EarlyStoppingConfig(**stopping), epochs, trials)
    assert found == pytest.approx(total / (repeats * trials), rel=0.04)


# The sweep's time


def test_an_epoch_by_hand() -> None:
    config, whole = sweep(), cost()
    tokens = ROWS * LENGTH
    full = epoch_seconds(config, whole, Hyperparameters(batch_size=16), cached=False)
    steps = 40 * 0.01 + 3 * SECONDS_PER_TOKEN * tokens
    assert full == pytest.approx(steps + SECONDS_PER_TOKEN * VALIDATION_TOKENS)
    frozen = Hyperparameters(strategy="partial", freeze_depth=2, batch_size=16)
    forward = 0.6 * SECONDS_PER_TOKEN * tokens
    validation = SECONDS_PER_TOKEN * VALIDATION_TOKENS
    assert epoch_seconds(config, whole, frozen, cached=False) == pytest.approx(0.4 * steps + forward + validation)
    assert epoch_seconds(config, whole, frozen, cached=True) == pytest.approx(0.4 * (steps + validation))


def test_the_forecast_grows_with_trials_epochs_and_rows_and_falls_with_trials_side_by_side() -> None:
    def of(trials: int = 8, epochs: int = 2, rows: int = ROWS, groups: int = 1) -> float:
        config = sweep(search={"trials": trials}, training={"epochs": epochs}, early_stopping=None)
        return seconds(config, rows, groups)

    assert of(trials=16) == pytest.approx(2 * of())
    assert of(groups=2) == pytest.approx(of() / 2)
    assert of(groups=16) == pytest.approx(of() / 8), "a trial takes what it takes"
    by_epoch = of(epochs=3) - of(epochs=2)
    assert of(epochs=8) - of(epochs=2) == pytest.approx(6 * by_epoch)
    of_rows = of(rows=2 * ROWS) - of(rows=ROWS)
    assert of(rows=3 * ROWS) - of(rows=ROWS) == pytest.approx(2 * of_rows)


def test_early_stopping_and_the_cache_take_less() -> None:
    space = {"strategy": ["partial"], "freeze_depth": {"low": 1, "high": 3}}
    config = sweep(search_space=space, training={"epochs": 9}, search={"trials": 30})
    plain = seconds(config)
    assert seconds(config, stops=True) < 0.6 * plain
    assert seconds(config, cached=True) < 0.8 * plain


def test_a_time_limit_and_a_last_stage_count() -> None:
    changes: dict[str, Any] = {"training": {"epochs": 2}, "early_stopping": None}
    trials = sweep(search={"trials": 9}, **changes)
    assert seconds(trials, limit=CONSTANT_SECONDS + 3) == pytest.approx(3)
    assert seconds(sweep(search={"trials": 9}, final={}, **changes), limit=CONSTANT_SECONDS + 3) == pytest.approx(3)
    assert seconds(trials, limit=1) == 0, "nothing is faster than its start and end"
    again = seconds(sweep(search={"trials": 9}, final={"top": 2, "seeds": 3}, **changes)) / seconds(trials)
    assert 1.7 < again < 2, "nine trials more, which leave no time between them"
    assert seconds(sweep(search={"trials": 9}, final="auto", **changes)) == pytest.approx(seconds(trials))


def test_images_that_change_at_random_are_not_taken_from_the_cache() -> None:
    config = sweep(task="image-classification", data={"train": "digits"})
    frozen = Hyperparameters(strategy="partial", freeze_depth=2)
    changed = frozen.model_copy(update={"flip": True})
    kept, recomputed = (epoch_seconds(config, cost(), hp, cached=True) for hp in (frozen, changed))
    assert recomputed - kept == pytest.approx(0.6 * SECONDS_PER_TOKEN * ROWS * LENGTH)


# Memory


def test_a_worker_s_memory_grows_with_its_share_of_a_batch() -> None:
    config = sweep(search_space={"batch_size": [16, 64]})
    parts = trainable_parts(config, "m", tiny_model("bert"), tiny_layers("bert"))
    drawn = draw_configurations(config)
    alone = worker_bytes(config, cost(), parts, drawn)
    pair = worker_bytes(sweep(cluster={"workers_per_trial": 2}), cost(), parts, drawn)
    assert alone - pair == pytest.approx(32 * LENGTH * 1e6)


def test_what_is_more_than_the_machine_has_is_a_warning() -> None:
    machine = Machine(cpus=2, device="cpu", precision="fp32", concurrent_trials=2, memory=int(16e9))
    fits = Forecast(machine, {(False, False): 100.0}, 1.0, worker_bytes=7e9, workers=2)
    assert not any("warning" in line for line in fits.in_words())
    assert fits.state_dict()["fits"]
    short = replace(fits, worker_bytes=9e9)
    (warning,) = (line for line in short.in_words() if "warning" in line)
    assert "2 workers side by side need about 18.0 GB, and this machine has 16.0 GB" in warning
    assert not short.state_dict()["fits"]


def test_how_times_are_said() -> None:
    assert [about(s) for s in (1, 44, 100, 240, 5300, 7200, 200_000)] == [
        "10 s",
        "40 s",
        "100 s",
        "4 min",
        "88 min",
        "2.0 h",
        "2.3 days",
    ]
    machine = Machine(cpus=2, device="cpu", precision="bf16", concurrent_trials=1, memory=int(16e9))
    times = {(False, False): 540.0, (True, False): 240.0, (False, True): 400.0, (True, True): 190.0}
    assert Forecast(machine, times, 1.0, 1e9, 1).in_words()[-1] == (
        "on this machine (2 CPUs, 1 trial side by side, bf16 on cpu) the sweep takes about 4 min with early stopping "
        "(about 9 min without); about 3 min with early stopping once the cache of frozen layers is there "
        "(about 7 min without)"
    )


# The command


@pytest.fixture
def project(tmp_path: Path, model_folder: Callable[[str], Path]) -> SweepConfig:
    rows = "".join(f"{word},{n % 2}\n" for n, word in enumerate(WORDS))
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}")
    return sweep(
        model=str(model_folder("bert")),
        data={"train": str(tmp_path / "t.csv"), "validation": 0.2},
        search_space={"strategy": ["full", "partial", "adversarial", "lora"], "freeze_depth": {"low": 1, "high": 3}},
        training={"epochs": 2},
        cluster={"gpus_per_worker": 0},
    )


def printed(config: SweepConfig, forecasts: bool = True) -> str:
    console = Console(width=300, file=io.StringIO())
    print_check(config, console, forecasts)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_check_shows_what_trains_and_forecasts_the_sweep(project: SweepConfig) -> None:
    threads = torch.get_num_threads()
    text = printed(project)
    assert re.search(r"^ full +[\d,]+ +100\.0% +0\.00 GB", text, re.M)
    assert re.search(r"^ partial +3 +[\d,]+ +\d+\.\d% ", text, re.M)
    assert re.search(r"^ lora +8 +[\d,]+ +\d+\.\d% ", text, re.M)
    assert re.search(r"^a worker needs about 0\.\d GB$", text, re.M)
    assert re.search(
        r"^on this machine \(\d+ CPUs, .*\) the sweep takes about \d+ (s|min) with early stopping", text, re.M
    )
    assert "once the cache of frozen layers is there" in text
    assert torch.get_num_threads() == threads


def test_without_a_forecast_nothing_is_timed(project: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayft.check.check.measure", lambda *_: pytest.fail("timed"))
    text = printed(project, forecasts=False)
    assert "what trains of the model" in text
    assert "on this machine" not in text
    assert check_facts(project, forecasts=False)["forecast"] is None


def test_the_facts_for_programs(project: SweepConfig) -> None:
    facts = json.loads(json.dumps(check_facts(project)))
    trains = facts["models"][project.models[0]]["trains"]
    assert [one["strategy"] for one in trains].count("partial") == 3
    assert 0 < trains[-1]["share"] < 1
    found = facts["forecast"]
    assert found["fits"]
    assert set(found["seconds"]) == {
        "with_early_stopping",
        "without_early_stopping",
        "with_early_stopping_and_cache",
        "without_early_stopping_and_cache",
    }
    assert all(value > CONSTANT_SECONDS for value in found["seconds"].values())
    assert found["machine"]["concurrent_trials"] >= 1


def test_a_machine_that_is_too_small_gets_no_forecast(project: SweepConfig) -> None:
    large = project.model_copy(update={"cluster": project.cluster.model_copy(update={"cpus_per_worker": 4096})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.set_num_threads", lambda _: None)
        text = printed(large)
    assert "no forecast, since the sweep can't run on this machine: a trial needs 1 workers of 4096 CPUs" in text


@pytest.mark.parametrize("limits", [{"time_limit": 5.0}, {"core_hours": 1e-9}])
def test_the_sweep_s_limits_count(project: SweepConfig, limits: dict[str, float]) -> None:
    search = {"trials": 100_000, **limits}
    limited = project.model_copy(update={"search": SearchConfig.model_validate(search)})
    found = check_facts(limited)["forecast"]["seconds"]
    assert all(CONSTANT_SECONDS <= value <= CONSTANT_SECONDS + 5 for value in found.values())


def test_a_model_that_the_memory_can_t_hold_is_not_loaded(
    project: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayft.check.check.measure", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("rayft.check.check.free_memory", lambda _: 1000)
    text = printed(project)
    assert "warning: a worker needs more than 0 GB, which isn't free here: no forecast" in text
    assert "on this machine" not in text
    assert check_facts(project)["forecast"] is None


def test_a_model_without_weights_is_a_fault_of_the_model(project: SweepConfig, tmp_path: Path) -> None:
    shutil.copytree(project.models[0], tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    bare = project.model_copy(update={"model": str(tmp_path / "bare")})
    with pytest.raises(ModelError, match="its model can't be read"):
        printed(bare)
    assert "nothing is wrong" in printed(bare, forecasts=False)

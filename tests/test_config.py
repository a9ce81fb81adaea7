from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rayft.config import (
    SOME_STRATEGIES_ONLY,
    STRATEGIES,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    ClusterConfig,
    Hyperparameters,
    Range,
    SearchConfig,
    SweepConfig,
    TrainingConfig,
    holds_credentials,
)
from rayft.config_faults import LONGEST_VALUE, FaultList, rule_of, shown, unknown_key_rule
from rayft.config_paths import with_absolute_paths, with_models
from rayft.config_tasks import TASK_RULES


def sweep(**keys: Any) -> SweepConfig:
    return SweepConfig.model_validate({"model": "m", "data": {"train": "t.csv"}, **keys})


def faults(**keys: Any) -> dict[str, str]:
    """The rules that a sweep with these sections breaks, by dotted key."""
    with pytest.raises(ValidationError) as caught:
        sweep(**keys)
    found: list[tuple[str, str]] = []
    for error in caught.value.errors():
        cause = error.get("ctx", {}).get("error")
        found += cause.faults if isinstance(cause, FaultList) else [(".".join(map(str, error["loc"])), rule_of(error))]
    assert len(dict(found)) == len(found), f"a key with two faults: {found}"
    return dict(found)


def test_defaults_of_a_minimal_sweep() -> None:
    config = sweep()
    assert config.metric == "accuracy"
    assert (config.task, config.storage, config.strategies) == ("text-classification", "runs", ["full"])
    assert (config.data.validation, config.data.test, config.data.columns.text) == (0.15, None, "text")
    assert (config.training.epochs, config.training.learning_rate, config.training.batch_size) == (4, 5e-5, 16)
    assert (config.search.trials, config.search.time_limit, config.mode) == (16, None, "max")
    assert config.early_stopping is not None
    assert (config.early_stopping.grace_epochs, config.early_stopping.reduction_factor) == (1, 3)
    assert (config.cluster.concurrent_trials, config.cluster.gpus_per_worker) == ("auto", "auto")


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        sweep().storage = "elsewhere"  # type: ignore[misc]


def test_every_strategy_specific_hyperparameter_exists() -> None:
    assert set(STRATEGY_HYPERPARAMETERS) == set(STRATEGIES)
    assert set(Hyperparameters.model_fields) > SOME_STRATEGIES_ONLY
    assert {"learning_rate", "batch_size", "strategy"}.isdisjoint(SOME_STRATEGIES_ONLY)


@pytest.mark.parametrize("metric", TASK_RULES["text-classification"].metrics)
def test_the_direction_follows_from_the_metric_unless_given(metric: str) -> None:
    assert sweep(search={"metric": metric}).mode == ("min" if metric == "loss" else "max")
    assert sweep(search={"metric": metric, "mode": "min"}).mode == "min"
    assert sweep(search={"metric": metric, "mode": "max"}).mode == "max"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (30, 30),
        (0.5, 0.5),
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1 h 30 m", 5400),
        ("1.5h", 5400),
        (None, None),
    ],
)
def test_durations(given: Any, seconds: float | None) -> None:
    assert SearchConfig(time_limit=given).time_limit == seconds


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("90", "must be a duration such as 90s, 30m or 1h30m, but got '90'"),
        ("30x", "must be a duration such as 90s, 30m or 1h30m, but got '30x'"),
        ("1:30", "must be a duration such as 90s, 30m or 1h30m, but got '1:30'"),
        ("-5m", "must be a duration such as 90s, 30m or 1h30m, but got '-5m'"),
        ("5m and more", "must be a duration such as 90s, 30m or 1h30m, but got '5m and more'"),
        ("", "must be a duration such as 90s, 30m or 1h30m, but got ''"),
        ("0s", "must be > 0, but got 0.0"),
        (0, "must be > 0, but got 0"),
        (True, "must be a number, but got True"),
        (float("inf"), "must be a finite number, but got inf"),
    ],
)
def test_durations_that_are_none(given: Any, rule: str) -> None:
    assert faults(search={"time_limit": given}) == {"search.time_limit": rule}


@pytest.mark.parametrize(
    ("section", "key", "value", "rule"),
    [
        ("training", "learning_rate", -1.0, "must be > 0, but got -1.0"),
        ("training", "learning_rate", "fast", "must be a number, but got 'fast'"),
        ("training", "learning_rate", True, "must be a number, but got True"),
        ("training", "learning_rate", float("nan"), "must be a finite number, but got nan"),
        ("training", "layer_decay", 1.5, "must be <= 1, but got 1.5"),
        ("training", "dropout", 1, "must be < 1, but got 1"),
        ("training", "batch_size", 0, "must be >= 1, but got 0"),
        ("training", "batch_size", 16.5, "must be an integer, but got 16.5"),
        ("training", "batch_size", "16", "must be an integer, but got '16'"),
        ("training", "epochs", True, "must be an integer, but got True"),
        ("training", "epochs", 0, "must be >= 1, but got 0"),
        ("training", "precision", "fp16", "must be one of 'auto', 'fp32' or 'bf16', but got 'fp16'"),
        ("training", "cache", True, "must be one of 'auto' or 'off', but got True"),
        ("training", "cache_gb", 0, "must be > 0, but got 0"),
        ("training", "compile", 1, "must be true or false, but got 1"),
        ("search", "trials", True, "must be an integer, but got True"),
        ("search", "trials", 0, "must be >= 1, but got 0"),
        ("search", "seed", -1, "must be >= 0, but got -1"),
        ("search", "seed", 2**31, "must be < 2147483648, but got 2147483648"),
        ("search", "sampler", "tpes", "must be one of 'tpe', 'random', 'gp' or 'qmc', but got 'tpes'"),
        ("search", "start_with", {"dropout": 0}, "must be a list, but got {'dropout': 0}"),
        ("cluster", "workers_per_trial", 0, "must be >= 1, but got 0"),
        ("cluster", "concurrent_trials", 0, "must be an integer of at least 1, or auto, but got 0"),
        ("cluster", "concurrent_trials", True, "must be an integer of at least 1, or auto, but got True"),
        ("cluster", "concurrent_trials", "all", "must be an integer of at least 1, or auto, but got 'all'"),
        ("cluster", "gpus_per_worker", -1, "must be a fraction of one GPU, a whole number, or auto, but got -1"),
        ("cluster", "gpus_per_worker", 1.5, "must be a fraction of one GPU, a whole number, or auto, but got 1.5"),
        ("early_stopping", "reduction_factor", 1, "must be >= 2, but got 1"),
    ],
)
def test_a_wrong_value_names_the_rule_and_the_value(section: str, key: str, value: Any, rule: str) -> None:
    assert faults(**{section: {key: value}}) == {f"{section}.{key}": rule}


FILES = "a file, a glob, a list of files, a saved dataset folder or hub:NAME[:CONFIG]"


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("train", 3, f"must be {FILES}, but got 3"),
        ("train", ["a", 1], f"must be {FILES}, but got ['a', 1]"),
        ("validation", 1.5, f"must be a fraction between 0 and 1, or {FILES}, but got 1.5"),
        ("validation", 0, f"must be a fraction between 0 and 1, or {FILES}, but got 0"),
        ("validation", True, f"must be a fraction between 0 and 1, or {FILES}, but got True"),
        ("test", [0.1], f"must be a fraction between 0 and 1, or {FILES}, but got [0.1]"),
        ("max_length", 3, "must be >= 4, but got 3"),
        ("on_bad_row", "skip", "must be one of 'error' or 'drop', but got 'skip'"),
    ],
)
def test_a_wrong_value_of_the_data_section(key: str, value: Any, rule: str) -> None:
    assert faults(data={"train": "t.csv", key: value}) == {f"data.{key}": rule}


@pytest.mark.parametrize("value", [["a"], ["a", "b", "c"], ["a", 1], 3, {"a": "b"}])
def test_text_columns_are_one_or_two(value: Any) -> None:
    rule = f"must be a column, or a list of two columns, but got {value!r}"
    assert faults(data={"train": "t.csv", "columns": {"text": value}}) == {"data.columns.text": rule}


def test_what_sources_and_columns_may_be() -> None:
    data = sweep(data={"train": ["a", "b*"], "validation": "v", "test": 0.5, "columns": {"text": ["p", "h"]}}).data
    assert (data.train, data.validation, data.test, data.columns.text) == (["a", "b*"], "v", 0.5, ("p", "h"))


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2, 8.0, "auto"])
def test_fractions_of_a_gpu_and_whole_ones(gpus: Any) -> None:
    assert ClusterConfig(gpus_per_worker=gpus).gpus_per_worker == gpus


@pytest.mark.parametrize("section", ["training", "search", "cluster", "early_stopping", "data"])
def test_a_section_must_be_a_mapping(section: str) -> None:
    assert faults(**{section: "auto"}) == {section: "must be a mapping, but got 'auto'"}


def test_names_must_not_be_empty() -> None:
    assert faults(model="", storage="") == {
        "model": "must be a model as text, or a list of different ones to search, but got ''",
        "storage": "must not be empty",
    }


# The search space


def test_the_three_ways_to_write_a_domain() -> None:
    space = sweep(
        search_space={
            "batch_size": [16, 32],
            "dropout": {"choices": [None, 0.1]},
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        }
    ).search_space
    assert space["batch_size"] == Categorical(choices=[16, 32])
    assert space["dropout"] == Categorical(choices=[None, 0.1])
    assert space["learning_rate"] == Range(low=1e-5, high=1e-3, log=True)


def test_a_range_is_of_integers_if_the_hyperparameter_is_one() -> None:
    space = sweep(
        training={"strategy": "lora"},
        search_space={
            "batch_size": {"low": 8, "high": 32, "step": 8},
            "weight_decay": {"low": 0, "high": 1},
            "lora_alpha": {"low": 8, "high": 32, "step": 8},
        },
    ).search_space
    found = {name: domain.is_int for name, domain in space.items() if isinstance(domain, Range)}
    assert found == {"batch_size": True, "weight_decay": False, "lora_alpha": False}
    assert isinstance(space["lora_alpha"], Range)
    assert isinstance(space["lora_alpha"].step, float)


STRATEGY_RULE = "must be one of 'full', 'partial', 'layerwise', 'adversarial' or 'lora', but got 'ful'"


@pytest.mark.parametrize(
    ("name", "domain", "key", "rule"),
    [
        ("learning_rate", {"low": 1e-3, "high": 1e-5}, "", "low must be <= high, but got low 0.001 and high 1e-05"),
        ("learning_rate", {"low": 0, "high": 1}, "", "must be > 0, but got 0"),
        ("weight_decay", {"low": 0, "high": 1, "log": True}, "", "low must be > 0 where log is true, but got 0"),
        ("learning_rate", {"low": 1e-5}, ".high", "is missing"),
        ("learning_rate", {"low": "a", "high": 1}, ".low", "must be a number, but got 'a'"),
        ("learning_rate", {"low": 1e-5, "high": float("inf")}, ".high", "must be a number, but got inf"),
        ("learning_rate", {"low": 1, "high": 2, "log": "yes"}, ".log", "must be true or false, but got 'yes'"),
        ("batch_size", {"low": True, "high": 8}, ".low", "must be a number, but got True"),
        ("batch_size", {"low": 8, "high": 32.0}, "", "must be an integer, but got 32.0"),
        ("batch_size", {"low": 8, "high": 32, "step": 0.5}, "", "step must be an integer, but got 0.5"),
        ("batch_size", {"low": 8, "high": 32, "step": 0}, "", "step must be > 0, but got 0"),
        ("batch_size", {"low": 8, "high": 32, "step": 8, "log": True}, "", "log and step can't be combined"),
        ("batch_size", {"choices": [8], "low": 3}, ".low", "unknown key; known are choices, when"),
        (
            "batch_size",
            {"choises": [8], "low": 3, "high": 4},
            ".choises",
            "unknown key; did you mean choices? known are",
        ),
        ("batch_size", [], "", "must have at least one choice"),
        ("batch_size", [16, 32, 16], "", "must have no choice twice, but has 16 twice"),
        ("batch_size", [16, 0], "", "must be >= 1, but got 0"),
        ("batch_size", [True, 8], "", "must be an integer, but got True"),
        ("batch_size", [[1, 2]], ".choices.0", "must be text, a number, true, false or null, but got [1, 2]"),
        ("batch_size", [8], "_", "unknown key; did you mean batch_size? known are strategy, learning_rate,"),
        ("strategy", ["ful", "lora"], "", STRATEGY_RULE),
        ("strategy", {"low": 1, "high": 2}, "", "must be a list of strategies, available are full, partial, layerwise"),
        ("batch_size", {"choices": [8], "when": {"dropout": {}}}, ".when.dropout", "must be a value or a list of"),
        ("batch_size", {"choices": [8], "when": {"dropout": []}}, ".when.dropout", "must be a value or a list of"),
        ("batch_size", {"choices": [8], "when": "always"}, ".when", "must be a mapping, but got 'always'"),
    ],
)
def test_a_wrong_domain(name: str, domain: Any, key: str, rule: str) -> None:
    if key == "_":
        name, key = "batchsize", ""
    found = faults(search_space={name: domain})
    assert list(found) == [f"search_space.{name}{key}"]
    assert found[f"search_space.{name}{key}"].startswith(rule)


def test_a_fixed_value_under_search_space_is_told_where_it_goes() -> None:
    (rule,) = faults(search_space={"learning_rate": 1e-4}).values()
    assert rule == (
        "must be a list of choices or {low: ..., high: ...}, but got 0.0001; a fixed value goes under training"
    )


def test_what_holds_for_every_trial_is_not_searched() -> None:
    (rule,) = faults(search_space={"epochs": [1, 2]}).values()
    assert rule.startswith("unknown key; known are strategy, learning_rate")


def test_both_fixed_and_searched() -> None:
    assert faults(training={"dropout": 0.1, "epochs": 3}, search_space={"dropout": [0.1, 0.2]}) == {
        "search_space.dropout": "given under training and under search_space; fix it or search it, not both"
    }


def test_conditions_that_hold() -> None:
    space = {
        "learning_rate": {"low": 1e-5, "high": 1e-3, "when": {"strategy": ["full", "lora"], "batch_size": 16}},
        "strategy": ["full", "lora"],
        "batch_size": [16, 32],
    }
    assert sweep(search_space=space).search_space["learning_rate"].when == {
        "strategy": ["full", "lora"],
        "batch_size": 16,
    }


def test_conditions_that_can_never_hold() -> None:
    found = faults(
        training={"layer_decay": 0.5},
        search_space={
            "strategy": ["full", "layerwise"],
            "batch_size": {"choices": [16, 32], "when": {"strategy": "full"}},
            "learning_rate": {"low": 1e-5, "high": 1e-3, "when": {"strategy": ["full", "lora"]}},
            "dropout": {"choices": [0.1, 0.2], "when": {"batch_size": 16}},
            "weight_decay": {"choices": [0, 0.1], "when": {"learning_rate": 1e-5, "layer_decay": 0.5}},
            "warmup_ratio": {"choices": [0, 0.1], "when": {"warmup_ratio": 0}},
        },
    )
    others = "must name another searched list of choices, available are strategy, batch_size, dropout"
    assert found == {
        "search_space.learning_rate.when.strategy": "'lora' is not among strategy's choices ['full', 'layerwise']",
        "search_space.dropout.when.batch_size": "batch_size has a condition of its own; conditions can't be nested",
        "search_space.weight_decay.when.learning_rate": f"{others}, warmup_ratio",
        "search_space.weight_decay.when.layer_decay": f"{others}, warmup_ratio",
        "search_space.warmup_ratio.when.warmup_ratio": f"{others}, weight_decay",
    }


def test_the_strategy_itself_has_no_condition() -> None:
    space = {"strategy": {"choices": ["full", "lora"], "when": {"batch_size": 16}}, "batch_size": [16, 32]}
    assert faults(search_space=space) == {
        "search_space.strategy.when": "strategy can't have a condition; others depend on it"
    }


SPACE = {
    "strategy": ["full", "lora"],
    "learning_rate": {"low": 1e-5, "high": 1e-3},
    "batch_size": {"low": 8, "high": 32},
    "dropout": [None, 0.1],
}


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("learning_rate", 1, "must lie in 1e-05 to 0.001, but got 1"),
        ("learning_rate", "1", "must lie in 1e-05 to 0.001, but got '1'"),
        ("learning_rate", True, "must lie in 1e-05 to 0.001, but got True"),
        ("learning_rate", None, "must lie in 1e-05 to 0.001, but got None"),
        ("learning_rate", [1e-4], "must be text, a number, true, false or null, but got [0.0001]"),
        ("batch_size", 16.0, "must be an integer, but got 16.0"),
        ("strategy", "partial", "must be one of ['full', 'lora'], but got 'partial'"),
        ("weight_decay", 0.1, "is not searched; searched are strategy, learning_rate, batch_size, dropout"),
        ("leaning_rate", 1e-4, "unknown key; did you mean learning_rate? known are strategy,"),
    ],
)
def test_a_wrong_starting_point(name: str, value: Any, rule: str) -> None:
    found = faults(search_space=SPACE, search={"start_with": [{"dropout": None}, {name: value}]})
    assert list(found) == [f"search.start_with.1.{name}"]
    assert found[f"search.start_with.1.{name}"].startswith(rule)


def test_starting_points_at_the_ends_of_a_range() -> None:
    starts = [{"learning_rate": 1e-5, "batch_size": 8}, {"learning_rate": 1e-3, "batch_size": 32, "dropout": None}, {}]
    assert sweep(search_space=SPACE, search={"start_with": starts}).search.start_with == starts


@pytest.mark.parametrize("name", sorted(SOME_STRATEGIES_ONLY))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hyperparameters_that_no_strategy_of_the_sweep_reads(strategy: str, name: str) -> None:
    fixed: dict[str, Any] = {"strategy": strategy}
    if strategy == "partial" and name != "freeze_fraction":
        fixed["freeze_depth"] = 2
    value = {"lora_rank": 4, "freeze_depth": 2}.get(name, 0.5)
    for keys in (
        {"training": {**fixed, name: value}},
        {
            "training": {k: v for k, v in fixed.items() if k != name},
            "search_space": {name: [value]},
        },
    ):
        if name in STRATEGY_HYPERPARAMETERS[strategy]:  # type: ignore[index]
            assert sweep(**keys).strategies == [strategy]
        else:
            section = "search_space" if "search_space" in keys else "training"
            readers = ", ".join(s for s in STRATEGIES if name in STRATEGY_HYPERPARAMETERS[s])
            assert faults(**keys) == {f"{section}.{name}": f"no strategy of this sweep reads it; {readers} would"}


def test_one_strategy_that_reads_it_is_enough() -> None:
    sweep(training={"layer_decay": 0.9}, search_space={"strategy": ["full", "layerwise"]})


NEEDS_DEPTH = "strategy partial needs it, or freeze_fraction: give a range above 0, or fix it under training"


def test_partial_needs_a_freeze_depth() -> None:
    assert faults(training={"strategy": "partial"}) == {"training.freeze_depth": NEEDS_DEPTH}
    assert faults(training={"strategy": "partial", "freeze_depth": 0}) == {"training.freeze_depth": NEEDS_DEPTH}
    assert faults(search_space={"strategy": ["full", "partial"]}) == {"search_space.freeze_depth": NEEDS_DEPTH}
    sweep(training={"strategy": "partial", "freeze_depth": 1})
    sweep(training={"freeze_depth": 1}, search_space={"strategy": ["full", "partial"]})


@pytest.mark.parametrize(
    ("when", "is_sound"),
    [
        ({}, True),
        ({"strategy": "partial"}, True),
        ({"strategy": ["layerwise", "partial"]}, True),
        ({"strategy": "layerwise"}, False),
        ({"strategy": "partial", "batch_size": 16}, False),
        ({"batch_size": 16}, False),
    ],
)
def test_partial_draws_a_freeze_depth_in_every_trial(when: dict[str, Any], is_sound: bool) -> None:
    depth = {"low": 1, "high": 2, "when": when}
    space = {"strategy": ["layerwise", "partial"], "batch_size": [16, 32], "freeze_depth": depth}
    if is_sound:
        sweep(search_space=space)
    else:
        assert faults(search_space=space) == {"search_space.freeze_depth": NEEDS_DEPTH}


def test_how_much_is_frozen_is_said_in_one_way() -> None:
    rule = "freeze_depth says the same in blocks; give one of them"
    both = {"strategy": "partial", "freeze_depth": 1, "freeze_fraction": 0.5}
    assert faults(training=both) == {"training.freeze_fraction": rule}
    space = {"strategy": ["partial"], "freeze_fraction": {"low": 0.1, "high": 1}}
    assert faults(training={"freeze_depth": 1}, search_space=space) == {"search_space.freeze_fraction": rule}
    sweep(search_space=space)
    sweep(training={"strategy": "partial", "freeze_fraction": 0.5})
    assert faults(training={"strategy": "partial", "freeze_fraction": 0.0}) == {"training.freeze_depth": NEEDS_DEPTH}


# models


def test_several_models_are_searched_like_a_list_of_choices() -> None:
    space = {"batch_size": {"choices": [8, 16], "when": {"model": "a"}}}
    config = sweep(model=["a", "b"], search_space=space, search={"start_with": [{"model": "b"}]})
    assert (config.models, list(config.space)) == (["a", "b"], ["model", "batch_size"])
    assert [config.encoded_folder(model) for model in config.models] == ["encoded/0", "encoded/1"]
    assert (sweep().models, sweep().space, sweep().encoded_folder("m")) == (["m"], {}, "encoded")


@pytest.mark.parametrize("model", [[], ["a", ""], ["a", "a"], [1], {"a": 1}, None])
def test_what_is_no_model(model: Any) -> None:
    assert faults(model=model)["model"].startswith("must be a model as text, or a list of different ones to search")


def test_conditions_and_starting_points_know_the_models() -> None:
    space = {"batch_size": {"choices": [8, 16], "when": {"model": "c"}}}
    assert faults(model=["a", "b"], search_space=space) == {
        "search_space.batch_size.when.model": "'c' is not among model's choices ['a', 'b']"
    }
    rule = "must name another searched list of choices, available are none"
    assert faults(search_space=space) == {"search_space.batch_size.when.model": rule}
    starts = {"start_with": [{"model": "c"}]}
    assert faults(model=["a", "b"], search=starts) == {
        "search.start_with.0.model": "must be one of ['a', 'b'], but got 'c'"
    }
    assert faults(search=starts)["search.start_with.0.model"].startswith("unknown key")


def test_models_that_get_other_names_get_them_everywhere() -> None:
    config = sweep(
        model=["a", "b"],
        search_space={"batch_size": {"choices": [8, 16], "when": {"model": ["a", "b"]}}, "dropout": [None, 0.1]},
        search={"start_with": [{"model": "b", "batch_size": 8}, {"batch_size": 16}]},
    )
    renamed = with_models(config, {"b": "/models/b"})
    assert renamed.models == ["a", "/models/b"]
    assert renamed.search_space["batch_size"].when == {"model": ["a", "/models/b"]}
    assert renamed.search.start_with == [{"model": "/models/b", "batch_size": 8}, {"batch_size": 16}]
    assert SweepConfig.model_validate(renamed.model_dump(mode="json", exclude_unset=True)) == renamed
    assert with_models(sweep(), {"m": "n"}).model == "n"


# tasks


def test_each_task_has_its_own_metric_and_direction() -> None:
    found = {task: (sweep(task=task).metric, sweep(task=task).mode) for task in TASK_RULES}
    assert found == {
        "text-classification": ("accuracy", "max"),
        "multi-label-classification": ("micro_f1", "max"),
        "regression": ("mse", "min"),
        "token-classification": ("f1", "max"),
        "causal-lm": ("loss", "min"),
        "image-classification": ("accuracy", "max"),
    }


def test_what_a_task_does_not_read_is_refused() -> None:
    data = {"train": "t.csv", "max_length": 64, "columns": {"text": "t", "label": "l"}}
    assert faults(task="image-classification", data=data) == {
        "data.max_length": "task image-classification doesn't read it; of its kind it reads "
        "class_weights, sampling, unlabeled",
        "data.columns.text": "task image-classification doesn't read it; of its kind it reads image, label",
    }
    assert faults(training={"flip": True}, search_space={"crop": [0.0, 0.1]}) == {
        "training.flip": "task text-classification doesn't read it; of its kind it reads label_smoothing",
        "search_space.crop": "task text-classification doesn't read it; of its kind it reads label_smoothing",
    }
    assert faults(task="regression", training={"label_smoothing": 0.1}) == {
        "training.label_smoothing": "task regression doesn't read it"
    }
    columns = {"text": "t", "messages": "m"}
    assert faults(task="causal-lm", data={"train": "t.txt", "columns": columns}) == {
        "data.columns": "causal-lm trains on text or on messages, not both"
    }


def test_a_metric_of_another_task_is_refused() -> None:
    assert faults(task="regression", search={"metric": "accuracy"}) == {
        "search.metric": "must be one that task regression measures, loss, mse, mae, pearson, spearman, "
        "but got 'accuracy'"
    }
    sweep(search={"metric": "micro_f1"})  # the data may turn out to have several labels a row


@pytest.mark.parametrize("task", [task for task, rules in TASK_RULES.items() if rules.refused])
def test_a_strategy_that_makes_no_sense_is_refused_with_the_reason(task: str) -> None:
    found = faults(task=task, search_space={"strategy": ["full", "adversarial"]})
    assert found["search_space.strategy"].startswith(f"strategy adversarial can't be used for task {task}: its disc")
    assert "training.strategy" in faults(task=task, training={"strategy": "adversarial"})


def test_unlabeled_rows_need_the_adversarial_strategy() -> None:
    data = {"train": "t.csv", "unlabeled": "u.csv"}
    rule = "no strategy of this sweep reads it; adversarial would"
    assert faults(data=data) == {"data.unlabeled": rule}
    assert sweep(data=data, training={"strategy": "adversarial"}).data.unlabeled == "u.csv"


def test_the_grace_is_no_longer_than_a_trial() -> None:
    assert faults(training={"epochs": 2}, early_stopping={"grace_epochs": 3}) == {
        "early_stopping.grace_epochs": "must be <= training.epochs 2, but got 3"
    }
    sweep(training={"epochs": 2}, early_stopping={"grace_epochs": 2})
    assert sweep(early_stopping=None).early_stopping is None


def test_faults_of_every_section_are_told_at_once() -> None:
    assert set(
        faults(
            model=3,
            data={},
            training={"learning_rate": 0, "epochs": 0},
            search_space={"batch_size": [0], "dropout": 1},
            search={"trials": 0},
            cluster={"gpus_per_worker": "all"},
        )
    ) == {
        "model",
        "data.train",
        "training.learning_rate",
        "training.epochs",
        "search_space.batch_size",
        "search_space.dropout",
        "search.trials",
        "cluster.gpus_per_worker",
    }


def test_rules_between_sections_are_told_at_once() -> None:
    assert set(
        faults(
            data={"train": "t", "unlabeled": "u"},
            training={"epochs": 1, "dropout": 0.1, "lora_rank": 4},
            search_space={"dropout": [0.1], "strategy": ["partial"], "batch_size": {"choices": [8], "when": {"a": 1}}},
            search={"start_with": [{"strategy": "full"}]},
            early_stopping={"grace_epochs": 2},
        )
    ) == {
        "data.unlabeled",
        "training.lora_rank",
        "search_space.dropout",
        "search_space.freeze_depth",
        "search_space.batch_size.when.a",
        "search.start_with.0.strategy",
        "early_stopping.grace_epochs",
    }


# Paths and words


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "model").mkdir()
    config = sweep(
        model="model",
        data={"train": ["a.csv", "b/*.csv", "/c.csv"], "validation": "~/v.csv", "test": "hub:name:config"},
    )
    absolute = with_absolute_paths(config)
    assert absolute.model == str(tmp_path / "model")
    assert absolute.data.train == [str(tmp_path / "a.csv"), str(tmp_path / "b/*.csv"), "/c.csv"]
    assert (absolute.data.validation, absolute.data.test) == ("/home/somebody/v.csv", "hub:name:config")
    assert absolute.data.unlabeled is None
    assert config.data.train == ["a.csv", "b/*.csv", "/c.csv"]
    assert with_absolute_paths(absolute) == absolute
    assert absolute.model_copy(update={"model": config.model, "data": config.data}) == config


def test_what_is_no_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = with_absolute_paths(sweep(model="bert-base-uncased", data={"train": "hub:x", "test": 0.1}))
    assert (absolute.model, absolute.data.train) == ("bert-base-uncased", "hub:x")
    assert (absolute.data.validation, absolute.data.test) == (0.15, 0.1)


def test_the_nearest_key_is_named_if_one_is_near() -> None:
    known = ["trials", "time_limit"]
    assert unknown_key_rule("trails", known) == "unknown key; did you mean trials? known are trials, time_limit"
    assert unknown_key_rule("qqqq", known) == "unknown key; known are trials, time_limit"


def test_a_long_value_is_cut() -> None:
    assert shown("x" * 1000) == "'" + "x" * (LONGEST_VALUE - 1) + "..."
    assert shown("x") == "'x'"
    (rule,) = faults(training={"learning_rate": "x" * 100_000}).values()
    assert len(rule) < 150


def test_beside_hyperparameters_training_holds_what_is_the_same_for_all_trials() -> None:
    shared = {"epochs", "precision", "cache", "cache_gb", "compile", "histograms"}
    assert set(TrainingConfig.model_fields) - set(Hyperparameters.model_fields) == shared


def test_off_is_a_word_though_yaml_reads_it_as_false() -> None:
    assert TrainingConfig.model_validate({"cache": False}).cache == "off"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/name",
        "postgresql://me:hunter/2@host/name",
        "postgresql://host/name?user=me&password=hunter2",
        "postgresql://host/name?sslpassword=hunter2",
        "mysql://host/name?passwd=hunter2",
    ],
)
def test_a_password_in_the_study_s_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SearchConfig(study=url)
    assert "must hold no password" in caught.value.errors()[0]["msg"]
    assert "hunter" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("url", ["postgresql://me@host:5432/name", "postgresql://host/name?sslmode=require"])
def test_a_study_s_url_may_name_a_user_and_options(url: str) -> None:
    assert SearchConfig(study=url).study == url


@pytest.mark.parametrize("storage", ["s3://KEY:hunter2@bucket/runs", "gs://hunter2@bucket"])
def test_credentials_in_the_storages_address_are_refused_and_not_repeated(storage: str) -> None:
    with pytest.raises(ValidationError) as caught:
        sweep(storage=storage)
    assert "must hold no credentials" in caught.value.errors()[0]["msg"]
    assert "hunter" not in caught.value.errors()[0]["msg"]
    for fine in ("s3://bucket/me@home", "runs", "some@folder"):
        assert sweep(storage=fine).storage == fine


def test_what_makes_compiling_slow_is_said() -> None:
    assert sweep(training={"compile": True}).notes == []
    notes = sweep(training={"compile": True}, search_space={"dropout": [0.0, 0.1]}).notes
    assert len(notes) == 1 and "search_space.dropout" in notes[0]


@pytest.mark.parametrize(
    ("address", "has_some"),
    [
        ("runs", False),
        ("s3://bucket/me@home", False),
        ("hdfs://head:8020/user@home", False),
        ("s3://KEY:SEC/RET@bucket", True),
        ("abfs+x://token@account/runs", True),
    ],
)
def test_what_of_an_address_are_credentials(address: str, has_some: bool) -> None:
    assert holds_credentials(address) is has_some


# --- several objectives


def test_several_metrics_have_a_direction_each_and_the_first_decides() -> None:
    config = sweep(search={"metric": ["macro_f1", "loss", "train_seconds"]})
    assert config.objectives == ("macro_f1", "loss", "train_seconds")
    assert config.modes == ("max", "min", "min")
    assert (config.metric, config.mode) == ("macro_f1", "max")
    assert sweep(search={"metric": "loss"}).objectives == ("loss",)
    assert sweep().objectives == ("accuracy",)


@pytest.mark.parametrize(
    "metric",
    [
        "latency_ms",
        ["latency_ms", "accuracy"],
        [],
        ["accuracy", "accuracy"],
        ["accuracy", "latency"],
        {"accuracy": 1},
        ["accuracy", "loss", "latency_ms", "train_seconds"],
        [["accuracy"]],
    ],
)
def test_other_lists_of_metrics_are_refused_in_one_sentence(metric: Any) -> None:
    found = faults(search={"metric": metric})
    assert found["search.metric"].startswith("must be one of loss, accuracy, ")
    assert "may go on with latency_ms and train_seconds, but got" in found["search.metric"]


def test_metrics_of_another_task_and_a_direction_for_several_are_refused() -> None:
    assert faults(search={"metric": ["accuracy", "mse"], "mode": "max"}) == {
        "search.metric": "must be one that task text-classification measures, loss, accuracy, macro_f1, weighted_f1, "
        "matthews_correlation, micro_f1, but got 'mse'",
        "search.mode": "must not be given with several metrics, each of which has its own",
    }


def test_a_latency_that_no_trial_can_change_is_noted() -> None:
    search = {"metric": ["accuracy", "latency_ms"]}
    assert sweep(search=search).notes == [
        "search.metric latency_ms is the same for every trial: it differs only between models"
    ]
    assert sweep(search=search, model=["one", "two"]).notes == []

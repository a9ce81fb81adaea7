from typing import Any

import optuna
import pytest

from rayft.config import STRATEGIES, STRATEGY_HYPERPARAMETERS, Hyperparameters, SweepConfig
from rayft.search_space import Params, distribution, model_of, resolve, searched_together, starting_points, suggest

EVERYTHING: dict[str, Any] = {
    # Conditions before what they depend on: the order in the file doesn't matter.
    "label_smoothing": {"low": 0.0, "high": 0.2, "when": {"batch_size": [16, 32], "strategy": ["full", "lora"]}},
    "freeze_depth": {"low": 1, "high": 6, "when": {"strategy": "partial"}},
    "strategy": list(STRATEGIES),
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "batch_size": [8, 16, 32],
    "layer_decay": {"low": 0.6, "high": 0.9, "step": 0.1},
    "adversarial_weight": {"low": 0.01, "high": 1.0},
    "lora_rank": {"low": 4, "high": 16, "step": 4},
    "weight_decay": {"low": 0, "high": 1},
    "dropout": [None, 0.1],
}


def sweep(space: dict[str, Any], starts: list[Params] | None = None, **training: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "model": "m",
            "data": {"train": "t.csv"},
            "training": training,
            "search_space": space,
            "search": {"start_with": starts or []},
        }
    )


def draw(config: SweepConfig, trials: int, seed: int = 0) -> list[Params]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [suggest(config, study.ask()) for _ in range(trials)]


def test_a_hyperparameter_is_drawn_only_where_it_is_read_and_its_condition_holds() -> None:
    drawn = draw(sweep(EVERYTHING), 200)
    assert {params["strategy"] for params in drawn} == set(STRATEGIES)
    always = {"strategy", "learning_rate", "batch_size", "weight_decay", "dropout"}
    for params in drawn:
        strategy = params["strategy"]
        expected = (
            always
            | {
                "partial": {"freeze_depth"},
                "layerwise": {"layer_decay"},
                "adversarial": {"adversarial_weight"},
                "lora": {"lora_rank"},
                "full": set(),
            }[str(strategy)]
        )
        if strategy in ("full", "lora") and params["batch_size"] in (16, 32):
            expected |= {"label_smoothing"}
        assert set(params) == expected


def test_without_a_condition_every_reader_draws_it() -> None:
    space = {"strategy": list(STRATEGIES), "freeze_depth": {"low": 1, "high": 6}}
    with_depth = {params["strategy"] for params in draw(sweep(space), 60) if "freeze_depth" in params}
    assert with_depth == {name for name, read in STRATEGY_HYPERPARAMETERS.items() if "freeze_depth" in read}
    assert with_depth == {"partial", "layerwise", "adversarial"}


def test_values_lie_in_their_domains() -> None:
    drawn = draw(sweep(EVERYTHING), 200)
    rates = [params["learning_rate"] for params in drawn]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 0.35 < sum(rate < 1e-4 for rate in rates) / 200 < 0.65, "not drawn on a log scale"
    assert {params["batch_size"] for params in drawn} == {8, 16, 32}
    assert {params["dropout"] for params in drawn} == {None, 0.1}
    assert {params["freeze_depth"] for params in drawn if "freeze_depth" in params} == set(range(1, 7))
    assert {params["lora_rank"] for params in drawn if "lora_rank" in params} == {4, 8, 12, 16}
    decays = {round(params["layer_decay"], 9) for params in drawn if "layer_decay" in params}
    assert decays == {0.6, 0.7, 0.8, 0.9}
    decay = [params["weight_decay"] for params in drawn]
    assert len(set(decay)) == 200, "a range of a number between 0 and 1 has more than its ends"


def test_a_fixed_strategy_decides_what_is_read() -> None:
    config = sweep({"lora_rank": [4, 8], "learning_rate": [1e-4]}, strategy="lora")
    assert {tuple(params) for params in draw(config, 5)} == {("lora_rank", "learning_rate")}


def test_nothing_searched_draws_nothing() -> None:
    assert draw(sweep({}), 2) == [{}, {}]


def test_the_same_seed_draws_the_same() -> None:
    config = sweep(EVERYTHING)
    assert draw(config, 20, seed=5) == draw(config, 20, seed=5)
    assert draw(config, 20, seed=5) != draw(config, 20, seed=6)


def test_resolve_overlays_the_fixed_values_by_the_searched_ones() -> None:
    config = sweep({"learning_rate": [1e-4], "strategy": ["full", "lora"]}, weight_decay=0.5, lora_rank=2, epochs=9)
    found = resolve(config, {"learning_rate": 1e-4, "strategy": "lora"})
    assert type(found) is Hyperparameters
    assert found == Hyperparameters(strategy="lora", learning_rate=1e-4, weight_decay=0.5, lora_rank=2)


def test_every_draw_resolves() -> None:
    config = sweep(EVERYTHING)
    for params in draw(config, 50):
        found = resolve(config, params)
        assert found.model_dump(include=set(params)) == params
        defaults = Hyperparameters().model_dump(exclude=set(params))
        assert found.model_dump(exclude=set(params)) == defaults


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ({"strategy": "full", "freeze_depth": 3, "batch_size": 8}, {"strategy": "full", "batch_size": 8}),
        ({"strategy": "partial", "freeze_depth": 3}, {"strategy": "partial", "freeze_depth": 3}),
        ({"strategy": "lora", "layer_decay": 0.7, "lora_rank": 8}, {"strategy": "lora", "lora_rank": 8}),
        ({"batch_size": 8, "strategy": "full", "label_smoothing": 0.1}, {"batch_size": 8, "strategy": "full"}),
        # What the starting point leaves open may still make these values count.
        ({"freeze_depth": 3}, {"freeze_depth": 3}),
        ({"label_smoothing": 0.1, "batch_size": 16}, {"label_smoothing": 0.1, "batch_size": 16}),
        ({"label_smoothing": 0.1, "batch_size": 8}, {"batch_size": 8}),
        ({}, {}),
    ],
)
def test_starting_points_without_what_they_rule_out(start: Params, expected: Params) -> None:
    assert starting_points(sweep(EVERYTHING, [start])) == [expected]


def test_starting_points_are_tried_first_and_completed() -> None:
    starts: list[Params] = [{"strategy": "lora", "lora_rank": 12, "weight_decay": 1}, {"freeze_depth": 5}]
    config = sweep(EVERYTHING, starts)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for start in starting_points(config):
        study.enqueue_trial(start)
    first = suggest(config, study.ask())
    assert first | starts[0] == first
    assert {"learning_rate", "batch_size", "dropout"} < set(first)
    assert resolve(config, first).lora_rank == 12


def test_a_starting_point_without_a_strategy_counts_if_the_strategy_fits() -> None:
    config = sweep({"strategy": ["partial"], "freeze_depth": {"low": 1, "high": 6}}, [{"freeze_depth": 5}])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial(starting_points(config)[0])
    assert suggest(config, study.ask()) == {"strategy": "partial", "freeze_depth": 5}


def test_what_is_searched_together_is_what_trials_have_together() -> None:
    config = sweep(EVERYTHING)
    trials = draw(config, 300)
    for name in config.search_space:
        having = {other: [other in params for params in trials] for other in config.search_space}
        assert searched_together(config, name) == [other for other in having if having[other] == having[name]]


def test_a_domain_is_the_distribution_that_is_on_record() -> None:
    config = sweep(EVERYTHING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(60):
        suggest(config, study.ask())
    seen = {name: one for trial in study.trials for name, one in trial.distributions.items()}
    assert seen == {name: distribution(domain) for name, domain in config.search_space.items()}


def test_a_model_is_drawn_before_what_depends_on_it() -> None:
    space = {"batch_size": {"choices": [8, 16], "when": {"model": "a"}}, "weight_decay": {"low": 0, "high": 1}}
    config = SweepConfig.model_validate({"model": ["a", "b"], "data": {"train": "t.csv"}, "search_space": space})
    drawn = draw(config, 50)
    assert {params["model"] for params in drawn} == {"a", "b"}
    assert all(("batch_size" in params) == (params["model"] == "a") for params in drawn)
    assert searched_together(config, "model") == ["model", "weight_decay"]
    assert {model_of(config, params) for params in drawn} == {"a", "b"}
    assert resolve(config, drawn[0]).weight_decay == drawn[0]["weight_decay"]
    alone = sweep({})
    assert model_of(alone, {}) == "m"

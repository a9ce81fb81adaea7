import warnings
from typing import Any

import optuna
import pytest

from rayft.config import SweepConfig
from rayft.search_space import suggest
from rayft.sweep.samplers import make_sampler
from tests.sweep.conftest import quality, sweep

UNCONDITIONAL: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "batch_size": [16, 32],
    "dropout": {"low": 0.0, "high": 0.5},
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_seeds_of_neighbouring_trials_and_sweeps_differ() -> None:
    def draw(seed: int, number: int) -> float:
        config = sweep(search={"sampler": "random", "seed": seed})
        return optuna.create_study(sampler=make_sampler(config, number)).ask().suggest_float("x", 0, 1)

    draws = [draw(seed, number) for seed in (0, 1, 2**31 - 1) for number in range(40)]
    assert len(set(draws)) == len(draws)
    assert 0.4 < sum(draws) / len(draws) < 0.6


def test_without_conditions_tpe_proposes_what_optunas_does() -> None:
    """The same values, number for number, from the same seeds."""
    config = sweep(space=UNCONDITIONAL)

    def proposals(optunas: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize")
        for number in range(25):
            own = optuna.samplers.TPESampler(seed=number, multivariate=True, constant_liar=True)
            study.sampler = own if optunas else make_sampler(config, number)
            trial = study.ask()
            study.tell(trial, quality(suggest(config, trial)))
        return [trial.params for trial in study.get_trials()]

    assert proposals(optunas=False) == proposals(optunas=True)


def seen_spaces(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> list[list[set[str]]]:
    """What TPE draws together, for each of some trials."""
    spaces: list[list[set[str]]] = []
    real = optuna.samplers.TPESampler._sample

    def spy(self: Any, study: Any, trial: Any, search_space: dict[str, Any]) -> Any:
        spaces[-1].append(set(search_space))
        return real(self, study, trial, search_space)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample", spy)
    study = optuna.create_study(direction="maximize")
    for number in range(24):
        spaces.append([])
        study.sampler = make_sampler(config, number)
        trial = study.ask()
        study.tell(trial, quality(suggest(config, trial)))
    return spaces


def test_tpe_draws_jointly_what_is_searched_together_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {
        **UNCONDITIONAL,
        "strategy": ["full", "lora"],
        "lora_rank": [8, 16],
        "lora_alpha": {"low": 8, "high": 64},
        "warmup_ratio": {"low": 0.0, "high": 0.0},  # leaves nothing to draw
    }
    always, lora = {"strategy", *UNCONDITIONAL}, {"lora_rank", "lora_alpha"}
    spaces = seen_spaces(sweep(space=space), monkeypatch)

    assert all(seen == [] for seen in spaces[:10])  # at random, as TPE begins
    assert {str([sorted(one) for one in seen]) for seen in spaces[10:]} == {
        str([sorted(always)]),
        str([sorted(always), sorted(lora)]),
    }


def test_tpe_learns_conditional_hyperparameters_as_optunas_own_grouping_does() -> None:
    """Trials of the right strategy, by how near they come to the best value of a hyperparameter that only it has."""
    config = sweep()

    def distance(optunas: bool) -> float:
        near: list[float] = []
        for seed in range(3):
            study = optuna.create_study(direction="maximize")
            for number in range(60):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    own = optuna.samplers.TPESampler(seed=1000 * seed + number, multivariate=True, group=True)
                study.sampler = own if optunas else make_sampler(sweep(search={"seed": seed}), number)
                trial = study.ask()
                params = suggest(config, trial)
                depth = params.get("freeze_depth", 6)
                assert isinstance(depth, int)
                study.tell(trial, quality(params) - 0.03 * abs(depth - 2))
                if number >= 40 and "freeze_depth" in params:
                    near.append(abs(depth - 2))
        return sum(near) / len(near)

    ours = distance(optunas=False)
    assert ours < 1.0
    assert ours <= distance(optunas=True) + 0.25

"""From domains and conditions to the hyperparameters of one trial."""

import optuna

from rayft.config import (
    SOME_STRATEGIES_ONLY,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    Domain,
    Hyperparameters,
    SweepConfig,
    Value,
    as_list,
)

Params = dict[str, Value]


def suggest(config: SweepConfig, trial: optuna.Trial) -> Params:
    """Draws every hyperparameter whose condition holds, in an order that draws parents first.

    A hyperparameter that only some strategies read is drawn only for those (see `STRATEGY_HYPERPARAMETERS`): values
    that change nothing would blur the sampler's model of the space.
    """
    params: Params = {}
    for name, domain in _parents_first(config):
        if _is_active(config, name, domain, params):
            params[name] = _suggest_one(trial, name, domain)
    return params


def resolve(config: SweepConfig, params: Params) -> Hyperparameters:
    """What a trial with these searched values trains with: the fixed values, overlaid by the searched ones."""
    fixed = config.training.model_dump(include=set(Hyperparameters.model_fields))
    return Hyperparameters(**(fixed | params))


def starting_points(config: SweepConfig) -> list[Params]:
    """`search.start_with`, with inactive values left out."""
    points = []
    for start in config.search.start_with:
        active: Params = {}
        for name, domain in _parents_first(config):
            if name in start and _is_active(config, name, domain, active | start):
                active[name] = start[name]
        points.append(active)
    return points


def _parents_first(config: SweepConfig) -> list[tuple[str, Domain]]:
    return sorted(config.search_space.items(), key=lambda item: (item[0] != "strategy", bool(item[1].when)))


def _is_active(config: SweepConfig, name: str, domain: Domain, params: Params) -> bool:
    strategy = params.get("strategy", config.training.strategy)
    if name in SOME_STRATEGIES_ONLY and not any(
        strategy == reader and name in read for reader, read in STRATEGY_HYPERPARAMETERS.items()
    ):
        return False
    return all(params.get(parent) in as_list(wanted) for parent, wanted in domain.when.items())


def _suggest_one(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    if isinstance(domain, Categorical):
        return trial.suggest_categorical(name, domain.choices)
    if domain.is_int:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)

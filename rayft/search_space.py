"""From domains and conditions to the hyperparameters of one trial."""

from collections.abc import Container, Hashable

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rayft.config import (
    MODEL,
    SOME_STRATEGIES_ONLY,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    Domain,
    Hyperparameters,
    SweepConfig,
    Value,
    as_list,
)
from rayft.config_tasks import TASK_HYPERPARAMETERS

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


def searched_together(config: SweepConfig, name: str) -> list[str]:
    """The hyperparameters that a trial searches if and only if it searches this one, itself included."""
    condition = _condition(config, name)
    return [other for other in config.space if _condition(config, other) == condition]


def distribution(domain: Domain) -> BaseDistribution:
    """The domain in Optuna's terms, as a trial's `suggest_...` puts it on record."""
    if isinstance(domain, Categorical):
        return CategoricalDistribution(domain.choices)
    if domain.is_int:
        return IntDistribution(int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return FloatDistribution(domain.low, domain.high, step=domain.step, log=domain.log)


def resolve(config: SweepConfig, params: Params) -> Hyperparameters:
    """What a trial with these searched values trains with: the fixed values, overlaid by the searched ones."""
    fixed = config.training.model_dump(include=set(Hyperparameters.model_fields))
    return Hyperparameters(**(fixed | {name: value for name, value in params.items() if name != MODEL}))


def values_read(config: SweepConfig, hp: Hyperparameters) -> Params:
    """What a trial trains with, without what its strategy or the task doesn't read."""
    unread = SOME_STRATEGIES_ONLY - STRATEGY_HYPERPARAMETERS[hp.strategy]
    unread |= TASK_HYPERPARAMETERS - config.rules.hyperparameters
    unread |= {"freeze_fraction" if hp.freeze_fraction is None else "freeze_depth"}
    return {name: value for name, value in hp.model_dump().items() if name not in unread}


def model_of(config: SweepConfig, params: Params) -> str:
    """The model that a trial with these searched values fine-tunes."""
    return str(params.get(MODEL, config.models[0]))


def starting_points(config: SweepConfig) -> list[Params]:
    """`search.start_with`, without the values that the rest of their configuration rules out."""
    return [
        {name: value for name, value in start.items() if _can_be_active(config, name, start)}
        for start in config.search.start_with
    ]


def _parents_first(config: SweepConfig) -> list[tuple[str, Domain]]:
    first = ("strategy", MODEL)
    return sorted(config.space.items(), key=lambda item: (item[0] not in first, bool(item[1].when)))


def _is_active(config: SweepConfig, name: str, domain: Domain, params: Params) -> bool:
    if not _is_read(name, [params.get("strategy", config.training.strategy)]):
        return False
    return all(params.get(parent) in as_list(wanted) for parent, wanted in domain.when.items())


def _can_be_active(config: SweepConfig, name: str, start: Params) -> bool:
    """As `_is_active`, where values that are not given are still to be drawn."""
    if not _is_read(name, [start["strategy"]] if "strategy" in start else config.strategies):
        return False
    when = config.space[name].when
    return all(start[parent] in as_list(wanted) for parent, wanted in when.items() if parent in start)


def _condition(config: SweepConfig, name: str) -> Hashable:
    """What `_is_active` asks for: with which strategies, and with which values of other hyperparameters."""
    when = dict(config.space[name].when)
    wanted = as_list(when.pop("strategy", config.strategies))
    strategies = frozenset(one for one in config.strategies if one in wanted and _is_read(name, [one]))
    return strategies, frozenset((parent, frozenset(as_list(values))) for parent, values in when.items())


def _is_read(name: str, strategies: Container[Value]) -> bool:
    """Whether one of the strategies reads the hyperparameter."""
    if name not in SOME_STRATEGIES_ONLY:
        return True
    return any(name in read for strategy, read in STRATEGY_HYPERPARAMETERS.items() if strategy in strategies)


def _suggest_one(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    if isinstance(domain, Categorical):
        return trial.suggest_categorical(name, domain.choices)
    if domain.is_int:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)

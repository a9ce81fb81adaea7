"""The record as a study of Optuna's in memory, for Optuna's own plots and importances.

Optuna's plots leave out what isn't complete, which under ASHA is most of a sweep. Here each trial that can win has the
score that it can win with, as in rayft's own ranking, and values are the text that a plot should show.
"""

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from rayft.config import Categorical, Value
from rayft.report.html.facts import Facts
from rayft.report.html.parts import Layout, Trace
from rayft.sweep.trial_record import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

Distributions = dict[str, BaseDistribution]


def distributions(facts: Facts) -> Distributions:
    """What each searched hyperparameter ranges over, wide enough for every value on record."""
    found: Distributions = {}
    for name in facts.param_names:
        values = [record.params[name] for record in facts.records if name in record.params]
        domain = facts.config.space.get(name)
        given = domain.choices if isinstance(domain, Categorical) else []
        if not isinstance(domain, Categorical) and all(map(_is_real, values)):
            found[name] = _range([float(value) for value in values if value is not None], values, domain)
        elif all(map(_is_real, [*given, *values])):
            found[name] = CategoricalDistribution(sorted({*given, *values}, key=lambda value: float(value or 0)))
        else:
            found[name] = CategoricalDistribution(list(dict.fromkeys(facts.label(name, v) for v in [*given, *values])))
    return found


def _range(values: list[float], given: list[Value], domain: object) -> BaseDistribution:
    low = min([getattr(domain, "low", values[0]), *values])
    high = max([getattr(domain, "high", values[0]), *values])
    log = bool(getattr(domain, "log", False)) and low > 0
    if all(type(value) is int for value in given) and float(low).is_integer() and float(high).is_integer():
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _is_real(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choice_of(facts: Facts, name: str, value: Value, space: BaseDistribution) -> Value:
    """What stands for a value in `distributions`: itself if it is a number among numbers, else the text to show."""
    if not isinstance(space, CategoricalDistribution) or all(map(_is_real, space.choices)):
        return value
    return facts.label(name, value)


def study_of(facts: Facts, records: Sequence[TrialRecord]) -> optuna.Study:
    """The trials as a study, in the order given; those without a score, or that failed, have none there."""
    spaces = distributions(facts)
    with quiet():
        study = optuna.create_study(direction="minimize" if facts.lower_is_better else "maximize")
        study.add_trials([_trial(facts, record, spaces) for record in records])
    return study


def _trial(facts: Facts, record: TrialRecord, spaces: Distributions) -> optuna.trial.FrozenTrial:
    params = {name: choice_of(facts, name, value, spaces[name]) for name, value in record.params.items()}
    own = {name: spaces[name] for name in params}
    if record.value is None or record.state == "failed":
        return create_trial(state=TrialState.FAIL, params=params, distributions=own)
    return create_trial(state=TrialState.COMPLETE, value=record.value, params=params, distributions=own)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna's remarks on studies with little in them are the report's own to make."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)


def plain_values(figure: "go.Figure") -> tuple[list[Trace], Layout]:
    """A figure of Optuna's as traces and layout, without its template, and with lists in the place of arrays."""
    content = json.loads(json.dumps(figure.to_plotly_json(), default=lambda array: array.tolist()))
    return [_finite(trace) for trace in content["data"]], content["layout"]


def _finite(value: Any) -> Any:
    """The same without what JSON can't hold."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Where the next trial's values come from: Optuna's samplers, one for each trial."""

from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from rayft.config import SweepConfig
from rayft.search_space import distribution, searched_together


class ConditionalTPESampler(BaseSampler):
    """Optuna's TPE, on a space whose conditions are known; for one trial.

    Draws jointly what is always searched together, as `TPESampler(multivariate=True, group=True)` does. That one finds
    the groups anew from all trials at each proposal, and draws all of them, one for each strategy, to use a few: at
    1,000 trials it takes three times as long for the same.

    Args:
        config: The sweep.
        seed: For this trial.
    """

    def __init__(self, config: SweepConfig, seed: int) -> None:
        self._config = config
        self._tpe = TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._drawn: dict[str, Any] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Optuna's hook, before it is known which conditions hold: nothing is drawn then."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Optuna's hook for the space that `infer_relative_search_space` gives."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Optuna's hook for one hyperparameter; those that go with it are drawn with the first of them."""
        if param_name not in self._drawn:
            domains = {name: self._config.space[name] for name in searched_together(self._config, param_name)}
            group = {name: distribution(domain) for name, domain in sorted(domains.items())}
            search_space = {name: one for name, one in group.items() if not one.single()}
            self._drawn |= self._tpe.sample_relative(study, trial, search_space)
        if param_name not in self._drawn:  # before TPE has seen enough trials
            return self._tpe.sample_independent(study, trial, param_name, param_distribution)
        return self._drawn[param_name]


def make_sampler(config: SweepConfig, number: int) -> BaseSampler:
    """The sampler for one trial.

    Each trial has a sampler of its own, seeded from the sweep's seed and the trial's number: what is proposed is then a
    function of the record alone, and a resumed sweep proposes what an uninterrupted one would have.
    """
    name, seed = config.search.sampler, config.search.seed
    own_seed = seed * 1_000_003 % 2**31 + number
    if name == "random":
        return RandomSampler(seed=own_seed)
    if name == "gp":
        return GPSampler(seed=own_seed, warn_independent_sampling=False)
    if name == "qmc":
        # One scrambled sequence for all trials: the study holds the position in it. What has no place in the sequence,
        # such as a conditional hyperparameter, is drawn by each trial for itself.
        alone = RandomSampler(seed=own_seed)
        return QMCSampler(seed=seed, scramble=True, independent_sampler=alone, warn_independent_sampling=False)
    return ConditionalTPESampler(config, own_seed)

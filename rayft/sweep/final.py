"""The last stage of a sweep: its best configurations trained again with other seeds, since the best of many is lucky.

The value that wins a search is the highest of many that each have noise, so it says too much (the winner's curse). What
a configuration gives when it is trained again doesn't, and tells it from the next best and from an untuned default.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from rayft.config import FinalConfig, SweepConfig, Value
from rayft.search_space import starting_points
from rayft.sweep.ranking import is_better, leaders, ranking
from rayft.sweep.trial_record import TrialRecord

CHEAP = 0.25
"""The largest share of the search's own time that is taken without being asked for."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FinalRun:
    """A configuration to be trained again.

    Attributes:
        of: The trial that it is of; None if it is the default.
        params: Its searched values.
        seed: Added to the sweep's seed.
    """

    of: int | None
    params: dict[str, Value]
    seed: int


@dataclass(frozen=True)
class Configuration:
    """What a configuration gave when it was trained again.

    Attributes:
        trial: The trial that it is of; None if it is the default.
        params: Its searched values.
        searched: The value that the search measured; None for the default, unless it was a trial as well.
        values: One for each seed.
    """

    trial: int | None
    params: dict[str, Value]
    searched: float | None
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Decision:
    """What the last stage found.

    Attributes:
        winner: The configuration with the best mean.
        run: The number of its best run, whose model is exported.
        configurations: All that were trained again, the best first.
        default: The untuned default, which may be one of these; None if a run of it failed.
        against_default: better, the same within noise, or worse; None without a default.
        difference: The winner's mean minus the default's.
        interval: 95 % confidence interval of the difference over seeds (Welch).
        drop: How much worse than the search's value the winner's mean is.
        exported: The value of the run whose model is exported.
        failed: The configurations that are out because a run of them failed, by their trials.
    """

    winner: Configuration
    run: int
    configurations: tuple[Configuration, ...]
    default: Configuration | None
    against_default: str | None
    difference: float | None
    interval: tuple[float, float] | None
    drop: float
    exported: float
    failed: tuple[int, ...] = ()

    def state_dict(self, metric: str) -> dict[str, Any]:
        """As `rayft.json` has it."""
        return {
            "words": self.in_words(metric),
            "trial": self.winner.trial,
            "values": list(self.winner.values),
            "mean": self.winner.mean,
            "configurations": [{**asdict(one), "mean": one.mean} for one in self.configurations],
            "default": None if self.default is None else {**asdict(self.default), "mean": self.default.mean},
            "against_default": self.against_default,
            "difference": self.difference,
            "interval": self.interval,
            "drop": self.drop,
            "exported": self.exported,
            "failed": list(self.failed),
        }

    def in_words(self, metric: str) -> list[str]:
        """The same for people, a sentence each."""
        seeds = len(self.winner.values)
        spread = f"{min(self.winner.values):.4f} to {max(self.winner.values):.4f}"
        luck = f"{abs(self.drop):.4f} too {'good' if self.drop > 0 else 'bad'}" if self.drop else "the same"
        sentences = [
            f"trained again with {seeds} other seeds, trial {self.winner.trial} has {metric} {self.winner.mean:.4f} "
            f"in the mean ({spread}); the search had said {self.winner.searched:.4f}, {luck}",
            self._verdict(),
            f"the model is that of the best of these runs, trial {self.run} with {self.exported:.4f}; the mean is what "
            "to expect of it",
        ]
        if self.failed:
            trials = " and ".join(f"trial {number}" for number in self.failed)
            sentences.append(f"{trials} can't win: with another seed the training failed")
        return sentences

    def _verdict(self) -> str:
        if self.default is None or self.difference is None:
            return "the untuned default can't be compared: with another seed its training failed"
        verdict = f"{self.against_default} than" if self.against_default != SAME else "the same within noise as"
        between = f", 95 % interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f}" if self.interval else ""
        return f"that is {verdict} the untuned default's {self.default.mean:.4f} ({self.difference:+.4f}{between})"


SAME = "the same within noise"


def plan(config: SweepConfig, records: Sequence[TrialRecord]) -> list[FinalRun]:
    """What is still to be trained in the last stage, given all trials.

    Returns:
        Nothing if the sweep has no last stage, or if it would cost more than is cheap and nobody has asked for it.
    """
    search = [record for record in records if record.role == "search"]
    wanted = config.final if isinstance(config.final, FinalConfig) else FinalConfig()
    best = ranking(search, config.modes)[: wanted.top]
    if not best or any(record.state == "running" for record in search) or not is_wanted(config, records):
        return []
    default = default_params(config)
    runs = [FinalRun(one.number, one.params, seed) for one in best for seed in range(1, wanted.seeds + 1)]
    if all(one.params != default for one in best):
        runs += [FinalRun(None, default, seed) for seed in range(1, wanted.seeds + 1)]
    # One that a limit cut off is trained anew.
    known = {
        (record.final_of, record.seed) for record in records if record.role == "final" and record.state != "pruned"
    }
    return [run for run in runs if (run.of, run.seed) not in known]


def cost(config: SweepConfig, records: Sequence[TrialRecord]) -> float:
    """What the last stage takes, as a share of the search's own time."""
    search = [record for record in records if record.role == "search" and record.epochs]
    runs = run_seconds(config, records)
    return sum(runs) / max(sum(record.seconds for record in search), 1e-9) if runs else math.inf


def run_seconds(config: SweepConfig, records: Sequence[TrialRecord]) -> list[float]:
    """About what each run of a last stage would take, by the trials that lead now; nothing if none does."""
    search = [record for record in records if record.role == "search" and record.epochs]
    wanted = config.final if isinstance(config.final, FinalConfig) else FinalConfig()
    each = [
        config.training.epochs * record.seconds / record.epochs
        for record in ranking(search, config.modes)[: wanted.top]
    ]
    return [
        seconds for seconds in (*each, *([max(each)] if each else [])) for _ in range(wanted.seeds)
    ]  # the default's


def is_wanted(config: SweepConfig, records: Sequence[TrialRecord]) -> bool:
    """Whether there is to be a last stage, as things stand."""
    return config.final is not None and (config.final != "auto" or cost(config, records) <= CHEAP)


def default_params(config: SweepConfig) -> dict[str, Value]:
    """The untuned configuration: the first of `search.start_with`, else what is fixed and the defaults of the rest."""
    return starting_points(config)[0] if config.search.start_with else {}


def decide(config: SweepConfig, records: Sequence[TrialRecord]) -> Decision | None:
    """The winner by the mean over seeds; None if nothing was trained again, or not to its end."""
    by_number = {record.number: record for record in records}
    runs: dict[int | None, list[TrialRecord]] = {}
    failed = {record.final_of for record in records if record.role == "final" and record.state == "failed"}
    for record in records:
        if record.role == "final" and record.state == "complete" and record.value is not None:
            runs.setdefault(record.final_of, []).append(record)
    wanted = config.final if isinstance(config.final, FinalConfig) else FinalConfig()
    whole = {of: own for of, own in runs.items() if len(own) >= wanted.seeds}
    default, found = None, []
    for of, own in whole.items():
        searched = None if of is None else by_number[of].value
        values = tuple(record.value for record in own if record.value is not None)
        one = Configuration(of, own[0].params, searched, values)
        if of is None or one.params == default_params(config):
            default = one
        if of is not None:
            found.append(one)
    is_default_out = any(of is None or by_number[of].params == default_params(config) for of in failed)
    if not found or (default is None and not is_default_out):
        return None
    sign = -1.0 if config.mode == "max" else 1.0
    found.sort(key=lambda one: (sign * one.mean, one.trial))
    winner = found[0]
    run = leaders(whole[winner.trial], config.mode, 1)[0]
    against, interval = (None, None) if default is None else compare(winner.values, default.values, config)
    assert winner.searched is not None and run.value is not None
    drop = (winner.searched - winner.mean) * (1.0 if config.mode == "max" else -1.0)
    difference = None if default is None else winner.mean - default.mean
    out = tuple(sorted(of for of in failed if of is not None))
    return Decision(winner, run.number, tuple(found), default, against, difference, interval, drop, run.value, out)


def compare(
    values: Sequence[float], others: Sequence[float], config: SweepConfig
) -> tuple[str, tuple[float, float] | None]:
    """Whether values are better than others, in words, and the interval of the difference of their means.

    By Welch's t interval over seeds; None if there is no spread at all, where any difference counts.
    """
    difference = sum(values) / len(values) - sum(others) / len(others)
    better = is_better(difference, 0.0, config.mode)
    if len({*values}) == 1 and len({*others}) == 1:
        return (SAME if difference == 0 else "better" if better else "worse"), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are nearly alike
        found = stats.ttest_ind(values, others, equal_var=False).confidence_interval(CONFIDENCE)
    low, high = float(found.low), float(found.high)
    if low <= 0 <= high:
        return SAME, (low, high)
    return "better" if better else "worse", (low, high)

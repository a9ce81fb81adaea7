"""How long a sweep will take on this machine and what memory its workers will need, from what was timed here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import optuna
import psutil
import torch

from rayft import imports
from rayft.check.expected_epochs import epochs_per_trial
from rayft.check.measure import ModelCost
from rayft.check.trainable import Trainable
from rayft.config import FinalConfig, Hyperparameters, SweepConfig
from rayft.search_space import model_of, resolve, suggest
from rayft.strategies import get_strategy
from rayft.strategies.base import with_freeze_depth
from rayft.sweep.final import CHEAP
from rayft.tasks import get_task

CONFIGURATIONS = 300
"""Configurations that are drawn from the search space, of which the mean is taken."""
CONSTANT_SECONDS = 30.0
"""Start of Ray and its workers, and the export with its verification: measured at 57 s on two CPU cores of which other
work took half."""
TRIAL_SECONDS = 0.5
"""Beside its epochs each trial copies the model, writes checkpoints and asks for the next."""
PROCESS_BYTES = 0.7e9
"""What a worker takes before it has a model: Python with torch, transformers and Ray."""


@dataclass(frozen=True)
class Machine:
    """What the forecast is for.

    Attributes:
        cpus: Of this machine that the process may use.
        device: What a trial computes on: cpu or cuda.
        precision: fp32 or bf16; of several models the first one's.
        concurrent_trials: Trials side by side.
        memory: Bytes, of the GPU if it computes there.
    """

    cpus: int
    device: str
    precision: str
    concurrent_trials: int
    memory: int


@dataclass(frozen=True)
class Forecast:
    """A sweep on this machine.

    Attributes:
        machine: The machine.
        seconds: By whether ASHA stops trials early and whether the cache of frozen layers is there; without what the
            sweep doesn't have.
        epochs_per_trial: That trials train for on average with early stopping.
        worker_bytes: The most that a worker needs, with activations.
        workers: Side by side on this machine.
    """

    machine: Machine
    seconds: dict[tuple[bool, bool], float]
    epochs_per_trial: float
    worker_bytes: float
    workers: int

    def in_words(self) -> list[str]:
        """As `rayft check` shows it, a line each."""
        here = self.machine
        side = f"{here.concurrent_trials} trial{'s' * (here.concurrent_trials > 1)} side by side"
        times = "; ".join(self._times())
        lines = [
            f"a worker needs about {_gigabytes(self.worker_bytes)}",
            f"on this machine ({here.cpus} CPUs, {side}, {here.precision} on {here.device}) the sweep takes {times}",
        ]
        if self.worker_bytes * self.workers > here.memory:
            need = f"{self.workers} workers side by side need about {_gigabytes(self.worker_bytes * self.workers)}"
            way_out = "fewer trials side by side (cluster.concurrent_trials) or smaller batches need less"
            lines.insert(1, f"warning: {need}, and this machine has {_gigabytes(here.memory)}; {way_out}")
        return lines

    def state_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        named = {
            f"{'with' if stops else 'without'}_early_stopping{'_and_cache' if cached else ''}": round(seconds, 1)
            for (stops, cached), seconds in self.seconds.items()
        }
        return {
            "machine": vars(self.machine),
            "seconds": named,
            "epochs_per_trial": self.epochs_per_trial,
            "worker_bytes": round(self.worker_bytes),
            "workers": self.workers,
            "fits": self.worker_bytes * self.workers <= self.machine.memory,
        }

    def _times(self) -> list[str]:
        times = []
        for cached in (False, True):
            own = {stops: about(seconds) for (stops, has), seconds in self.seconds.items() if has == cached}
            if not own:
                continue
            behind = " once the cache of frozen layers is there" if cached else ""
            if True in own:
                times.append(f"about {own[True]} with early stopping{behind} (about {own[False]} without)")
            else:
                times.append(f"about {own[False]}{behind}")
        return times


def forecast(
    config: SweepConfig, costs: Mapping[str, ModelCost], trainable: Mapping[str, Sequence[Trainable]]
) -> Forecast:
    """Works out what a sweep takes on this machine.

    Args:
        config: The sweep.
        costs: What was timed, by model.
        trainable: What trains, by model.

    Raises:
        ClusterError: It can't run on this machine.
    """
    with imports.swiftly():  # and with these Ray, which nothing else of a check needs
        from rayft.sweep import cluster
        from rayft.sweep.budget import first_limit

    first = next(iter(costs.values()))
    gpus = torch.cuda.device_count() if first.device == "cuda" else 0
    node = {"CPU": float(cluster.cpu_count()), "GPU": float(gpus)}
    placement = cluster.plan([node], config.cluster, config.search.trials)
    limit = first_limit(config.search, placement)
    memory = torch.cuda.get_device_properties(0).total_memory * gpus if gpus else psutil.virtual_memory().total
    machine = Machine(cluster.cpu_count(), first.device, first.precision, placement.groups, int(memory))
    drawn = draw_configurations(config)
    # Of several objectives it can't be told how many trials no other one beats, so this is the most it can take.
    stopping = [False] if config.early_stopping is None or len(config.objectives) > 1 else [False, True]
    caching = [False, True] if config.training.cache == "auto" and _freezes(drawn, costs) else [False]
    seconds = {
        (stops, cached): sweep_seconds(
            config, costs, drawn, placement.groups, limit.seconds if limit else math.inf, stops=stops, cached=cached
        )
        for stops in stopping
        for cached in caching
    }
    need = max(worker_bytes(config, costs[model], trainable[model], drawn) for model in costs)
    return Forecast(machine, seconds, epochs_per_trial(config), need, placement.groups * placement.workers)


def draw_configurations(config: SweepConfig) -> list[tuple[str, Hyperparameters]]:
    """Models and hyperparameters of trials, as a random sampler draws them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    params = [suggest(config, study.ask()) for _ in range(CONFIGURATIONS if config.space else 1)]
    return [(model_of(config, own), resolve(config, own)) for own in params]


def sweep_seconds(
    config: SweepConfig,
    costs: Mapping[str, ModelCost],
    drawn: Sequence[tuple[str, Hyperparameters]],
    groups: int,
    limit: float,
    *,
    stops: bool,
    cached: bool,
) -> float:
    """From the start of a sweep to its exported winner.

    Args:
        config: The sweep.
        costs: What was timed, by model.
        drawn: Configurations, of which a trial has any.
        groups: Trials side by side.
        limit: Seconds after which it has to end.
        stops: Whether ASHA stops trials early.
        cached: Whether what frozen blocks give is in the cache.
    """
    mean = sum(epoch_seconds(config, costs[model], hp, cached=cached) for model, hp in drawn) / len(drawn)
    epochs = epochs_per_trial(config) if stops else config.training.epochs
    trials = config.search.trials
    search = max(trials / groups, 1.0) * (epochs * mean + TRIAL_SECONDS)
    again = config.final if isinstance(config.final, FinalConfig) else FinalConfig()
    last = (again.top + 1) * again.seeds * config.training.epochs * mean
    takes_last = isinstance(config.final, FinalConfig) or (config.final == "auto" and last <= CHEAP * search * groups)
    whole = CONSTANT_SECONDS + search + (last / groups if takes_last else 0.0)
    return min(whole, max(limit, CONSTANT_SECONDS))


def epoch_seconds(config: SweepConfig, cost: ModelCost, hp: Hyperparameters, *, cached: bool) -> float:
    """An epoch of one configuration: its steps, and validation.

    A frozen block takes a forward pass and no backward pass, and nothing at all where its output is in the cache.
    """
    frozen = sum(cost.blocks[: _frozen_blocks(cost, hp)])
    step = cost.steps[hp.strategy]
    steps, tokens = _batches(cost, hp.batch_size)
    tokens /= config.cluster.workers_per_trial
    keeps = cached and not get_task(config.task).augments(hp)  # what changes at random can't be kept
    below = 0.0 if keeps else frozen * cost.forward_seconds * tokens
    training = (1 - frozen) * (steps * step.seconds + tokens * step.token_seconds) + below
    validation = cost.forward_seconds * cost.validation_tokens / config.cluster.workers_per_trial
    return training + validation * (1 - frozen if cached else 1.0)


def worker_bytes(
    config: SweepConfig,
    cost: ModelCost,
    trainable: Sequence[Trainable],
    drawn: Sequence[tuple[str, Hyperparameters]],
) -> float:
    """The most that a worker needs of a model: what trains and the activations of its largest batch of long rows."""
    longest = int(cost.lengths.max())
    rows = -(-max(hp.batch_size for _, hp in drawn) // config.cluster.workers_per_trial)
    kept = {strategy: step.token_bytes * longest * min(rows, cost.rows) for strategy, step in cost.steps.items()}
    process = PROCESS_BYTES if cost.device == "cpu" else 0.0
    return process + max(one.bytes + kept[one.strategy] for one in trainable)


def about(seconds: float) -> str:
    """A time as one says it: 40 s, 4 min, 2.5 h."""
    if seconds < 180:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60):.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


@cache
def _batches(cost: ModelCost, batch_size: int) -> tuple[float, float]:
    return cost.batches(batch_size)


def _frozen_blocks(cost: ModelCost, hp: Hyperparameters) -> int:
    return get_strategy(hp.strategy).frozen_blocks(with_freeze_depth(hp, cost.layers))


def _freezes(drawn: Sequence[tuple[str, Hyperparameters]], costs: Mapping[str, ModelCost]) -> bool:
    return any(_frozen_blocks(costs[model], hp) for model, hp in drawn)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size < 20e9 else f"{size / 1e9:.0f} GB"

"""Trains a trial again from the record, in this process, and holds every epoch against it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rayft.config import MetricName, Precision, SweepConfig
from rayft.errors import CheckpointError, Fault, RayftError, RunError
from rayft.export.verify import TOLERANCE
from rayft.models.load import quiet
from rayft.search_space import model_of, resolve
from rayft.sweep.group_spec import group_spec
from rayft.sweep.loaded_model import LoadedModels
from rayft.sweep.run_folder import ENVIRONMENT, RunFolder
from rayft.sweep.trial_record import TrialRecord
from rayft.training.checkpoint import read_precision
from rayft.training.failures import DivergedError
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers


@dataclass(frozen=True)
class EpochPair:
    """One epoch's value of the search metric, on record and trained again."""

    epoch: int
    recorded: float
    reproduced: float

    @property
    def difference(self) -> float:
        """How far they lie apart."""
        return abs(self.reproduced - self.recorded)

    def is_same(self, tolerance: float) -> bool:
        """Whether that is rounding: values above 1, such as a perplexity, are rounded in proportion."""
        return self.difference <= tolerance * max(1.0, abs(self.recorded))


@dataclass(frozen=True)
class Reproduction:
    """A trial that was trained again.

    Attributes:
        trial: Its number.
        metric: The search metric.
        precision: `fp32` or `bf16`.
        device: Where it was trained.
        tolerance: How far a value may lie from the record.
        epochs: All that are on record.
    """

    trial: int
    metric: MetricName
    precision: str
    device: str
    tolerance: float
    epochs: tuple[EpochPair, ...]

    @property
    def same(self) -> bool:
        """Whether every epoch gave what is on record."""
        return all(pair.is_same(self.tolerance) for pair in self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "same": self.same}

    def in_words(self) -> str:
        """The verdict."""
        count = len(self.epochs)
        if not any(pair.difference for pair in self.epochs):
            return f"the same: {self.metric} is exactly that on record in {_each(count)}"
        largest = max(pair.difference for pair in self.epochs)
        if self.same:
            within = f"within {self.tolerance:g} of the record ({self.precision}), at most {largest:.2g} away"
            return f"the same: {self.metric} is {within}, in {_each(count)}"
        first = next(pair for pair in self.epochs if not pair.is_same(self.tolerance))
        values = f"{self.metric} {first.reproduced:.6f}, but {first.recorded:.6f} is on record"
        return f"not the same: epoch {first.epoch} gave {values}, further away than {self.tolerance:g}"


def reproduce_trial(
    config: SweepConfig, run: RunFolder, record: TrialRecord, tolerance: float | None, show: Callable[[str], None]
) -> Reproduction:
    """Trains the epochs of a trial that are on record.

    Args:
        config: The sweep.
        run: Its run folder, which is only read, but for what is fetched from remote storage.
        record: The trial.
        tolerance: How far a value may lie from the record; by the precision if None.
        show: Told what happens, a line at a time.

    Raises:
        RunError: No epoch of the trial is on record, or the run's data is gone.
        ModelError: The model can't be loaded.
        RayftError: An epoch that is on record can't be trained.
    """
    if not record.values:
        rule = f"trial {record.number} ({record.state}) has no finished epoch to hold a new one against"
        raise RunError([Fault(run.address, rule, "TRIAL")])
    model = model_of(config, record.params)
    if model not in config.models:
        rule = f"trial {record.number} fine-tuned {model}, which the run's sweep.yaml no longer names"
        raise RunError([Fault(run.address, rule, "TRIAL")])
    uses_gpu = torch.cuda.is_available() and config.cluster.gpus_per_worker != 0
    workers = Workers(rank=0, world_size=1, device=torch.device("cuda" if uses_gpu else "cpu"))
    spec = group_spec(config, run.address, config.cluster.cpus_per_worker)
    spec = replace(spec, precision=recorded_precision(config, run, record))
    torch.set_num_threads(spec.threads)
    models = LoadedModels(spec, workers)
    with quiet():
        loaded = models.get(model)
        head = models.head(model, record.seed) if record.seed else None
    tuning = FineTuning(
        loaded.base,
        loaded.layers,
        loaded.data,
        resolve(config, record.params),
        epochs=spec.epochs,
        seed=spec.seed + record.seed,
        head=head,
        workers=workers,
        acceleration=loaded.acceleration,
    )
    precision = "fp32" if loaded.acceleration.autocast is None else "bf16"
    of = f"{record.epochs} of {spec.epochs}" if record.epochs < spec.epochs else f"{spec.epochs}"
    show(f"training {of} epochs in {precision} on {workers.device.type}")
    pairs = []
    for epoch, recorded in sorted(record.values.items()):
        try:
            result = tuning.train_epoch()
        except DivergedError as error:
            value = f"{config.metric} {recorded:.4f} is on record"
            raise RayftError(f"not the same: epoch {epoch} diverged ({error}), but {value}") from None
        pairs.append(EpochPair(epoch, recorded, result.metrics[config.metric]))
        show(f"epoch {epoch}: {config.metric} {pairs[-1].reproduced:.6f}, on record {recorded:.6f}")
    allowed = TOLERANCE[precision] if tolerance is None else tolerance
    return Reproduction(record.number, config.metric, precision, workers.device.type, allowed, tuple(pairs))


def recorded_precision(config: SweepConfig, run: RunFolder, record: TrialRecord) -> Precision:
    """What the trial was trained in, which `auto` has left to the machine it ran on.

    Its checkpoint says so; else that of another trial, all of which ran on like machines.
    """
    if config.training.precision != "auto":
        return config.training.precision
    if record.checkpoint is not None:
        run.obtain(record.checkpoint)
    own, others = run.trial(record.number).glob("checkpoint-*"), run.path.glob("trials/*/checkpoint-*")
    for folder in (*own, *others):
        try:
            return "bf16" if read_precision(folder) == "bf16" else "fp32"
        except (CheckpointError, OSError):  # it is of no other use here
            continue
    return "auto"


def reservations(config: SweepConfig, run: RunFolder) -> list[str]:
    """Why a trial may give other values here than those on record.

    Args:
        config: The sweep.
        run: Its run folder.
    """
    notes = []
    if (workers := config.cluster.workers_per_trial) > 1:
        order = f"the trial ran on {workers} workers and here runs on one: sums are taken in another order"
        notes.append(f"{order}, and dropout is drawn otherwise, so values may differ by more than rounding")
    changed = {name: (then, _version(name)) for name, then in _packages(run).items()}
    other = [f"{name} {then} then and {now} now" for name, (then, now) in changed.items() if then != now]
    if other:
        notes.append(f"the run was made with other packages: {', '.join(other)}")
    return notes


def _packages(run: RunFolder) -> dict[str, str]:
    """The versions that the run was made with; none where that can't be told, which is no reason to stop."""
    try:
        packages: dict[str, str] = json.loads((run.path / ENVIRONMENT).read_text(encoding="utf-8"))["packages"]
    except (OSError, ValueError, KeyError):
        return {}
    return packages


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _each(count: int) -> str:
    return "its one epoch" if count == 1 else f"each of its {count} epochs"

"""Takes a part out of rayft that has no option, for the ablation.

Python imports a module of this name at the start of every process that finds it, and so of Ray's workers too. The part
is named by `RAYFT_BENCH_WITHOUT`. Nothing else may be imported here: most of the processes never load rayft.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def without_buckets(batches: Any) -> None:
    """Rows of any length share a batch."""
    import numpy as np

    def random_batches(lengths: Any, batch_size: int, seed: int, epoch: int) -> list[Any]:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    batches.train_batches = random_batches


def without_background_writes(trial_checkpoints: Any) -> None:
    """Training waits until a checkpoint is on disk."""
    checkpoints = trial_checkpoints.TrialCheckpoints
    save = checkpoints.save

    def save_and_wait(self: Any, tuning: Any) -> None:
        save(self, tuning)
        self.wait()

    checkpoints.save = save_and_wait


def without_onednn(acceleration: Any) -> None:
    """Products in float32 are torch's own, which are MKL's."""
    acceleration.choose_onednn = lambda *_: False


def without_warm_groups(worker: Any) -> None:
    """A group's workers end after each trial, and new ones are started for the next."""
    worker.TrialWorker.must_be_recycled = lambda self, trial: self._trial not in (None, trial)


PARTS = {
    "onednn": ("rayft.training.acceleration", without_onednn),
    "warm-groups": ("rayft.sweep.worker", without_warm_groups),
    "buckets": ("rayft.data.batches", without_buckets),
    "background-writes": ("rayft.sweep.trial_checkpoints", without_background_writes),
}


class _Finder:
    """Finds one module as Python would, and changes it once it is loaded."""

    def __init__(self, part: str) -> None:
        self._name, self._change = PARTS[part]

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            self._change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


if part := os.environ.get("RAYFT_BENCH_WITHOUT"):
    sys.meta_path.insert(0, _Finder(part))

"""The data and the configurations that all arms share."""

import importlib.util
import math
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.arms.job import SPACE, Config
from benchmarks.machine import ROOT
from benchmarks.options import BenchmarkError

MAX_LENGTH = 64
VALIDATION_ROWS, TEST_ROWS = 300, 500


@dataclass(frozen=True)
class Files:
    """The CSV files and the model folder that jobs name."""

    train: str
    validation: str
    test: str
    model: str


def quickstart() -> ModuleType:
    """The quickstart's own preparation, which is a script and no module of the package."""
    path = ROOT / "search_spaces" / "prepare_quickstart.py"
    spec = importlib.util.spec_from_file_location("prepare_quickstart", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_files(folder: Path, train_rows: int, validation_rows: int, test_rows: int) -> Files:
    """Writes disjoint splits of the BBC news texts, the same ones every time.

    Raises:
        BenchmarkError: There aren't so many texts.
    """
    source = quickstart()
    rows = sorted(source.read_articles())
    random.Random(0).shuffle(rows)
    needed = train_rows + validation_rows + test_rows
    if needed > len(rows):
        raise BenchmarkError(f"rows must be <= {len(rows) - validation_rows - test_rows}, but got {train_rows}")
    ends = (validation_rows, validation_rows + test_rows, needed)  # training rows last, so that a change moves no other
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, end in zip(("validation", "test", "train"), (0, *ends[:2]), ends, strict=True):
        source.write_csv(folder / f"{name}.csv", rows[start:end])
    paths = {name: str((folder / f"{name}.csv").absolute()) for name in ("train", "validation", "test")}
    return Files(model=str(source.get_model_path()), **paths)


def replay_configs() -> list[Config]:
    """Eight configurations from full fine-tuning to the head alone."""
    depths = [0, 0, 2, 3, 4, 5, 6, 6]
    rates = [2e-4, 3e-4, 3e-4, 4e-4, 5e-4, 7e-4, 1e-3, 1e-3]
    return [_config(rate, (16, 32)[index % 2], depths[index]) for index, rate in enumerate(rates)]


def full_configs() -> list[Config]:
    """Four configurations of full fine-tuning."""
    return [_config(rate, (16, 32)[index % 2], 0) for index, rate in enumerate([1e-4, 2e-4, 2e-4, 3e-4])]


def random_configs(count: int, seed: int) -> list[Config]:
    """Configurations drawn from `SPACE`."""
    generator = random.Random(seed)
    return [{name: _draw(generator, domain) for name, domain in SPACE.items()} for _ in range(count)]


def _config(learning_rate: float, batch_size: int, freeze_depth: int) -> Config:
    values = {"learning_rate": learning_rate, "batch_size": batch_size, "freeze_depth": freeze_depth}
    return {**values, "weight_decay": 0.01}


def _draw(generator: random.Random, domain: Any) -> Any:
    if isinstance(domain, list):
        return generator.choice(domain)
    if domain.get("log"):
        low, high = math.log(domain["low"]), math.log(domain["high"])
        return min(max(math.exp(generator.uniform(low, high)), domain["low"]), domain["high"])
    return generator.randint(domain["low"], domain["high"])

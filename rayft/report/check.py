"""What `rayft check` shows: the data, the layer map and the search space, as a sweep would take them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rayft.config import (
    SOME_STRATEGIES_ONLY,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    Domain,
    StrategyName,
    SweepConfig,
    as_list,
)
from rayft.data.encode import EncodedData, encode_splits
from rayft.data.quality import class_counts
from rayft.data.splits import Splits
from rayft.models.layers import LayerMap
from rayft.models.load import load_preprocessor
from rayft.report.tables import format_value
from rayft.sweep.preflight import check_model
from rayft.sweep.read_data import read_data
from rayft.tasks import get_task


def print_check(config: SweepConfig, console: Console) -> None:
    """Checks a sweep without running it, and shows what it would work on.

    Raises:
        UserError: Something is wrong; with all faults of the data, or of the model.
    """
    config, splits = read_data(config)
    task = get_task(config.task)
    preprocessors = {model: load_preprocessor(model, task) for model in config.models}
    layers = {model: check_model(config, model, splits.label_names) for model in config.models}
    console.print(_data_table(splits))
    for note in (*config.notes, *splits.notes):
        console.print(note)
    for model, own in layers.items():
        name = model if len(layers) > 1 else "the model"
        with TemporaryDirectory(prefix="rayft-check-") as folder:  # encoding finds what reading alone doesn't
            notes = encode_splits(splits, task, preprocessors[model], config.data, Path(folder))
            data = EncodedData.open(Path(folder))
        if data.train.has_tokens:
            console.print(_length_table(data, name))
        for note in notes:
            console.print(note)
        console.print(_layer_table(own, name))
    console.print(_space_table(config))
    console.print(f"{config.search.trials} trials of at most {config.training.epochs} epochs; nothing is wrong")


def _data_table(splits: Splits) -> Table:
    names = splits.label_names
    table = _table("split", "rows", *names)
    for name, rows in splits.present().items():
        counts = class_counts(rows.labels, names) if names and rows.labels is not None else []
        table.add_row(name, str(len(rows)), *map(str, counts))
    return table


def _length_table(data: EncodedData, model: str) -> Table:
    """How long rows are as the model reads them."""
    table = _table(f"rows as {model} reads them", "rows", "tokens", "median", "95 % have at most", "longest")
    for split in filter(None, (data.train, data.validation, data.test, data.unlabeled)):
        median, most = np.percentile(split.lengths, (50, 95))
        figures = [split.lengths.sum(), round(median), round(most), split.lengths.max()]
        table.add_row(split.name, str(len(split)), *map(str, figures))
    return table


def _layer_table(layers: LayerMap, model: str) -> Table:
    table = _table(f"part of {model}", "parameter tensors", "frozen from freeze_depth")
    table.add_row("embeddings", str(len(layers.embeddings)), "1")
    for index, block in enumerate(layers.blocks, start=1):
        table.add_row(f"block {index}", str(len(block)), str(index))
    table.add_row("after the blocks", str(len(layers.after_blocks)), "never")
    table.add_row("head", str(len(layers.head)), "never")
    return table


def _space_table(config: SweepConfig) -> Table:
    table = _table("hyperparameter", "values", "when")
    for name, domain in config.space.items():
        conditions = [f"{parent} is {' or '.join(map(str, as_list(wanted)))}" for parent, wanted in domain.when.items()]
        table.add_row(name, _values(domain), ", ".join(conditions) or _readers(name, config.strategies))
    return table


def _values(domain: Domain) -> str:
    if isinstance(domain, Categorical):
        return ", ".join(map(format_value, domain.choices))
    kind = "log" if domain.log else f"step {format_value(domain.step)}" if domain.step else ""
    return f"{format_value(domain.low)} to {format_value(domain.high)} {kind}".rstrip()


def _readers(name: str, strategies: list[StrategyName]) -> str:
    """For a hyperparameter that only some of the sweep's strategies read: these."""
    if name not in SOME_STRATEGIES_ONLY:
        return "always"
    readers = [strategy for strategy in strategies if name in STRATEGY_HYPERPARAMETERS[strategy]]
    return "always" if readers == strategies else f"strategy is {' or '.join(readers)}"


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title)
    return table

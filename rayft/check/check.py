"""What `rayft check` finds: the data, the layer map and the search space, as a sweep would take them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rayft.check.forecast import Forecast, forecast
from rayft.check.measure import ModelCost, free_memory, measure
from rayft.check.trainable import Trainable, trainable_parts
from rayft.config import (
    SOME_STRATEGIES_ONLY,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    Domain,
    StrategyName,
    SweepConfig,
    as_list,
)
from rayft.data.encode import encode_splits, named_class_counts
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.splits import Splits
from rayft.errors import SWEEP_FILE, ClusterError, Fault, UserError
from rayft.models.layers import LayerMap
from rayft.models.load import load_preprocessor, load_skeleton
from rayft.report.loggers import check_installed
from rayft.report.tables import format_value
from rayft.sweep.preflight import check_model
from rayft.sweep.read_data import read_data
from rayft.tasks import get_task

Result = TypeVar("Result")

ANY_LABELS = ("0", "1")
"""What a model is looked at with where the data doesn't say what its classes are."""


@dataclass(frozen=True)
class _Reader:
    """A model of the sweep, as far as it is read before a trial runs.

    Attributes:
        preprocessor: Its tokenizer or image processor.
        layers: Its layer map.
        trainable: What of it trains.
    """

    preprocessor: Any
    layers: LayerMap
    trainable: tuple[Trainable, ...]


@dataclass(frozen=True)
class _Encoded:
    """What encoding the rows for a model shows.

    Attributes:
        lengths: The rows' lengths by split, none where they have no tokens.
        notes: What was found.
        cost: What the model takes on this machine, if it was timed.
    """

    lengths: Mapping[str, Mapping[str, int]]
    notes: list[str]
    cost: ModelCost | None


def print_check(config: SweepConfig, console: Console, forecasts: bool = True) -> None:
    """Checks a sweep without running it, and shows what it would work on.

    Args:
        config: The sweep.
        console: Where to.
        forecasts: Whether to time the models, and to forecast the sweep from that.

    Raises:
        UserError: Something is wrong; with all faults of the data and of the models.
    """
    config, splits, models = _examine(config)
    encoded = {model: _encode(config, splits, model, reader, forecasts) for model, reader in models.items()}
    console.print(_data_table(splits))
    for note in (*config.notes, *splits.notes):
        console.print(note)
    for model, reader in models.items():
        name = model if len(models) > 1 else "the model"
        if encoded[model].lengths:
            console.print(_length_table(encoded[model].lengths, name))
        for note in encoded[model].notes:
            console.print(note)
        console.print(_layer_table(reader.layers, name))
        console.print(_trainable_table(reader.trainable, name))
    console.print(_space_table(config))
    for line in _forecast(config, models, encoded)[1]:
        console.print(line)
    console.print(f"{config.search.trials} trials of at most {config.training.epochs} epochs; nothing is wrong")


def check_facts(config: SweepConfig, forecasts: bool = True) -> dict[str, Any]:
    """The same as plain values for programs.

    Args:
        config: The sweep.
        forecasts: As for `print_check`.

    Raises:
        UserError: As `print_check`.
    """
    config, splits, models = _examine(config)
    encoded = {model: _encode(config, splits, model, reader, forecasts) for model, reader in models.items()}
    found, _ = _forecast(config, models, encoded)
    return {
        "task": config.task,
        "metric": config.metric,
        "mode": config.mode,
        "objectives": dict(zip(config.objectives, config.modes, strict=True)),
        "trials": config.search.trials,
        "epochs": config.training.epochs,
        "data": {
            name: {"rows": len(rows), "classes": named_class_counts(rows, splits)}
            for name, rows in splits.present().items()
        },
        "notes": [*config.notes, *splits.notes],
        "models": {model: _model_facts(reader, encoded[model]) for model, reader in models.items()},
        "space": {name: domain.model_dump() for name, domain in config.space.items()},
        "forecast": found and found.state_dict(),
    }


def _examine(config: SweepConfig) -> tuple[SweepConfig, Splits, dict[str, _Reader]]:
    """Reads data and models; what is wrong with one doesn't hide what is wrong with another.

    Returns:
        The sweep for the task that its data turned out to be for, the rows, and the models.

    Raises:
        UserError: All that is wrong.
    """
    faults: list[Fault] = []

    def attempt(step: Callable[[], Result]) -> Result | None:
        try:
            return step()
        except UserError as error:
            faults.extend(error.faults)
            return None

    attempt(lambda: check_installed(config, SWEEP_FILE))
    read = attempt(lambda: read_data(config))
    found, names = (read[0], read[1].label_names) if read else (config, ANY_LABELS)
    readers = {model: attempt(partial(_check_model, found, model, names)) for model in found.models}
    if faults:
        raise UserError(list(dict.fromkeys(faults)))
    assert read is not None
    return *read, {model: reader for model, reader in readers.items() if reader is not None}


def _check_model(config: SweepConfig, model: str, label_names: Sequence[str]) -> _Reader:
    preprocessor = load_preprocessor(model, get_task(config.task))
    layers = check_model(config, model, label_names)
    skeleton = load_skeleton(model, get_task(config.task), label_names)
    return _Reader(preprocessor, layers, trainable_parts(config, model, skeleton, layers))


def _model_facts(reader: _Reader, encoded: _Encoded) -> dict[str, Any]:
    layers = [
        {"part": part, "parameters": list(names), "frozen_from": depth} for part, names, depth in _parts(reader.layers)
    ]
    trains = [asdict(one) for one in reader.trainable]
    return {"lengths": encoded.lengths, "notes": encoded.notes, "layers": layers, "trains": trains}


def _encode(config: SweepConfig, splits: Splits, model: str, reader: _Reader, forecasts: bool) -> _Encoded:
    """Encodes the rows for a model, which finds what reading alone doesn't, and times the model on them."""
    with TemporaryDirectory(prefix="rayft-check-") as folder:
        path = Path(folder) / config.encoded_folder(model)
        notes = encode_splits(splits, get_task(config.task), reader.preprocessor, config.data, path)
        data = EncodedData.open(path)
        size = max(one.bytes for one in reader.trainable)
        has_room = size < free_memory(config)
        if forecasts and not has_room:
            notes.append(f"warning: a worker needs more than {size / 1e9:.0f} GB, which isn't free here: no forecast")
        cost = measure(config, model, Path(folder)) if forecasts and has_room else None
    present = [split for split in (data.train, data.validation, data.test, data.unlabeled) if split is not None]
    lengths = {str(split.name): _lengths(split) for split in present if data.train.has_tokens}
    return _Encoded(lengths, list(notes), cost)


def _forecast(
    config: SweepConfig, models: Mapping[str, _Reader], encoded: Mapping[str, _Encoded]
) -> tuple[Forecast | None, list[str]]:
    """The sweep on this machine, if all of its models were timed, and what to say of it."""
    costs = {model: one.cost for model, one in encoded.items() if one.cost is not None}
    if len(costs) < len(models):
        return None, []
    try:
        found = forecast(config, costs, {model: reader.trainable for model, reader in models.items()})
    except ClusterError as error:  # it may be meant for a larger cluster
        return None, [f"no forecast, since the sweep can't run on this machine: {error.faults[0].rule}"]
    return found, found.in_words()


def _lengths(split: EncodedSplit) -> dict[str, int]:
    median, most = np.percentile(split.lengths, (50, 95))
    figures = {"tokens": split.lengths.sum(), "median": round(median), "p95": round(most)}
    return {"rows": len(split), **{name: int(n) for name, n in figures.items()}, "longest": int(split.lengths.max())}


def _parts(layers: LayerMap) -> list[tuple[str, tuple[str, ...], int | None]]:
    """Each part of a model: its name, its parameters, and the least `freeze_depth` that freezes it."""
    blocks = [(f"block {depth}", names, depth) for depth, names in enumerate(layers.blocks, start=1)]
    above = [("after the blocks", layers.after_blocks, None), ("head", layers.head, None)]
    return [("embeddings", layers.embeddings, 1), *blocks, *above]


def _data_table(splits: Splits) -> Table:
    table = _table("split", "rows", *splits.label_names)
    for name, rows in splits.present().items():
        table.add_row(name, str(len(rows)), *map(str, named_class_counts(rows, splits).values()))
    return table


def _length_table(lengths: Mapping[str, Mapping[str, int]], model: str) -> Table:
    """How long rows are as the model reads them."""
    table = _table(f"rows as {model} reads them", "rows", "tokens", "median", "95 % have at most", "longest")
    for split, figures in lengths.items():
        table.add_row(split, *map(str, figures.values()))
    return table


def _layer_table(layers: LayerMap, model: str) -> Table:
    table = _table(f"part of {model}", "parameter tensors", "frozen from freeze_depth")
    for part, names, depth in _parts(layers):
        table.add_row(part, str(len(names)), str(depth or "never"))
    return table


def _trainable_table(trainable: Sequence[Trainable], model: str) -> Table:
    table = _table(f"what trains of {model}", "freeze_depth", "lora_rank", "parameters", "share", "memory for these")
    for one in trainable:
        given = (str(value) if value is not None else "" for value in (one.freeze_depth, one.lora_rank))
        table.add_row(one.strategy, *given, f"{one.parameters:,}", f"{one.share:.1%}", f"{one.bytes / 1e9:.2f} GB")
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

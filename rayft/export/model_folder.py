"""A trial's checkpoint as a model folder that anybody can load, moved into place once it is proved."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import rayft
from rayft.config import SweepConfig
from rayft.config_tasks import LATENCY
from rayft.data.encoded import RAW, EncodedData
from rayft.errors import CheckpointError, Fault, RunError
from rayft.export.model_card import model_card
from rayft.export.record import RECORD
from rayft.export.verify import TOLERANCE, Scores, Verifier
from rayft.models.layers import map_layers
from rayft.models.load import load_model, load_preprocessor, quiet
from rayft.search_space import model_of, resolve
from rayft.strategies import get_strategy
from rayft.strategies.base import trained_tensors, with_freeze_depth
from rayft.sweep.final import Decision
from rayft.sweep.trial_record import TrialRecord
from rayft.tasks import get_task
from rayft.training.checkpoint import read_checkpoint

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "ray", "optuna")


def export_model(
    config: SweepConfig,
    run: Path,
    trial: TrialRecord,
    to: Path,
    verifier: Verifier,
    *,
    score_test: bool,
    decision: Decision | None = None,
    front: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Exports the best epoch of a trial and proves it before anything appears at `to`.

    Args:
        config: The sweep.
        run: Its run folder.
        trial: A trial whose checkpoint was kept.
        to: The model folder to make; an earlier export there is replaced.
        verifier: What proves it.
        score_test: Whether to score the test split, which is for the sweep's winner only.
        decision: What the last stage found, if the trial is the winner and there was one.
        front: What `front_record` says of the sweep.

    Returns:
        What `rayft.json` holds.

    Raises:
        RunError: The trial has no checkpoint, or something else lies at `to`.
        CheckpointError: The checkpoint is damaged.
        VerificationError: The folder doesn't score what the search recorded.
    """
    _check_possible(run, trial, to)
    encoded = run / config.encoded_folder(model_of(config, trial.params))
    data = EncodedData.open(encoded)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        verifier.start()
        precision = write_model(config, run, trial, data, partial)
        score_test = score_test and data.test is not None
        timed = LATENCY in config.objectives
        scores = verifier.verify(
            partial, data, encoded / RAW, trial.metrics, precision, score_test, config.metric, latency=timed
        )
        best = _record(config, trial, data, precision, scores)
        best["final"] = None if decision is None else decision.state_dict(config.metric)
        best["front"] = front
        (partial / "README.md").write_text(model_card(config, best), encoding="utf-8")
        (partial / RECORD).write_text(json.dumps(best, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _move_into_place(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return best


def _check_possible(run: Path, trial: TrialRecord, to: Path) -> None:
    faults = []
    if trial.checkpoint is None or not (run / trial.checkpoint).is_dir():
        rule = f"trial {trial.number} ({trial.state}) has no checkpoint to export; those of the leading trials are kept"
        faults.append(Fault(where=str(run), key="trial", rule=rule))
    if to.exists() and not (to / RECORD).is_file() and not (to.is_dir() and not any(to.iterdir())):
        rule = f"must be new, empty or an earlier export with a {RECORD}, but something else is there"
        faults.append(Fault(where=str(to), rule=rule))
    if faults:
        raise RunError(faults)


def write_model(config: SweepConfig, run: Path, trial: TrialRecord, data: EncodedData, folder: Path) -> str:
    """Writes the weights, config and tokenizer or image processor of a trial's best epoch as transformers does.

    Args:
        config: The sweep.
        run: Its run folder.
        trial: A trial whose checkpoint was kept.
        data: Its encoded data.
        folder: Where to write; made if it doesn't exist.

    Returns:
        The precision that the trial was trained and validated in.

    Raises:
        CheckpointError: The checkpoint is damaged, or not of this trial.
    """
    assert trial.checkpoint is not None, f"trial {trial.number} has no checkpoint"
    checkpoint = run / trial.checkpoint
    state = read_checkpoint(checkpoint, trial.digest)
    hp = resolve(config, trial.params)
    model = _untrained(config, model_of(config, trial.params), data)
    layers, strategy = map_layers(model), get_strategy(hp.strategy)
    module = strategy.prepare(model, layers, with_freeze_depth(hp, layers))
    trained = trained_tensors(module)
    expected = {name: tensor.shape for name, tensor in trained.items()}
    if expected != {name: tensor.shape for name, tensor in state.model.items()}:
        raise CheckpointError(f"{checkpoint} doesn't hold the tensors that strategy {hp.strategy} trains")
    with torch.no_grad():
        for name, tensor in state.model.items():
            trained[name].copy_(tensor)
    _save(config, model_of(config, trial.params), strategy.exported(module), data, folder)
    return state.precision


def write_untrained(config: SweepConfig, name: str, data: EncodedData, folder: Path) -> None:
    """Writes a model as a trial's would be, but for its values: layers and sizes are those of any export of it.

    Args:
        config: The sweep.
        name: One of its models.
        data: The data as that model reads it.
        folder: Where to write; made if it doesn't exist.
    """
    _save(config, name, _untrained(config, name, data), data, folder)


def _untrained(config: SweepConfig, name: str, data: EncodedData) -> PreTrainedModel:
    padding = data.pad_token_id if data.train.has_tokens else None
    return load_model(name, get_task(config.task), data.label_names, padding, config.search.seed)


def _save(config: SweepConfig, name: str, model: PreTrainedModel, data: EncodedData, folder: Path) -> None:
    task = get_task(config.task)
    preprocessor = load_preprocessor(name, task)
    with quiet():
        task.finish(model, data).save_pretrained(folder)
    if task.preprocessor == "tokenizer":
        preprocessor.model_max_length = config.data.max_length  # so that `truncation=True` alone cuts as training did
    preprocessor.save_pretrained(folder)


def _record(
    config: SweepConfig, trial: TrialRecord, data: EncodedData, precision: str, scores: Scores
) -> dict[str, Any]:
    splits = (data.train, data.validation, data.test, data.unlabeled)
    return {
        "model": model_of(config, trial.params),
        "task": config.task,
        "trial": trial.number,
        "epoch": trial.best_epoch,
        "params": trial.params,
        "hyperparameters": resolve(config, trial.params).model_dump(),
        "metric": config.metric,
        "objectives": trial.objectives(config.metric),
        "latency_ms": scores.latency_ms,
        "validation": trial.metrics,
        "test": scores.metrics.get("test"),
        "verification": {
            "validation": scores.metrics["validation"],
            "precision": precision,
            "tolerance": TOLERANCE[precision],
            "device": scores.device,
        },
        "labels": list(data.label_names),
        "columns": config.data.columns.model_dump(),
        "interval": {"split": "test" if "test" in scores.metrics else "validation", "95%": scores.interval},
        "classes": scores.classes,
        "pairs": scores.pairs,
        "rows": {split.name: len(split) for split in splits if split is not None},
        "max_length": config.data.max_length if data.train.has_tokens else None,
        "checkpoint_digest": trial.digest,
        "versions": {
            "rayft": rayft.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
    }


def _move_into_place(partial: Path, to: Path) -> None:
    """Replaces an earlier export only once the new one is complete."""
    replaced = to.with_name(f".{to.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if to.exists():
        to.replace(replaced)
    partial.replace(to)
    shutil.rmtree(replaced, ignore_errors=True)

"""A trial's checkpoint as a model folder that anybody can load, moved into place once it is proved."""

import json
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

import rayft
from rayft.config import SweepConfig
from rayft.data.encode import EncodedData
from rayft.errors import CheckpointError, Fault, RunError
from rayft.export.model_card import model_card
from rayft.export.verify import TOLERANCE, Scores, Verifier
from rayft.models.layers import map_layers
from rayft.models.load import load_model, load_tokenizer, quiet
from rayft.search_space import resolve
from rayft.strategies import get_strategy
from rayft.strategies.base import trainable_names
from rayft.sweep.study import TrialRecord
from rayft.training.checkpoint import read_checkpoint

RECORD = "rayft.json"

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "ray", "optuna")


def export_model(
    config: SweepConfig, run: Path, trial: TrialRecord, to: Path, verifier: Verifier, *, score_test: bool
) -> dict[str, Any]:
    """Exports the best epoch of a trial and proves it before anything appears at `to`.

    Args:
        config: The sweep.
        run: Its run folder.
        trial: A trial whose checkpoint was kept.
        to: The model folder to make; an earlier export there is replaced.
        verifier: What proves it.
        score_test: Whether to score the test split, which is for the sweep's winner only.

    Returns:
        What `rayft.json` holds.

    Raises:
        RunError: The trial has no checkpoint, or something else lies at `to`.
        CheckpointError: The checkpoint is damaged.
        VerificationError: The folder doesn't score what the search recorded.
    """
    _check_possible(run, trial, to)
    encoded = run / "encoded"
    data = EncodedData.open(encoded)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        verifier.start()
        precision = write_model(config, run, trial, data.label_names, partial)
        score_test = score_test and data.test is not None
        scores = verifier.verify(partial, encoded, trial.metrics, precision, score_test)
        best = _record(config, trial, data, precision, scores)
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


def write_model(config: SweepConfig, run: Path, trial: TrialRecord, label_names: Sequence[str], folder: Path) -> str:
    """Writes the weights, config and tokenizer of a trial's best epoch as transformers does.

    Args:
        config: The sweep.
        run: Its run folder.
        trial: A trial whose checkpoint was kept.
        label_names: The labels in the order of their ids.
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
    tokenizer = _tokenizer_for_export(config)
    model = load_model(config.model, label_names, tokenizer.pad_token_id, config.search.seed)
    strategy = get_strategy(hp.strategy)
    module = strategy.prepare(model, map_layers(model), hp)
    expected = {name: module.get_parameter(name).shape for name in trainable_names(module)}
    if expected != {name: tensor.shape for name, tensor in state.model.items()}:
        raise CheckpointError(f"{checkpoint} doesn't hold the tensors that strategy {hp.strategy} trains")
    with torch.no_grad():
        for name, tensor in state.model.items():
            module.get_parameter(name).copy_(tensor)
    with quiet():
        strategy.exported(module).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return state.precision


def _tokenizer_for_export(config: SweepConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(config.model)
    tokenizer.model_max_length = config.data.max_length  # so that `truncation=True` alone cuts as training did
    return tokenizer


def _record(
    config: SweepConfig, trial: TrialRecord, data: EncodedData, precision: str, scores: Scores
) -> dict[str, Any]:
    splits = (data.train, data.validation, data.test, data.unlabeled)
    return {
        "model": config.model,
        "task": config.task,
        "trial": trial.number,
        "epoch": trial.best_epoch,
        "params": trial.params,
        "hyperparameters": resolve(config, trial.params).model_dump(),
        "metric": config.search.metric,
        "validation": trial.metrics,
        "test": scores.metrics.get("test"),
        "verification": {
            "validation": scores.metrics["validation"],
            "precision": precision,
            "tolerance": TOLERANCE[precision],
            "device": scores.device,
        },
        "labels": list(data.label_names),
        "rows": {split.name: len(split) for split in splits if split is not None},
        "max_length": config.data.max_length,
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

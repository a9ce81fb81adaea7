"""A trial's state on disk: safetensors and JSON only, no pickle, with a manifest of digests that is written last."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayft.config import StrictModel
from rayft.errors import CheckpointError
from rayft.training.results import EpochResult

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
FILES = (MODEL, OPTIMIZER, STATE)

_log = logging.getLogger(__name__)


class _FileDigest(StrictModel):
    sha256: str
    bytes: int


class _Manifest(StrictModel):
    files: dict[str, _FileDigest]


@dataclass(frozen=True)
class TrialState:
    """All that a trial needs to go on after its last finished epoch as if it had never stopped.

    There are no random generators in it: every epoch seeds them from the trial's seed, the epoch and the rank.

    Attributes:
        epoch: Finished epochs.
        step: Finished optimiser steps.
        micro_batch: Rows per forward pass and worker.
        history: The result of each finished epoch.
        model: The trainable tensors, by parameter name.
        optimizer: The optimiser's tensors and, under `adversary/`, the discriminator's.
    """

    epoch: int
    step: int
    micro_batch: int
    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def write_checkpoint(folder: Path, state: TrialState) -> str:
    """Writes the checkpoint beside `folder` and moves it there when it is complete.

    A trial has one writer, its rank 0. A checkpoint that is already there is replaced.

    Returns:
        The SHA-256 of the manifest, and so of the whole checkpoint.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_storable(state.model), partial / MODEL)
    save_file(_storable(state.optimizer), partial / OPTIMIZER)
    counters = {"epoch": state.epoch, "step": state.step, "micro_batch": state.micro_batch}
    history = [result.state_dict() for result in state.history]
    (partial / STATE).write_text(json.dumps({**counters, "history": history}, allow_nan=False))
    files = {name: _FileDigest(sha256=_sha256(partial / name), bytes=(partial / name).stat().st_size) for name in FILES}
    (partial / MANIFEST).write_text(_Manifest(files=files).model_dump_json(indent=1))
    digest = _sha256(partial / MANIFEST)
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    return digest


def read_checkpoint(folder: Path, digest: str | None = None) -> TrialState:
    """Reads a checkpoint whose files are all what the manifest says.

    Args:
        folder: The checkpoint.
        digest: What `write_checkpoint` returned, to be held against the manifest.

    Raises:
        CheckpointError: A file is missing, short, damaged or not of this format; names the file.
    """
    verify_checkpoint(folder, digest)
    model, optimizer = _read_tensors(folder / MODEL), _read_tensors(folder / OPTIMIZER)
    state = _read_json(folder / STATE)
    try:
        return TrialState(
            epoch=state["epoch"],
            step=state["step"],
            micro_batch=state["micro_batch"],
            history=tuple(EpochResult.from_state_dict(result) for result in state["history"]),
            model=model,
            optimizer=optimizer,
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE} isn't the state of a trial: {error}") from error


def verify_checkpoint(folder: Path, digest: str | None = None) -> None:
    """Holds every file against the manifest, and the manifest against `digest` if given.

    Raises:
        CheckpointError: The first file that is missing, short or damaged.
    """
    manifest = folder / MANIFEST
    files = _read_manifest(manifest).files
    if digest is not None and (found := _sha256(manifest)) != digest:
        raise CheckpointError(f"{manifest} has SHA-256 {found}, but {digest} is on record")
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        expected, size = files[name], path.stat().st_size
        if size != expected.bytes:
            raise CheckpointError(f"{path} has {size} bytes, but its manifest says {expected.bytes}")
        if _sha256(path) != expected.sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 isn't the manifest's")


def finished_checkpoints(trial_folder: Path) -> dict[int, str]:
    """The digest of each complete and undamaged `checkpoint-<epoch>`, by epoch; others get a line in the log."""
    found = {}
    for path in trial_folder.glob("checkpoint-*"):
        epoch = path.name.removeprefix("checkpoint-")
        if not epoch.isdecimal():
            continue
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            _log.warning("passed over %s: %s", path, error)
        else:
            found[int(epoch)] = _sha256(path / MANIFEST)
    return found


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path) -> _Manifest:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the checkpoint was never finished")
    content = _read_json(path)
    try:
        manifest = _Manifest.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path} isn't a checkpoint's manifest: {error.errors()[0]['msg']}") from error
    if unlisted := [name for name in FILES if name not in manifest.files]:
        raise CheckpointError(f"{path} must list {', '.join(FILES)}, but lacks {', '.join(unlisted)}")
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON as of the encoding
        raise CheckpointError(f"{path} isn't JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} isn't a safetensors file: {error}") from error

"""A trial's state on disk: safetensors and JSON only, no pickle, with a manifest of digests that is written last."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from xxhash import xxh3_128, xxh3_128_hexdigest

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
    xxh3_128: str
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
        optimizer: The optimiser's tensors and, under `adversary/`, the discriminator's; none after the last epoch.
        precision: `bf16` if it was trained and validated under autocast to bfloat16, else `fp32`.
    """

    epoch: int
    step: int
    micro_batch: int
    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    precision: str


@dataclass(frozen=True)
class PackedCheckpoint:
    """A checkpoint in memory, apart from the tensors that it was made from: they may train on while it is written.

    Attributes:
        files: What each file of the checkpoint holds.
        digest: Of the manifest, and so of the whole checkpoint.
    """

    files: dict[str, bytes]
    digest: str

    @classmethod
    def of(cls, state: TrialState) -> Self:
        """Packs a trial's state."""
        counters = {"epoch": state.epoch, "step": state.step, "micro_batch": state.micro_batch}
        history = [result.state_dict() for result in state.history]
        files = {
            MODEL: save(_storable(state.model)),
            OPTIMIZER: save(_storable(state.optimizer)),
            STATE: json.dumps({**counters, "precision": state.precision, "history": history}, allow_nan=False).encode(),
        }
        digests = {name: _FileDigest(xxh3_128=_digest(file), bytes=len(file)) for name, file in files.items()}
        manifest = _Manifest(files=digests).model_dump_json(indent=1).encode()
        return cls({**files, MANIFEST: manifest}, _digest(manifest))

    def write(self, folder: Path) -> None:
        """Writes the files beside `folder` and moves them there when they are complete.

        A trial has one writer, its rank 0. A checkpoint that is already there is replaced.
        """
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, file in self.files.items():
            _write_file(partial / name, file)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)


def read_checkpoint(folder: Path, digest: str | None = None) -> TrialState:
    """Reads a checkpoint whose files are all what the manifest says.

    Args:
        folder: The checkpoint.
        digest: On record for it, to be held against the manifest.

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
            precision=state["precision"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE} isn't the state of a trial: {error}") from error


def read_precision(folder: Path) -> str:
    """What a checkpoint's trial was trained in, without its tensors.

    Raises:
        CheckpointError: It can't be told.
        OSError: It isn't there.
    """
    precision = _read_json(folder / STATE).get("precision")
    if precision not in ("fp32", "bf16"):
        raise CheckpointError(f"{folder / STATE} isn't the state of a trial: its precision is {precision!r}")
    return str(precision)


def verify_checkpoint(folder: Path, digest: str | None = None) -> None:
    """Holds every file against the manifest, and the manifest against `digest` if given.

    Raises:
        CheckpointError: The first file that is missing, short or damaged.
    """
    manifest = folder / MANIFEST
    files = _read_manifest(manifest).files
    if digest is not None and (found := _file_digest(manifest)) != digest:
        raise CheckpointError(f"{manifest} has digest {found}, but {digest} is on record")
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        expected, size = files[name], path.stat().st_size
        if size != expected.bytes:
            raise CheckpointError(f"{path} has {size} bytes, but its manifest says {expected.bytes}")
        if _file_digest(path) != expected.xxh3_128:
            raise CheckpointError(f"{path} is damaged: its digest isn't the manifest's")


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
            found[int(epoch)] = _file_digest(path / MANIFEST)
    return found


def _write_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(content: bytes) -> str:
    """Of 128 bits that guard against damage; they need not guard against people who may write the run folder.

    Packing is the one part of a checkpoint that training waits for, and SHA-256 would be most of it.
    """
    return xxh3_128_hexdigest(content)


def _file_digest(path: Path) -> str:
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


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

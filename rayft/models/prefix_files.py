"""The files of the prefix cache: hidden states of many rows, end to end, within a disk budget.

FOLDER/
  budget.lock             held while room is made
  FINGERPRINT.lock        held while FINGERPRINT is written; gone with its process
  FINGERPRINT/
    values.bin            [tokens of all rows, hidden size], raw; values.tmp while it is written; readers lock it
    manifest.json         written last: without it the entry is unfinished; its time is that of the last opening
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

FORMAT_VERSION = 2
DISK_RESERVE = 10**9
"""Bytes of the disk that always stay free."""
VALUES, UNFINISHED_VALUES, MANIFEST = "values.bin", "values.tmp", "manifest.json"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class NoCacheError(Exception):
    """Why there are no cached features; never leaves the cache."""


class NoRoomError(NoCacheError):
    """There is no room for them now."""


@dataclass(frozen=True)
class FeatureShape:
    """What the values of a file are.

    Attributes:
        depth: After how many blocks they were taken.
        tokens: Tokens of all rows; the rows themselves where they aren't made of tokens.
        hidden_size: Values of a token.
        dtype: Of the values.
        row: The shape of a row that isn't made of tokens, such as [channels, height, width]; None of one that is.
    """

    depth: int
    tokens: int
    hidden_size: int
    dtype: torch.dtype
    row: tuple[int, ...] | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.hidden_size * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of the whole file."""
        return self.tokens * self.token_bytes

    def manifest(self) -> dict[str, object]:
        """The file's manifest."""
        dtype = str(self.dtype).removeprefix("torch.")
        shape = {"depth": self.depth, "tokens": self.tokens, "hidden_size": self.hidden_size, "dtype": dtype}
        row = None if self.row is None else list(self.row)
        return {"format": FORMAT_VERSION, "bytes": self.bytes, "row": row, **shape}

    @classmethod
    def read(cls, manifest: Path) -> "FeatureShape":
        """What a manifest says; ValueError if it isn't one, or of another format."""
        found = json.loads(manifest.read_text(encoding="utf-8"))
        try:
            row = None if found["row"] is None else tuple(found["row"])
            shape = cls(found["depth"], found["tokens"], found["hidden_size"], DTYPES[found["dtype"]], row)
        except (LookupError, TypeError) as error:
            raise ValueError(f"{manifest} is no manifest of the prefix cache") from error
        if shape.manifest() != found:
            raise ValueError(f"{manifest} contradicts itself, or is of another version")
        return shape


class PrefixFeatures:
    """Hidden states of a split's rows, read from a memory map. While it lives, no process evicts the file.

    Args:
        path: The values.
        shape: What they are.
        lengths: Tokens of each row, of shape [rows].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: If they are of other rows, or the file is of another size.
    """

    def __init__(self, path: Path, shape: FeatureShape, lengths: NDArray[np.int64]) -> None:
        if shape.tokens != lengths.sum():
            raise ValueError(f"{path} must hold {lengths.sum()} tokens, but holds {shape.tokens}")
        if path.stat().st_size != shape.bytes:
            raise ValueError(f"{path} must have {shape.bytes} bytes, but has {path.stat().st_size}")
        self.shape = shape
        self._file = path.open("rb")  # the lock goes with it
        fcntl.flock(self._file, fcntl.LOCK_SH)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
            raise FileNotFoundError(f"{path} was evicted meanwhile")
        # As bytes, since numpy has no bfloat16; as a plain array, since slices of a np.memmap are slow to make.
        self._values = np.asarray(np.memmap(self._file, np.uint8, mode="r").reshape(shape.tokens, shape.token_bytes))
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths

    @property
    def depth(self) -> int:
        """After how many blocks they were taken."""
        return self.shape.depth

    def batch(self, rows: NDArray[np.int64], length: int) -> Tensor:
        """The hidden states of some rows, on the CPU.

        Args:
            rows: Their indices.
            length: That of the longest of them, or more.

        Returns:
            In the dtype that the block gave, of shape [rows, length, hidden size] with zeros after each row's end; of
            rows that aren't made of tokens, in their own shape.
        """
        padded = torch.empty((len(rows), length, self.shape.hidden_size), dtype=self.shape.dtype)
        target = padded.view(torch.uint8).numpy()
        for place, start, end in zip(target, self._starts[rows].tolist(), self._ends[rows].tolist(), strict=True):
            place[: end - start] = self._values[start:end]
            place[end - start :] = 0
        return padded if self.shape.row is None else padded.reshape(len(rows), *self.shape.row)


class PrefixWriter:
    """Takes the hidden states of a split's rows, in any order."""

    def __init__(self, path: Path, shape: FeatureShape, lengths: NDArray[np.int64]) -> None:
        self.shape = shape
        self._path, self._lengths = path, lengths
        self._starts = np.cumsum(lengths) - lengths
        self._file = path.open("r+b")

    def write(self, rows: NDArray[np.int64], hidden: Tensor) -> None:
        """Writes some rows from a padded tensor, [rows, length, hidden size], or from one of [rows, *row].

        Raises:
            NoCacheError: The values are not of the file's dtype and width.
        """
        if self.shape.row is not None and hidden.shape[1:] == self.shape.row:
            hidden = hidden.reshape(len(rows), 1, -1)
        if hidden.dtype != self.shape.dtype or hidden.shape[-1] != self.shape.hidden_size:
            raise NoCacheError("the blocks don't give the same dtype and width for all rows")
        values = hidden.contiguous().view(torch.uint8).numpy()
        for row, place in zip(rows.tolist(), values, strict=True):
            # Not through a memory map: there a full disk kills the process, where here it is an OSError.
            self._file.seek(int(self._starts[row]) * self.shape.token_bytes)
            self._file.write(place[: self._lengths[row]].data)

    def written(self) -> PrefixFeatures:
        """What is written so far, to be read."""
        self._file.flush()
        return PrefixFeatures(self._path, self.shape, self._lengths)

    def finish(self) -> None:
        """Waits until all of it is on the disk, so that no power cut leaves zeros behind a sound manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Closes the file, finished or not."""
        self._file.close()


class PrefixStore:
    """The entries of one folder.

    Args:
        folder: Where they are; made when the first one is written.
        budget_bytes: At most so many bytes of values.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder, self._budget = folder, budget_bytes

    def lock(self, fingerprint: str) -> FileLock:
        """The lock of an entry, for whoever writes it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self._folder / f"{fingerprint}.lock")

    def open(self, fingerprint: str, lengths: NDArray[np.int64]) -> PrefixFeatures | None:
        """An entry that is there and whole."""
        entry = self._folder / fingerprint
        try:
            shape = FeatureShape.read(entry / MANIFEST)
            features = PrefixFeatures(entry / VALUES, shape, lengths)
            os.utime(entry / MANIFEST)
        except (FileNotFoundError, ValueError):  # absent, evicted meanwhile, or damaged: to be written anew
            return None
        return features

    @contextmanager
    def writing(self, fingerprint: str, shape: FeatureShape, lengths: NDArray[np.int64]) -> Iterator[PrefixWriter]:
        """Writes an entry, whose lock must be held; nothing stays of it if this ends with an exception.

        Raises:
            NoCacheError: There is no room for it.
        """
        entry = self._folder / fingerprint
        shutil.rmtree(entry, ignore_errors=True)
        try:
            self._reserve(entry, shape.bytes)
            writer = PrefixWriter(entry / UNFINISHED_VALUES, shape, lengths)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
            (entry / UNFINISHED_VALUES).replace(entry / VALUES)
            temporary = entry / f"{MANIFEST}.tmp"
            temporary.write_text(json.dumps(shape.manifest(), indent=2) + "\n", encoding="utf-8")
            temporary.replace(entry / MANIFEST)
        except BaseException:
            shutil.rmtree(entry, ignore_errors=True)
            raise

    def _reserve(self, entry: Path, needed: int) -> None:
        """Makes room, and an unfinished file that is as large from the start as it will be, so that others count it."""
        if needed > self._budget:
            raise NoCacheError(f"it takes {_gigabytes(needed)} of disk, and the budget is {_gigabytes(self._budget)}")
        with FileLock(self._folder / "budget.lock"):
            self._remove_unfinished()
            self._evict(needed)
            entry.mkdir(mode=0o700)
            with (entry / UNFINISHED_VALUES).open("wb") as file:
                file.truncate(needed)

    def _remove_unfinished(self) -> None:
        """Removes what processes left behind that no longer hold its lock."""
        for entry in self._entries():
            if not (entry / MANIFEST).exists():
                self._remove(entry)

    def _evict(self, needed: int) -> None:
        """Removes the entries that were opened longest ago and nobody reads, but none if that wouldn't be enough."""
        sizes = {entry: _values_bytes(entry) for entry in self._entries()}
        free = shutil.disk_usage(self._folder).free - DISK_RESERVE
        missing = max(sum(sizes.values()) + needed - self._budget, needed - free)
        finished = [entry for entry in sizes if (entry / MANIFEST).exists() and not _is_read(entry)]
        if missing > sum(sizes[entry] for entry in finished):
            raise NoRoomError(f"it takes {_gigabytes(needed)} of disk, {_gigabytes(missing)} more than there are")
        for entry in sorted(finished, key=lambda entry: (entry / MANIFEST).stat().st_mtime_ns):
            if missing <= 0:
                break
            if self._remove(entry):
                missing -= sizes[entry]

    def _entries(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_dir()]

    def _remove(self, entry: Path) -> bool:
        """Removes an entry unless some process writes or reads it."""
        try:
            with FileLock(self._folder / f"{entry.name}.lock", timeout=0), _unread(entry):
                (entry / MANIFEST).unlink(missing_ok=True)  # first, so that what is left never looks finished
                shutil.rmtree(entry)
        except (Timeout, BlockingIOError):
            return False
        return True


@contextmanager
def _unread(entry: Path) -> Iterator[None]:
    """Keeps readers off an entry; BlockingIOError if it has one."""
    try:
        file = (entry / VALUES).open("rb")
    except FileNotFoundError:  # it is unfinished
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_read(entry: Path) -> bool:
    with suppress(BlockingIOError), _unread(entry):
        return False
    return True


def _values_bytes(entry: Path) -> int:
    return sum(path.stat().st_size for path in (entry / VALUES, entry / UNFINISHED_VALUES) if path.exists())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

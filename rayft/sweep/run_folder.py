"""The run folder: where everything of a sweep lies, and the lock that keeps a second writer out."""

import fcntl
import hashlib
import itertools
import json
import os
import platform
import secrets
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal, Self

import psutil

from rayft.cache_folder import cache_folder
from rayft.config import SweepConfig
from rayft.errors import SWEEP_FILE, Fault, RunError
from rayft.sweep.remote_folder import LAST, RemoteFolder, is_remote
from rayft.sweep_file import dump_sweep, load_sweep

CopyKind = Literal["runs", "views"]

ENVIRONMENT = "environment.json"
LATENCIES = "latency.json"
"""Where a sweep that searches for it keeps what each model takes for one row."""

PACKAGES = ("rayft", "ray", "torch", "transformers", "peft", "optuna", "datasets", "scikit-learn", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths within one run, and what of it lies elsewhere.

    Attributes:
        path: The folder, `storage/NAME`; where storage is remote, this node's working copy of it.
        remote_address: Of the run in remote storage, or None.
    """

    path: Path
    remote_address: str | None = None

    @classmethod
    def at(cls, address: str, kind: CopyKind = "runs") -> Self:
        """The run at a path or a remote address, which need not be there.

        Args:
            address: The run's.
            kind: Which copy of a remote run: the one to work on, or the one for those who only look.
        """
        if not is_remote(address):
            return cls(Path(address).resolve())
        return cls(working_copy(kind, address), address.rstrip("/"))

    @classmethod
    def create(cls, storage: str, name: str, config: SweepConfig) -> Self:
        """Makes a new folder with the sweep's configuration in it; a taken name gets -2, -3 and so on.

        Raises:
            RunError: The storage can't be written.
        """
        numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        if is_remote(storage):
            taken = _opened(storage, SWEEP_FILE, "storage").names()
            runs = (cls.at(f"{storage.rstrip('/')}/{free}") for free in numbered if free not in taken)
        else:
            runs = (cls(Path(storage).expanduser().resolve() / free) for free in numbered)
        run = next(runs)
        root = run.path.parent
        try:
            root.mkdir(parents=True, exist_ok=True)
            while not _make(run.path):
                run = next(runs)
            run.write_config(config)
            # A name of its own for the study, since a database may hold those of many sweeps, and folders are moved.
            environment = describe_environment() | {"study": f"{run.path.name}-{secrets.token_hex(4)}"}
            write_atomically(run.path / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        except OSError as error:
            raise RunError([Fault(str(root), f"can't be written: {error.strerror}", "storage")]) from None
        try:
            for file in ("sweep.yaml", ENVIRONMENT):
                run.publish(file)
        except OSError as error:
            shutil.rmtree(run.path)
            raise RunError(
                [Fault(SWEEP_FILE, f"{storage!r} can't be written: {first_line(error)}", "storage")]
            ) from None
        return run

    @classmethod
    def find(cls, address: str, kind: CopyKind = "runs") -> Self:
        """An existing run; of a remote one no more than its configuration is copied.

        Args:
            address: The run's.
            kind: As for `at`.

        Raises:
            RunError: There is no run at the address, or it can't be reached.
        """
        run = cls.at(address, kind)
        if run.remote_address is not None:
            remote = _opened(address, address, None)
            run.path.mkdir(parents=True, exist_ok=True)
            if not remote.download("sweep.yaml", run.path / "sweep.yaml"):
                raise RunError([Fault(address, "is not a run: it has no sweep.yaml")])
            return run
        path = Path(address)
        if not path.is_dir():
            near = (
                [p.name for p in path.parent.iterdir() if (p / "sweep.yaml").exists()] if path.parent.is_dir() else []
            )
            hint = f"; {path.parent} has {', '.join(sorted(near))}" if near else ""
            raise RunError([Fault(str(path), f"no such run folder{hint}")])
        if not (path / "sweep.yaml").is_file():
            raise RunError([Fault(str(path), "is not a run folder: it has no sweep.yaml")])
        check_contained(run.path)
        return run

    @property
    def address(self) -> str:
        """What other processes and nodes find the run by."""
        return self.remote_address or str(self.path)

    @cached_property
    def remote(self) -> RemoteFolder | None:
        """The run in remote storage, if it is there."""
        return None if self.remote_address is None else RemoteFolder(self.remote_address)

    def publish(self, path: str) -> None:
        """Copies a file or folder of the run to remote storage, if the run is there."""
        if self.remote is not None:
            self.remote.upload(self.path / path, path)

    def obtain(self, path: str) -> bool:
        """Sees to it that a file, or a folder that ends with a manifest, is on this node; returns whether it is."""
        here = self.path / path
        if self.remote is None or (here / LAST if here.is_dir() else here).exists():
            return here.exists()
        return self.remote.download(path, here)

    def discard(self, path: str) -> None:
        """Deletes a folder of the run here and in remote storage."""
        shutil.rmtree(self.path / path, ignore_errors=True)
        if self.remote is not None:
            self.remote.delete(path)

    def checkpoints(self, number: int) -> list[str]:
        """The checkpoints of a trial, finished or not, relative to the run."""
        names = {folder.name for folder in self.trial(number).glob("checkpoint-*")}
        if self.remote is not None:
            names.update(name for name in self.remote.names(f"trials/{number}") if name.startswith("checkpoint-"))
        return [f"trials/{number}/{name}" for name in sorted(names)]

    @property
    def study_name(self) -> str:
        """The study's name in a database that may hold others.

        Raises:
            RunError: The file that holds it is gone or damaged.
        """
        path = self.path / ENVIRONMENT
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["study"])
        except (OSError, ValueError, KeyError) as error:
            rule = f"must name the run's study, but can't be read ({type(error).__name__}); put a copy of it back"
            raise RunError([Fault(str(path), rule)]) from None

    def latencies(self) -> dict[str, float]:
        """What each model takes for one row once it is exported, in milliseconds, as far as it was measured.

        Raises:
            RunError: The file that holds it is damaged.
        """
        if not self.obtain(LATENCIES):
            return {}
        path = self.path / LATENCIES
        try:
            return {str(model): float(ms) for model, ms in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, AttributeError) as error:
            rule = f"must be a JSON object of models and milliseconds, but can't be read ({error}); delete it"
            raise RunError([Fault(str(path), f"{rule}, and the models are timed again")]) from None

    @property
    def has_trials(self) -> bool:
        """Whether any trial has started."""
        if any(folder.name.isdecimal() for folder in self.path.glob("trials/*")):
            return True
        return self.remote is not None and any(name.isdecimal() for name in self.remote.names("trials"))

    @property
    def encoded(self) -> Path:
        """The tokenised data."""
        return self.path / "encoded"

    @property
    def best(self) -> Path:
        """The exported winner."""
        return self.path / "best"

    @property
    def log(self) -> Path:
        """The log of every command that worked on this run."""
        return self.path / "rayft.log"

    def trial(self, number: int) -> Path:
        """A trial's folder."""
        return self.path / "trials" / str(number)

    def checkpoint(self, number: int, epoch: int) -> Path:
        """A trial's checkpoint of one epoch."""
        return self.path / checkpoint_path(number, epoch)

    def config(self) -> SweepConfig:
        """The sweep's configuration."""
        return load_sweep(self.path / "sweep.yaml")

    def write_config(self, config: SweepConfig) -> None:
        """Replaces the sweep's configuration."""
        write_atomically(self.path / "sweep.yaml", dump_sweep(config))

    def lock(self) -> IO[str]:
        """Takes the folder for this process, for as long as the returned file is open.

        Raises:
            RunError: Another process has it.
        """
        try:
            file = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError([Fault(str(self.path), f"can't be written: {error.strerror}")]) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunError([Fault(str(self.path), f"is in use by {holder}; two sweeps can't write one run")]) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        return file


def checkpoint_path(number: int, epoch: int) -> str:
    """Where a trial's checkpoint lies, relative to the run folder."""
    return f"trials/{number}/checkpoint-{epoch}"


def working_copy(kind: CopyKind, address: str) -> Path:
    """Where this node keeps its copy of a remote run."""
    storage, _, name = address.rstrip("/").rpartition("/")
    return cache_folder(kind) / hashlib.sha256(storage.encode()).hexdigest()[:16] / name


def check_contained(path: Path) -> None:
    """Refuses a run folder with links out of it: what rayft writes, deletes or copies there must be the run's.

    Raises:
        RunError: There is one.
    """
    for folder, folders, files in os.walk(path):
        for entry in (Path(folder, name) for name in (*folders, *files)):
            if entry.is_symlink() and not entry.resolve().is_relative_to(path.resolve()):
                raise RunError([Fault(str(entry), "is a link that leads out of the run folder")])


def _opened(address: str, where: str, key: str | None) -> RemoteFolder:
    """Remote storage that has answered."""
    try:
        remote = RemoteFolder(address, patience=0)
        remote.names()
    except ValueError as error:
        shown = "a storage address" if "@" in address else repr(address)
        raise RunError([Fault(where, f"{shown} {first_line(error)}", key)]) from None
    except OSError as error:
        raise RunError([Fault(where, f"{address!r} can't be reached: {first_line(error)}", key)]) from None
    return remote


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe_environment() -> dict[str, object]:
    """What the run was made with, for its record: versions and machine, and nothing of the user's environment."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "packages": {name: version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:2]],
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _make(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True

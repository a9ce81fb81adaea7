"""The run folder: where everything of a sweep lies, and the lock that keeps a second writer out."""

import fcntl
import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Self

from rayft.config import SweepConfig
from rayft.errors import SWEEP_FILE, Fault, RunError
from rayft.sweep_file import dump_sweep, load_sweep

PACKAGES = ("rayft", "ray", "torch", "transformers", "peft", "optuna", "datasets", "scikit-learn", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths within one run.

    Attributes:
        path: The folder, `storage/NAME`.
    """

    path: Path

    @classmethod
    def create(cls, storage: str, name: str, config: SweepConfig) -> Self:
        """Makes a new folder with the sweep's configuration in it; a taken name gets -2, -3 and so on.

        Raises:
            RunError: The storage can't be written.
        """
        if "://" in storage:
            raise RunError([Fault(SWEEP_FILE, f"must be a folder, but got {storage!r}", "storage")])
        root = Path(storage).expanduser().resolve()
        try:
            root.mkdir(parents=True, exist_ok=True)
            path, suffix = root / name, 2
            while not _make(path):
                path, suffix = root / f"{name}-{suffix}", suffix + 1
            run = cls(path)
            run.write_config(config)
            write_atomically(run.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        except OSError as error:
            raise RunError([Fault(str(root), f"can't be written: {error.strerror}", "storage")]) from None
        return run

    @classmethod
    def find(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            RunError: The path isn't a run folder.
        """
        if not path.is_dir():
            near = (
                [p.name for p in path.parent.iterdir() if (p / "sweep.yaml").exists()] if path.parent.is_dir() else []
            )
            hint = f"; {path.parent} has {', '.join(sorted(near))}" if near else ""
            raise RunError([Fault(str(path), f"no such run folder{hint}")])
        if not (path / "sweep.yaml").is_file():
            raise RunError([Fault(str(path), "is not a run folder: it has no sweep.yaml")])
        return cls(path.resolve())

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
        file = (self.path / ".lock").open("a+", encoding="utf-8")
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


def describe_environment() -> dict[str, object]:
    """What the run was made with, for its record: versions and machine, and nothing of the user's environment."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:2]],
    }


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

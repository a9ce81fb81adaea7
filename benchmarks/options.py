"""What the command line says, as every benchmark gets it."""

from dataclasses import dataclass
from pathlib import Path


class BenchmarkError(Exception):
    """A benchmark that can't be run as asked, or whose arm failed so that there is no result."""


@dataclass(frozen=True)
class Options:
    """The options of one invocation.

    Attributes:
        work: A temporary folder.
        cores: CPU cores that arms may use.
        rows: Training rows; the benchmark's own number if None.
        arms: Which arms; the benchmark's own choice if None.
        repeats: How often every arm runs.
        smoke: Tiny sizes, to see whether everything runs; the numbers mean nothing then.
        seconds: The time budget of `budget`.
        seeds: How many seeds `budget` has.
        timeout: Seconds after which an arm is ended.
    """

    work: Path
    cores: int
    rows: int | None = None
    arms: tuple[str, ...] | None = None
    repeats: int = 1
    smoke: bool = False
    seconds: float = 120.0
    seeds: int = 5
    timeout: float = 3600.0

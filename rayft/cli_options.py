"""What several commands take, and how it is checked."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayft import completion
from rayft.errors import Fault, RunError, UserError
from rayft.sweep_file import locate

if TYPE_CHECKING:
    from rayft.config import SweepConfig
    from rayft.sweep.run_folder import RunFolder
    from rayft.sweep.study import SweepStudy

SweepPath = Annotated[
    Path,
    typer.Argument(
        metavar="SWEEP.yaml", help="The sweep file.", show_default=False, autocompletion=completion.sweep_files
    ),
]
RunAddress = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run, such as runs/NAME or s3://BUCKET/PREFIX/NAME.",
        show_default=False,
        autocompletion=completion.run_folders,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replaces a value of the file, such as search.trials=4."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Prints errors and, at the end, the model's folder.")]


def run_name(name: str) -> str:
    """A name that is a good folder's on every file system.

    Raises:
        RunError: It isn't.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        rule = f"must be letters, digits, dots, hyphens and underscores, first a letter or digit, but got {name!r}"
        raise RunError([Fault("--name", rule)])
    return name


@contextlib.contextmanager
def located(file: Path) -> Iterator[None]:
    """Gives faults that were found late the sweep file and the line of their key."""
    try:
        yield
    except UserError as error:
        raise type(error)(locate(file, error.faults)) from None


def shown_path(path: Path) -> str:
    """A path as the user would type it."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


@contextlib.contextmanager
def result_alone(wanted: bool = True) -> Iterator[None]:
    """Has standard output to itself what is printed after the block: what is printed in it goes to standard error.

    Whoever prints it: libraries and other processes do too, and a program reads the rest as one document.
    """
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def open_run(run: str) -> "tuple[RunFolder, SweepConfig, SweepStudy]":
    """A run to look at, its configuration and its record."""
    from rayft.sweep.run_folder import ENVIRONMENT, RunFolder
    from rayft.sweep.study import STUDY_FILE, SweepStudy

    folder = RunFolder.find(run, "views")
    if folder.remote is not None:
        from rayft.sweep.mirror import fetch

        fetch(folder.remote, folder.path, STUDY_FILE, ENVIRONMENT)
    config = folder.config()
    return folder, config, SweepStudy.of_run(folder, config)

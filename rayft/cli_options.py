"""What several commands take, and how it is checked."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rayft.errors import Fault, RunError, UserError
from rayft.sweep_file import locate

SweepPath = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep file.", show_default=False)]
RunAddress = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run, such as runs/NAME or s3://BUCKET/PREFIX/NAME.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replaces a value of the file, such as search.trials=4."),
]


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

"""How far predicting is: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class RowProgress:
    """Counts rows on standard error. A context manager, which leaves the terminal as it was."""

    def __init__(self, rows: int) -> None:
        """Shows nothing yet.

        Args:
            rows: How many there are.
        """
        self._rows, self._done = rows, 0
        self._began = self._told = time.monotonic()
        console = Console(file=sys.stderr)
        columns = (
            TextColumn("predicting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=rows) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        """Some more rows are done."""
        self._done += rows
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=rows)
        elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            pace = self._done / (self._told - self._began)
            print(f"{self._done} of {self._rows} rows, {pace:.0f} a second", file=sys.stderr, flush=True)

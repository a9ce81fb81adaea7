"""Ends a worker process that has come to a standstill, and says where it stood."""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rayft.pulse import Pulse

LOOKS = 10
"""How often it looks in the time that it allows."""


class Watchdog:
    """A thread that watches a pulse.

    What stands still in a system call or a collective can't be ended but with its process.

    Args:
        pulse: What must go on.
        seconds: The longest that it may not.
    """

    def __init__(self, pulse: Pulse, seconds: float) -> None:
        self._pulse, self._seconds = pulse, seconds
        self._since: float | None = None
        self._on_stall: Callable[[str], None] | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, on_stall: Callable[[str], None]) -> Iterator[None]:
        """Watches for as long as the block runs: between blocks there is nothing to do but wait.

        Args:
            on_stall: Called with the stacks of all threads. After it the process is gone, with exit status 1.
        """
        self._on_stall, self._since = on_stall, time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        beats = -1
        while True:
            time.sleep(self._seconds / LOOKS)
            since = self._since
            if since is None:
                continue
            if self._pulse.beats != beats:
                beats, self._since = self._pulse.beats, time.monotonic()
            elif time.monotonic() - since > self._seconds:
                assert self._on_stall is not None
                try:
                    self._on_stall(stacks())
                finally:
                    os._exit(1)


def stacks() -> str:
    """What every thread of this process is doing."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")

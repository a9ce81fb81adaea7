"""Keeps a logger from making the sweep wait, or fail."""

import logging
import re
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from rayft.config import Value
from rayft.report.loggers import base
from rayft.report.loggers.base import RunLogger
from rayft.sweep.run_folder import first_line
from rayft.training.results import EpochResult

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord

logger = logging.getLogger(__name__)


class Aside:
    """A watcher that passes all on to a logger in a thread of its own, so that no server makes the sweep wait.

    The first exception ends the logging, and nothing else.
    """

    def __init__(self, name: str, make: Callable[[], RunLogger], note: Callable[[str], None]) -> None:
        """Starts the thread.

        Args:
            name: The logger's.
            make: Makes the logger, in the thread.
            note: Tells the user that it failed.
        """
        self._name, self._make, self._note = name, make, note
        self._failed = False
        self._calls: SimpleQueue[Callable[[RunLogger], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"logging to {name}", daemon=True)
        self._thread.start()

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        self._pass_on(lambda to: to.trial_started(number, params))

    def epoch(self, number: int, result: EpochResult) -> None:
        """See `Watcher`."""
        self._pass_on(lambda to: to.epoch(number, result))

    def trial_ended(self, record: "TrialRecord") -> None:
        """See `Watcher`."""
        self._pass_on(lambda to: to.trial_ended(record))

    def close(self) -> None:
        """Waits until all is logged, but not for long."""
        self._calls.put(None)
        self._thread.join(base.LONGEST_WAIT)
        if self._thread.is_alive():
            self._give_up(f"isn't through after {base.LONGEST_WAIT:.0f} s")

    def _pass_on(self, call: Callable[[RunLogger], None]) -> None:
        if not self._failed:
            self._calls.put(call)

    def _work(self) -> None:
        try:
            to = self._make()
            while (call := self._calls.get()) is not None:
                call(to)
            to.close()
        except Exception as error:  # anything that a client, a server or a network may do
            self._give_up(f"failed ({type(error).__name__}: {_without_credentials(first_line(error))})")

    def _give_up(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        text = f"logging to {self._name} {reason}; the sweep goes on without it"
        logger.warning("%s", text)
        self._note(text)


def _without_credentials(text: str) -> str:
    """An error's text without the user and password that a server's address may hold: it goes to the log file."""
    return re.sub(r"://\S*@", "://", text)

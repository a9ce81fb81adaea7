"""Keeps the copy of a run in remote storage up to date while a process works on it."""

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from rayft.config import Value
from rayft.errors import SweepFailedError
from rayft.sweep.lease import Lease
from rayft.sweep.open_sweep import Watcher
from rayft.sweep.remote_folder import LAST_OF_MODEL, RemoteFolder
from rayft.sweep.run_folder import ENVIRONMENT, RunFolder, first_line, write_atomically
from rayft.sweep.snapshot import snapshot
from rayft.sweep.study import STUDY_FILE
from rayft.sweep.trial_record import TrialRecord
from rayft.training.results import EpochResult

logger = logging.getLogger(__name__)

PUSH_SECONDS = 5.0
"""How far remote storage may lag behind where nothing happens."""
SHORTEST_PAUSE = 0.2
"""Between two pushes, so that what happens together goes together."""
PUSHED = ".pushed"
"""Holds the digest of the study that was pushed last, so that one that another machine has pushed since is seen."""
FOLLOWED = ("sweep.yaml", ENVIRONMENT, "rayft.log", "trials/*/events*")


@contextmanager
def mirrored(run: RunFolder) -> Iterator[tuple[Watcher, ...]]:
    """Takes a remote run for this process, and keeps its remote copy up to date; does nothing for a local one.

    Yields:
        Who has to be told what happens, so that it reaches remote storage at once.

    Raises:
        RunError: Another process works on the run.
        SweepFailedError: What the process did could not be copied to remote storage, or another process has taken the
            run; from then on, anything that would change the run in remote storage raises it.
    """
    if run.remote is None:
        yield ()
        return
    with Lease(run.remote) as lease:
        _take_newer_study(run, run.remote)
        for file in (ENVIRONMENT, "rayft.log"):
            run.obtain(file)  # or the log would begin anew on another machine
        mirror = _Mirror(run, run.remote, lease)
        mirror.start()
        try:
            yield (mirror,)
        finally:
            mirror.stop()


def publish_model(run: RunFolder, folder: str) -> None:
    """Sees to it that remote storage, if the run is there, has one of the run's model folders as it lies here.

    Raises:
        OSError: It can't be written.
    """
    if run.remote is None:
        return
    record = f"{folder}/{LAST_OF_MODEL}"
    if run.remote.read(record) != (run.path / record).read_bytes():
        run.remote.delete(folder)  # an earlier model may have had files that this one lacks
        run.publish(folder)


def fetch(remote: RemoteFolder, to: Path, *paths: str) -> None:
    """Copies what is there of some files and folders of a remote run; those who look at a run need no lease."""
    to.mkdir(parents=True, exist_ok=True)
    for path in paths:
        remote.download(path, to / path)


@contextmanager
def following_events(remote: RemoteFolder, to: Path) -> Iterator[None]:
    """Copies TensorBoard events as they grow, in a thread, for as long as the block runs."""
    seen: dict[str, int] = {}
    ended = threading.Event()

    def follow() -> None:
        while not ended.is_set():
            try:
                _fetch_events(remote, to, seen)
            except OSError as error:
                logger.warning("%s can't be read: %s", remote.address, first_line(error))
            ended.wait(PUSH_SECONDS)

    thread = threading.Thread(target=follow, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _fetch_events(remote: RemoteFolder, to: Path, seen: dict[str, int]) -> None:
    """Copies those that have grown; `seen` is the size of each that was copied."""
    for path, size in remote.sizes("trials"):
        if path.rpartition("/")[2].startswith("events") and seen.get(path) != size:
            remote.download(path, to / path)
            seen[path] = size


class _Mirror:
    """A thread that copies what has changed: after each event, and every few seconds."""

    def __init__(self, run: RunFolder, remote: RemoteFolder, lease: Lease) -> None:
        self._run, self._remote, self._lease = run, remote, lease
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._news, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        self._lease.raise_if_lost()

    def epoch(self, number: int, result: EpochResult) -> None:
        """See `Watcher`."""
        self._lease.raise_if_lost()
        self._news.set()

    def trial_ended(self, record: TrialRecord) -> None:
        """See `Watcher`."""
        self._lease.raise_if_lost()
        self._news.set()

    def stop(self) -> None:
        self._ending.set()
        self._news.set()
        self._thread.join()
        self._lease.raise_if_lost()
        try:
            self._push()
        except (OSError, sqlite3.Error) as error:
            reason = f"{self._run.address} can't be written: {first_line(error)}"
            where = f"all is in {self._run.path}; go on with: rayft resume {self._run.address}"
            raise SweepFailedError(f"{reason}; {where}") from None

    def _follow(self) -> None:
        while not self._ending.wait(SHORTEST_PAUSE):
            self._news.wait(PUSH_SECONDS)
            self._news.clear()
            try:
                self._push()
            except SweepFailedError:  # the lease is lost, which those hear who tell what happens
                return
            except (OSError, sqlite3.Error) as error:  # it may be well again later, and what counts is the last time
                logger.warning("%s can't be written: %s", self._run.address, first_line(error))

    def _push(self) -> None:
        for pattern in FOLLOWED:
            for path in self._run.path.glob(pattern):
                state = (path.stat().st_mtime_ns, path.stat().st_size)
                if self._pushed.get(path) != state:
                    self._run.publish(path.relative_to(self._run.path).as_posix())
                    self._pushed[path] = state
        self._push_study()

    def _push_study(self) -> None:
        path = self._run.path / STUDY_FILE
        if not path.exists():  # the sweep names a database
            return
        content = snapshot(path)
        digest = xxh3_128_hexdigest(content)
        marker = self._run.path / PUSHED
        if not marker.exists() or marker.read_text() != digest:
            self._remote.write(STUDY_FILE, content)
            write_atomically(marker, digest)


def _take_newer_study(run: RunFolder, remote: RemoteFolder) -> None:
    """Takes the remote study unless this node's copy is where it came from, and so at least as new."""
    there = remote.read(STUDY_FILE)
    here, marker = run.path / STUDY_FILE, run.path / PUSHED
    if there is None or (here.exists() and marker.exists() and marker.read_text() == xxh3_128_hexdigest(there)):
        return
    temporary = here.with_name(f".{STUDY_FILE}.new")
    temporary.write_bytes(there)
    for rest in ("-journal", "-wal", "-shm"):  # of the study that is replaced; SQLite would take them for the new one's
        here.with_name(here.name + rest).unlink(missing_ok=True)
    temporary.replace(here)
    write_atomically(marker, xxh3_128_hexdigest(there))

"""Who may change a run in remote storage: one process at a time, and never one that has been given up for dead."""

import json
import logging
import os
import platform
import threading
import time
import uuid
from typing import Any, NoReturn

import psutil

from rayft.errors import Fault, RunError, SweepFailedError
from rayft.sweep.remote_folder import RemoteFolder
from rayft.sweep.run_folder import first_line

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""A lease that doesn't change for so long has no holder any more."""
RENEW_SECONDS = 5.0
"""Between two changes of a lease by its holder."""
LEASE_PATIENCE = 10.0
"""For how long a store that doesn't answer is asked about a lease, so that it is known well before it has grown old."""
LEASE = ".lease.json"


class Lease:
    """An object that its holder changes every few seconds. Stores have no locks, but this dies with its holder too.

    A holder that could not change it for a while, as on a machine that slept, may find that another process has taken
    it. So the holder looks at it before each change that it makes to the run.
    """

    def __init__(self, remote: RemoteFolder) -> None:
        self._run, self._unguarded = remote, remote.before_change
        self._remote = RemoteFolder(remote.address, LEASE_PATIENCE)
        self._me = uuid.uuid4().hex
        self._count = 0
        self._lost_to: str | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        held = self._remote.read(LEASE)
        if held is not None and not _is_dead(held):
            deadline = time.monotonic() + LEASE_SECONDS
            while time.monotonic() < deadline:
                time.sleep(1)
                now = self._remote.read(LEASE)
                if now is None:
                    break
                if now != held:
                    self._refuse(now)
        self.renew()
        now = self._remote.read(LEASE)
        if not self._is_mine(now):  # another process took it at the same moment, and the last one has it
            self._refuse(now)
        self._run.before_change = self._remote.before_change = self.check
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        try:
            self._remote.delete(LEASE)
        except SweepFailedError as error:  # the lease is another's to delete, and the run another's to change
            logger.warning("%s", error)
            return
        except OSError as error:
            logger.warning("the lease of %s stays until it is old: %s", self._run.address, first_line(error))
        self._run.before_change = self._unguarded

    def renew(self) -> None:
        """Shows that the holder lives.

        Raises:
            SweepFailedError: Another process has the lease.
            OSError: The store doesn't answer.
        """
        self._count += 1
        holder = {"id": self._me, "host": platform.node(), "boot": _boot(), "pid": os.getpid(), "count": self._count}
        self._remote.write(LEASE, json.dumps(holder).encode())

    def check(self) -> None:
        """Asks the store whether the run is still this process's to change; raises what `renew` does."""
        self.raise_if_lost()
        now = self._remote.read(LEASE)
        if not self._is_mine(now):  # or it is gone: the other one may have ended already
            self._lost_to = _holder(now)
            self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """The same from what is known, without a look at the store."""
        if self._lost_to is not None:
            rule = f"was taken over by {self._lost_to} while this process could not be heard"
            raise SweepFailedError(f"{self._run.address} {rule}; nothing more of this process's is written there")

    def _keep(self) -> None:
        while not self._ending.wait(RENEW_SECONDS):
            try:
                self.renew()
            except SweepFailedError as error:
                logger.error("%s", error)
                return
            except OSError as error:
                logger.warning("the lease of %s can't be renewed: %s", self._run.address, first_line(error))

    def _is_mine(self, lease: bytes | None) -> bool:
        # Some stores show a file while it is being written, or after that broke off; this names nobody else.
        return lease is not None and _fields(lease).get("id", self._me) == self._me

    def _refuse(self, lease: bytes | None) -> NoReturn:
        rule = f"is in use by {_holder(lease)}; two sweeps can't write one run"
        raise RunError([Fault(self._run.address, rule)])


def _holder(lease: bytes | None) -> str:
    holder = _fields(lease)
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"


def _is_dead(lease: bytes) -> bool:
    """Whether the holder was a process of this machine that is gone, which needs no wait."""
    try:
        holder = _fields(lease)
        return holder["host"] == platform.node() and (holder["boot"] != _boot() or not psutil.pid_exists(holder["pid"]))
    except (KeyError, TypeError):
        return False


def _fields(lease: bytes | None) -> dict[str, Any]:
    """What a lease says; nothing if there is none, or if it is damaged or half written."""
    try:
        found = json.loads(lease or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _boot() -> int:
    return int(psutil.boot_time())

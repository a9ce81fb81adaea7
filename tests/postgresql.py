"""A real PostgreSQL server on loopback, in a process of its own."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "a-password-of-the-tests"


@dataclass(frozen=True)
class PostgreSQL:
    """Where it is.

    Attributes:
        url: Of its database, without the password.
    """

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use it."""
        return {"PGPASSWORD": PASSWORD}


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Runs a new server that wants a password; skips the test where none is installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if initdb is None:
        pytest.skip("NOT TESTED: PostgreSQL isn't installed (apt-get install postgresql)")
    # A server doesn't run as root; Debian's package makes a user for it.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
        data, options = folder / "data", {"user": user.pw_uid, "group": user.pw_gid, "cwd": "/"}
        login = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=rayft"]
        subprocess.run([initdb, "--no-sync", *login, str(data)], check=True, capture_output=True, **options)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        pg_ctl = str(Path(initdb).with_name("pg_ctl"))
        server = f"-h 127.0.0.1 -p {port} -k {folder}"
        log = str(folder / "log")
        subprocess.run([pg_ctl, "-D", data, "-l", log, "-w", "-o", server, "start"], check=True, **options)
        try:
            yield PostgreSQL(f"postgresql://rayft@127.0.0.1:{port}/postgres")
        finally:
            subprocess.run([pg_ctl, "-D", data, "-m", "immediate", "stop"], check=True, **options)

"""A real S3 server on loopback, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BUCKET = "rayft-tests"
KEY, SECRET = "AKIDTESTS", "a-secret-of-the-tests"
START_SECONDS = 60.0


@dataclass(frozen=True)
class S3Server:
    """Where it is, and its process.

    Attributes:
        endpoint: Its URL.
        process: For those who want to stop it.
    """

    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use it."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true", **keys}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs a server with one empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "MOTO_ENABLE_ISO_REGIONS": "false"}, **quiet)
    try:
        server = S3Server(f"http://127.0.0.1:{port}", process)
        _wait_for(server)
        urllib.request.urlopen(urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT"), timeout=30)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(server: S3Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server doesn't answer"
        try:
            urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)

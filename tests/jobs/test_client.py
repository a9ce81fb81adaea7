import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from rayft.errors import ClusterError
from rayft.jobs import client
from rayft.jobs.client import JobServer
from tests.test_cli import exit_status

JOB = "raysubmit_1"
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""What an answer to a handshake is made with (RFC 6455, section 1.3)."""


class BreakingServer(BaseHTTPRequestHandler):
    """A job server with one job, whose connection breaks after a line of what the job prints."""

    def do_GET(self) -> None:
        if self.path.endswith("/logs/tail"):
            self._break()
        elif self.path.endswith("/version"):
            self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"})
        else:
            self._answer(
                [
                    {
                        "type": "SUBMISSION",
                        "submission_id": JOB,
                        "entrypoint": "",
                        "status": "RUNNING",
                        "metadata": {"rayft": "reviews"},
                    }
                ]
            )

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, content: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def _break(self) -> None:
        digest = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + WEBSOCKET).encode()).digest()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
            self.send_header(name, value)
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        text = b"trial 0 epoch 1\n"
        self.wfile.write(bytes([0x81, len(text)]) + text)  # and no close frame after it


def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server, which ends with the iteration."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def breaking() -> Iterator[str]:
    yield from serving(BreakingServer)


def test_a_connection_that_breaks_leaves_the_job_and_says_how_to_come_back(
    breaking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = exit_status(["logs", "reviews", "--address", breaking])
    shown = capsys.readouterr()
    assert "trial 0 epoch 1" in shown.out
    assert status == 1, "the input isn't wrong"
    assert shown.err.startswith(f"rayft: lost touch with job {JOB}: ")
    assert f"job {JOB} runs on:" in shown.err
    assert f"rayft logs {JOB} --address {breaking}   follows it" in shown.err


class StartingHead(BreakingServer):
    """A job server whose head can't start jobs yet: the first submissions are refused, as Ray does it."""

    refusals = 2

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).refusals > 0:
            type(self).refusals -= 1
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"No available agent to submit job, please try again later.")
        else:
            self._answer({"job_id": JOB, "submission_id": JOB})


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(StartingHead, "refusals", 2)
    yield from serving(StartingHead)


def test_a_head_that_has_just_been_started_is_waited_for(starting: str) -> None:
    assert JobServer(starting).submit("true", {}, "reviews") == JOB
    assert StartingHead.refusals == 0


def test_a_head_that_never_starts_jobs_is_a_named_error(starting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "AGENT_SECONDS", 0.0)
    with pytest.raises(ClusterError, match="No available agent to submit job"):
        JobServer(starting).submit("true", {}, "reviews")

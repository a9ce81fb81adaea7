import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

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


@pytest.fixture
def breaking() -> Iterator[str]:
    """The server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreakingServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


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

import io
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rayft.jobs.send import Receiver


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    (folder / "best" / "onnx").mkdir(parents=True)
    (folder / "best" / "model.safetensors").write_bytes(random.Random(0).randbytes(300_000))
    (folder / "best" / "onnx" / "x").touch()
    (folder / "trials" / "0" / "checkpoint-1").mkdir(parents=True)
    (folder / "trials" / "0" / "events.out.tfevents.1").write_bytes(b"e")
    (folder / "trials" / "0" / "checkpoint-1" / "model.safetensors").write_bytes(b"large")
    (folder / "sweep.yaml").write_text("model: x\n")
    (folder / "best" / "link").symlink_to(folder / "sweep.yaml")
    return folder


def sent(run: Path) -> bytes:
    return subprocess.run([sys.executable, "-m", "rayft.jobs.send", str(run)], capture_output=True, check=True).stdout


@pytest.mark.parametrize("size", [1, 7, 1000, 10**9])
def test_a_run_arrives_whatever_the_pieces(run: Path, size: int) -> None:
    output = b"Running entrypoint for job x\n" + sent(run)
    received = io.BytesIO()
    receiver = Receiver(received.write)
    for start in range(0, len(output), size):
        receiver.take(output[start : start + size])
    assert (receiver.name, receiver.is_complete) == ("my-run", True)
    received.seek(0)
    with tarfile.open(fileobj=received) as tar:
        files = {member.name for member in tar.getmembers()}
        model = tar.extractfile("best/model.safetensors")
        assert model is not None and model.read() == (run / "best" / "model.safetensors").read_bytes()
    wanted = {"sweep.yaml", "best/model.safetensors", "best/onnx/x", "trials/0/events.out.tfevents.1"}
    assert files == wanted, "no checkpoints, and no links"


@pytest.mark.parametrize("lost", ["middle", "end", "damaged"])
def test_what_was_lost_on_the_way_is_noticed(run: Path, lost: str) -> None:
    lines = sent(run).splitlines(keepends=True)
    if lost == "middle":
        del lines[2]
    elif lost == "end":
        lines.pop()
    else:
        lines[2] = lines[1]
    receiver = Receiver(lambda piece: None)
    receiver.take(b"".join(lines))
    assert not receiver.is_complete


@pytest.mark.parametrize("place", ["best", "best/link-out", "trials/1", "study.db"])
def test_nothing_from_outside_of_the_run_is_sent(run: Path, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "events.secret").write_text("secret")
    if place == "best":
        shutil.rmtree(run / "best")
    (run / place).symlink_to(outside)
    done = subprocess.run([sys.executable, "-m", "rayft.jobs.send", str(run)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == f"{run / place} is a link that leads out of the run folder\n"


def test_sending_needs_nothing_but_python(run: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "rayft.jobs.send", str(run)]
    imports = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    imported = {line.split("|")[2].strip().split(".")[0] for line in imports.splitlines() if line.count("|") == 2}
    assert "tarfile" in imported
    assert imported.isdisjoint({"pydantic", "yaml", "pyarrow", "ray", "torch", "optuna"})


def test_a_path_that_is_no_run_says_so(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "rayft.jobs.send", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not a run folder" in done.stdout

"""Runs the README's commands in its order, in a copy of the repository, as a newcomer would type them."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```bash\n(.*?)^```", README, re.S | re.M) for line in block.splitlines()]
NOT_RUN = {
    "make test": "this test is part of it, and .ci/run runs it",
    "source .venv/bin/activate": "done for every command by its PATH",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def test_every_command_is_known_to_this_test() -> None:
    assert COMMANDS[:3] == ["make quickstart", "make test", "source .venv/bin/activate"]
    assert all(command.startswith(("make ", "rayft ")) or command in NOT_RUN for command in COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with this environment as its `.venv`, and the newcomer's own data in it."""
    if not (Path(sys.prefix) / "installed").exists():
        pytest.skip("NOT RUN: the README's commands need the environment that `make install` makes")
    copy = tmp_path_factory.mktemp("newcomer") / "rayft"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    (copy / "reviews.yaml").write_text(blocks("yaml")[0])
    return copy


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def write_reviews(folder: Path) -> None:
    with (folder / "quickstart" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:121]
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def look_at_tensorboard(command: str, folder: Path) -> None:
    process = subprocess.Popen(command.split(), cwd=folder, env=environment(folder))
    try:
        for _ in range(600):
            assert process.poll() is None, "TensorBoard ended"
            try:
                with urllib.request.urlopen("http://127.0.0.1:6006/data/runs") as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("TensorBoard never answered")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_works(folder: Path) -> None:
    for command in COMMANDS:
        if command in NOT_RUN:
            continue
        print(f"$ {command}", flush=True)
        if command.startswith("rayft tensorboard"):
            look_at_tensorboard(command, folder)
            continue
        done = subprocess.run(command.split(), cwd=folder, env=environment(folder), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command == "make quickstart":
            write_reviews(folder)
    model = folder / "runs" / "reviews" / "best"
    script = blocks("python")[0].replace("runs/reviews/best", str(model))
    answer = subprocess.run([sys.executable, "-c", script], env=environment(folder), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "'label'" in answer.stdout
    assert (folder / "my-model" / "config.json").exists()


@pytest.mark.slow
def test_the_pictures_can_be_taken_of_a_real_run(folder: Path) -> None:
    if not (folder / "runs" / "quickstart" / "best").exists():
        pytest.skip("NOT RUN: takes its pictures of the run that the README's commands leave")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("NOT TESTED: no browser has seen TensorBoard (apt-get install chromium chromium-driver)")
    for name in ("report", "tensorboard"):
        (folder / "docs" / f"{name}.png").unlink()
    command = [sys.executable, "docs/screenshots.py", "runs/quickstart"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("report", "tensorboard"):
        with Image.open(folder / "docs" / f"{name}.png") as picture:
            assert picture.width >= 1280
            assert len(picture.convert("RGB").getcolors(maxcolors=2**24) or []) > 100, "a blank page"

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.arms.job import Job
from benchmarks.runner import Arm, end_tree, environment, interleaved, run_arm

WRITER = "rayft.sweep.trial_checkpoints"
JOB = Job("model", "train.csv", "validation.csv", [], epochs=1, work="")


def test_an_arm_that_fails_says_why(tmp_path: Path) -> None:
    run = run_arm(Arm("no_such_arm"), JOB, tmp_path / "run", timeout=60)
    assert run.error is not None
    assert "exit status 1" in run.error and "No module named benchmarks.arms.no_such_arm" in run.error


def test_an_arm_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    run = run_arm(Arm("expert"), JOB, tmp_path / "run", timeout=0.1)
    assert run.error is not None and "not done after 0 s" in run.error
    assert not [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def test_a_job_gets_the_arms_options_and_a_deadline(tmp_path: Path) -> None:
    before = time.time()
    run_arm(Arm("no_such_arm", {"cached": True}), JOB, tmp_path / "run", timeout=60, seconds=50)
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    assert job["options"] == {"cached": True}
    assert before + 50 <= job["deadline"] <= time.time() + 50


def test_arms_take_turns_and_the_order_turns_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {name: Arm("no_such_arm") for name in ("a", "b")}
    runs = interleaved(arms, JOB, tmp_path, repeats=2, timeout=60)
    started = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if ", run" in line]
    assert started == ["a", "b", "b", "a"]
    assert {name: len(repeats) for name, repeats in runs.items()} == {"a": 2, "b": 2}


def test_a_tree_of_processes_is_ended_whole() -> None:
    inner = "import time; time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer])
    root = psutil.Process(process.pid)
    while not (children := root.children()):
        time.sleep(0.05)
    end_tree(process.pid)
    assert process.wait(10) != 0
    assert not children[0].is_running()


def test_an_arm_sees_no_thread_count_and_no_cache_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environment(tmp_path)
    assert "OMP_NUM_THREADS" not in found
    assert found["RAYFT_CACHE"] == str(tmp_path / "cache")


@pytest.mark.parametrize(
    ("part", "shows"),
    [
        ("buckets", "from rayft.data import batches as m; print(m.train_batches.__name__)"),
        (
            "background-writes",
            "from rayft.sweep import trial_checkpoints as m; t = m.TrialCheckpoints; print(t.save.__name__)",
        ),
    ],
)
def test_a_part_is_taken_out_of_every_process(tmp_path: Path, part: str, shows: str) -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {shows!r}], check=True)"

    def run(without: str | None) -> str:
        env = environment(tmp_path, without)
        return subprocess.run([sys.executable, "-c", child], env=env, check=True, capture_output=True, text=True).stdout

    assert run(None).strip() in ("train_batches", "save")
    assert run(part).strip() in ("random_batches", "save_and_wait")

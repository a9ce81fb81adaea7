"""Damaged files, metrics that are none, disks that are full or read-only, and signals."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Project, wait_for, wait_for_line
from tests.integration.faults.conftest import SWEEP, Struck, trained

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def cut(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a sweep that was killed when its second trial had reported an epoch."""
    struck = Struck(project, tmp_path_factory.mktemp("cut") / "there", tmp_path_factory.mktemp("cut") / "epochs")
    project.write_sweep("cut", **SWEEP)
    process = struck.start("sweep", "cut.yaml", at="rayft.sweep.study:SweepStudy.record_epoch:after:4")
    struck.wait(process)
    process.kill()
    process.wait()
    return project.run_folder("cut")


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "garbage": os.urandom(len(content))}[how])


@pytest.mark.fault("a damaged file")
@pytest.mark.parametrize("how", ["empty", "half", "garbage"])
@pytest.mark.parametrize("what", ["study.db", "sweep.yaml", "encoded/manifest.json", "checkpoint"])
def test_a_damaged_file_is_recovered_or_named(
    struck: Struck, calm: dict[str, Any], cut: Path, what: str, how: str
) -> None:
    run = cut.with_name(f"{what.replace('/', '-')}-{how}")
    subprocess.run(["cp", "-r", cut, run], check=True)
    if what == "checkpoint":
        damaged = sorted(run.glob("trials/*/checkpoint-*/model.safetensors"))
        assert damaged
    else:
        damaged = [run / what]
    for path in damaged:
        damage(path, how)
    status, output = struck.finish(struck.start("resume", f"runs/{run.name}"))
    assert "Traceback" not in output
    assert status in (1, 2), output
    assert run.name in output
    if what == "checkpoint":  # the running trial is trained again from its start; the ended one's model is gone
        assert "checkpoint-1/model.safetensors" in output, (
            "the file is named, and no worse model is exported in silence"
        )
        found = [{k: v for k, v in trial.items() if k != "seconds"} for trial in struck.project.trials(run.name)]
        assert found == calm["trials"], "no result is lost"
    else:
        assert Path(what).name in output, "the file is named"


@pytest.mark.fault("a metric that is none", count=8)
def test_a_strange_metric_fails_its_trial_alone(struck: Struck) -> None:
    struck.project.write_sweep("strange", training={"epochs": 1, "batch_size": 8}, search={"trials": 9})
    process = struck.start("sweep", "strange.yaml", at="rayft.tasks.classes:ClassTask.metrics:after:0", do="metrics")
    status, output = struck.finish(process)
    assert status == 0, output
    trials = sorted(struck.project.trials("strange"), key=lambda trial: trial["number"])
    states = [trial["state"] for trial in trials]
    assert states == ["failed"] * 3 + ["complete"] + ["failed"] * 4 + ["complete"]
    assert trials[3]["value"] == 0.0
    assert all(trial["reason"] for trial in trials if trial["state"] == "failed")
    assert "Traceback" not in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: no file system can be mounted here: {mounted.stderr}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.fault("a disk that is full or read-only")
def test_a_full_disk_ends_the_sweep_and_it_can_be_resumed(
    struck: Struck, calm: dict[str, Any], small_disk: Path, repeat: int
) -> None:
    name = f"disk-full-{repeat}"
    struck.project.write_sweep(name, **SWEEP, storage=str(small_disk))
    process = struck.start("sweep", f"{name}.yaml")
    wait_for_line(process, "trial 0 epoch 1")
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True)
    status, output = struck.finish(process)
    filler.unlink()
    assert "Traceback" not in output
    assert status == 1 and "rayft resume" in output, output
    status, output = struck.finish(struck.start("resume", str(small_disk / name)))
    assert status == 0, output
    shutil.copytree(small_disk / name, struck.project.run_folder(name))
    assert struck.outcome(name) == calm


@pytest.mark.fault("a disk that is full or read-only")
def test_a_read_only_disk_is_the_users_error(struck: Struck, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    struck.project.write_sweep("read-only", **SWEEP, storage=str(small_disk))
    status, output = struck.finish(struck.start("sweep", "read-only.yaml"))
    assert status == 2 and "storage: can't be written: Read-only file system" in output
    assert "Traceback" not in output


@pytest.mark.fault("a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_that_can_be_resumed(
    struck: Struck, calm: dict[str, Any], number: signal.Signals, repeat: int
) -> None:
    name = f"{number.name}-{repeat}".lower()
    struck.project.write_sweep(name, **SWEEP)
    process = struck.start("sweep", f"{name}.yaml")
    wait_for_line(process, "trial 1 epoch 1")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)  # the bound that is promised
    assert process.returncode == 130, output
    assert "rayft resume" in output and "Traceback" not in output
    status, output = struck.finish(struck.start("resume", f"runs/{name}"))
    assert status == 0, output
    assert struck.outcome(name) == calm
    assert struck.epochs <= trained(calm) + 1


@pytest.mark.fault("resumed against uninterrupted")
@pytest.mark.parametrize("seed", range(10))
def test_a_resumed_sweep_is_the_uninterrupted_one(struck: Struck, seed: int, request: pytest.FixtureRequest) -> None:
    if seed >= 10 / 3 * request.config.getoption("fault_repeats"):
        pytest.skip(f"seed {seed} is for more repeats")
    sweep = {**SWEEP, "search": {"trials": 4, "seed": 100 + seed}}
    struck.project.write_sweep(f"whole-{seed}", **sweep)
    status, output = struck.finish(struck.start("sweep", f"whole-{seed}.yaml"))
    assert status == 0, output
    whole = struck.outcome(f"whole-{seed}")
    struck.project.write_sweep(f"cut-{seed}", **sweep)
    process = struck.start(
        "sweep", f"cut-{seed}.yaml", at=f"rayft.sweep.study:SweepStudy.record_epoch:after:{2 + seed % 5}"
    )
    struck.wait(process)
    process.kill()
    process.wait()
    status, output = struck.finish(struck.start("resume", f"runs/cut-{seed}"))
    assert status == 0, output
    assert struck.outcome(f"cut-{seed}") == whole


@pytest.mark.fault("two sweeps on one run")
def test_a_run_has_one_writer_and_a_dead_one_is_none(struck: Struck, project: Project) -> None:
    project.write_sweep("single", **SWEEP)
    process = struck.start("sweep", "single.yaml", at="rayft.sweep.study:SweepStudy.record_epoch:after:1")
    struck.wait(process)
    assert "is in use by process" in project.rayft("resume", "runs/single", status=2)
    process.kill()
    process.wait()
    wait_for(lambda: True, project.start("trials", "runs/single"))
    project.rayft("resume", "runs/single")

"""SIGKILL of the driver at six points, and of each process that a sweep depends on."""

import signal
import time
from typing import Any

import psutil
import pytest

from tests.integration.conftest import descendants, wait_for, wait_for_line
from tests.integration.faults.conftest import SWEEP, TRIALS, Struck, trained

pytestmark = pytest.mark.faults

POINTS = {
    "before the first report": "rayft.sweep.recorder:Recorder.on_trial_result:before:1",
    "mid-epoch": "rayft.training.gradients:BatchGradients.compute:before:50",
    "while a checkpoint is written": "rayft.training.checkpoint:_write_file:after:6",
    "between two reports": "rayft.sweep.study:SweepStudy.record_epoch:after:3",
    "after the last trial": "rayft.commands:_export_winner:before:1",
    "while exporting": "rayft.export.verify:Verifier.verify:before:1",
}


@pytest.mark.fault("driver SIGKILL")
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_driver_loses_nothing(struck: Struck, calm: dict[str, Any], point: str, repeat: int) -> None:
    name = f"{point.replace(' ', '-')}-{repeat}"
    struck.project.write_sweep(name, **SWEEP)
    first = struck.start("sweep", f"{name}.yaml", at=POINTS[point])
    struck.wait(first)
    # Ray's own agents take a minute or so to see that their node is gone; what trains must not live on.
    orphans = [process for process in descendants(first) if not process.name().endswith("Agent")]
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    assert not alive, f"these outlived the driver: {alive}"
    before = struck.project.trials(name)
    assert len(before) <= TRIALS
    done = [trial for trial in before if trial["state"] != "running"]

    status, output = struck.finish(struck.start("resume", f"runs/{name}"))
    assert status == 0, output
    assert struck.project.trials(name)[: len(done)] == done, "what was finished stays as it was"
    assert struck.outcome(name) == calm
    # At most one epoch of a running trial is done again. While a checkpoint is written the next epoch is trained; what
    # takes no time beside an epoch is held here for as long as it takes to train a tiny one.
    again = 2 if point == "while a checkpoint is written" else 1
    assert trained(calm) <= struck.epochs <= trained(calm) + again


@pytest.mark.fault("worker SIGKILL")
def test_a_killed_worker_costs_at_most_its_epoch(struck: Struck, calm: dict[str, Any], repeat: int) -> None:
    name = f"worker-{repeat}"
    struck.project.write_sweep(name, **SWEEP)
    process = struck.start("sweep", f"{name}.yaml", at=POINTS["mid-epoch"])
    psutil.Process(struck.wait(process)).kill()
    status, output = struck.finish(process)
    assert status == 0, output
    assert struck.outcome(name) == calm
    assert struck.epochs <= trained(calm) + 1


ACTOR_POINTS = {
    "before its first epoch": "rayft.sweep.trial:Trial.step:before:1",
    "while it is given its next trial": "rayft.sweep.trial:Trial.reset_config:before:2",
}


@pytest.mark.fault("trial actor SIGKILL")
def test_a_trial_actor_killed_while_epochs_are_trained_costs_none(
    struck: Struck, calm: dict[str, Any], repeat: int
) -> None:
    name = f"actor-{repeat}"
    struck.project.write_sweep(name, **SWEEP)
    process = struck.start("sweep", f"{name}.yaml")
    wait_for_line(process, "trial 0 epoch 1")
    actor = wait_for(lambda: [child for child in descendants(process) if "Trial" in title(child)], process)
    actor[0].kill()
    status, output = struck.finish(process)
    assert status == 0, output
    assert struck.outcome(name) == calm
    assert struck.epochs == trained(calm)


@pytest.mark.fault("trial actor SIGKILL")
@pytest.mark.parametrize("point", ACTOR_POINTS)
def test_a_trial_actor_killed_at_a_point_costs_no_epoch(
    struck: Struck, calm: dict[str, Any], point: str, repeat: int
) -> None:
    name = f"{point.replace(' ', '-')}-{repeat}"
    struck.project.write_sweep(name, **SWEEP)
    process = struck.start("sweep", f"{name}.yaml", at=ACTOR_POINTS[point])
    psutil.Process(struck.wait(process)).kill()
    status, output = struck.finish(process)
    assert status == 0, output
    assert struck.outcome(name) == calm
    assert struck.epochs == trained(calm)


@pytest.mark.fault("mailbox SIGKILL")
def test_a_sweep_whose_mailbox_is_killed_can_be_resumed(struck: Struck, calm: dict[str, Any], repeat: int) -> None:
    name = f"mailbox-{repeat}"
    struck.project.write_sweep(name, **SWEEP)
    process = struck.start("sweep", f"{name}.yaml")
    wait_for_line(process, "trial 0 epoch 1")
    mailbox = [child for child in descendants(process) if "Exchange" in title(child)]
    assert len(mailbox) == 1
    mailbox[0].kill()
    status, output = struck.finish(process)
    if status != 0:  # it ends, and says how to go on
        assert status == 1 and "rayft resume" in output and "Traceback" not in output, output
        status, output = struck.finish(struck.start("resume", f"runs/{name}"))
    assert status == 0, output
    assert struck.outcome(name) == calm


@pytest.mark.fault("worker standstill")
def test_a_worker_that_stands_still_fails_its_trial_with_stacks_in_the_log(struck: Struck, repeat: int) -> None:
    name = f"still-{repeat}"
    struck.project.write_sweep(name, **{**SWEEP, "cluster": {"concurrent_trials": 1, "stall_timeout": "10s"}})
    process = struck.start("sweep", f"{name}.yaml", at=POINTS["mid-epoch"])
    struck.wait(process)
    status, output = struck.finish(process)
    assert status == 0, output
    trials = struck.project.trials(name)
    assert [trial["state"] for trial in trials].count("failed") == 1
    failed = next(trial for trial in trials if trial["state"] == "failed")
    assert "stood still: no batch in 10 s (cluster.stall_timeout)" in failed["reason"]
    log = (struck.project.run_folder(name) / "rayft.log").read_text()
    assert "in strike" in log, "the stacks show where it stood"


@pytest.mark.fault("driver stalled 1 to 15 s", count=5)
def test_a_driver_that_is_stopped_for_seconds_hangs_nobody(struck: Struck, calm: dict[str, Any], repeat: int) -> None:
    name = f"stopped-{repeat}"
    struck.project.write_sweep(name, **SWEEP)
    process = struck.start("sweep", f"{name}.yaml")
    wait_for_line(process, "trial 0 epoch 1")
    for seconds in (1, 2, 4, 8, 15):
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)  # the length of the stall, not a wait for something
        process.send_signal(signal.SIGCONT)
        time.sleep(0.3)
    status, output = struck.finish(process)
    assert status == 0, output
    assert struck.outcome(name) == calm
    assert struck.epochs == trained(calm)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""

"""Runs arms as fresh processes, one after another, and takes their time from outside."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.arms.job import Job
from benchmarks.machine import ROOT

WITHOUT = Path(__file__).parent / "arms" / "without"
END_SECONDS = 20.0
LAST_LINES = 12


@dataclass(frozen=True)
class Arm:
    """One way to run a search.

    Attributes:
        module: One of `benchmarks.arms`.
        options: What its jobs get.
        without: A part of rayft to take out, see `arms/without`.
    """

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    without: str | None = None

    def job(self, job: Job) -> Job:
        """The job as this arm gets it."""
        return replace(job, options={**job.options, **self.options})


@dataclass(frozen=True)
class Run:
    """What one run of an arm gave.

    Attributes:
        seconds: From the process's start to its end, or to the time that the arm says is the end of what counts.
        trials: See `arms.job.trial_result`.
        more: What else the arm wrote.
        error: Why there is no result, or None.
    """

    seconds: float
    trials: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def interleaved(arms: dict[str, Arm], job: Job, folder: Path, repeats: int, timeout: float) -> dict[str, list[Run]]:
    """Runs all arms in turn, `repeats` times: what else the machine does then hits all of them alike.

    The order is turned by one from repeat to repeat, so that no arm always follows the same other one.
    """
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    names = list(arms)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            print(f"{name}, run {repeat + 1} of {repeats}", flush=True)
            run = run_arm(arms[name], job, folder / f"{name}-{repeat + 1}", timeout)
            print(f"  {run.error or f'{run.seconds:.1f} s, {len(run.trials)} configurations'}", flush=True)
            runs[name].append(run)
    return runs


def run_arm(arm: Arm, job: Job, folder: Path, timeout: float, seconds: float | None = None) -> Run:
    """Runs one arm once, cold.

    Args:
        arm: The arm.
        job: What it is to do; its work folder is replaced.
        folder: A new folder for the arm's files and output.
        timeout: After these seconds the arm and all that it started are ended.
        seconds: The time budget, which the arm gets as a deadline.
    """
    work = folder / "work"
    work.mkdir(parents=True)
    paths = folder / "job.json", folder / "result.json"
    started = time.time()
    job = replace(arm.job(job), work=str(work), deadline=None if seconds is None else started + seconds)
    job.save(paths[0])
    with (folder / "output.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.arms.{arm.module}", *map(str, paths)],
            cwd=ROOT,
            env=environment(folder, arm.without),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            end_tree(process.pid)
            process.wait()
            return Run(time.time() - started, error=f"not done after {timeout:.0f} s: {last_words(Path(log.name))}")
        except BaseException:
            end_tree(process.pid)
            raise
    ended = time.time()
    _wait_for_rest(folder)
    if status != 0 or not paths[1].exists():
        return Run(ended - started, error=f"exit status {status}: {last_words(Path(log.name))}")
    result = json.loads(paths[1].read_text(encoding="utf-8"))
    finished_at = result.pop("finished_at") or ended
    return Run(finished_at - started, result.pop("trials"), result)


def _wait_for_rest(folder: Path) -> None:
    """Waits for what an arm has left running, Ray's processes above all, and ends what stays: the next arm is alone."""
    deadline = time.monotonic() + END_SECONDS
    while (left := _processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        _send(process, "kill")


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Those that have an arm's cache folder in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAYFT_CACHE") == str(folder / "cache"):
                found.append(process)
    return found


def last_words(log: Path) -> str:
    """The end of an arm's output, which tells what went wrong, and where the rest of it is with --keep."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n    ".join([f"see {log}", *lines[-LAST_LINES:]])


def environment(folder: Path, without: str | None = None) -> dict[str, str]:
    """The environment of an arm: no network, nothing cached by an earlier run, and no thread counts but its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RAY_ADDRESS")}
    taken_out = {"RAYFT_BENCH_WITHOUT": without} if without else {}
    folders = ([str(WITHOUT)] if without else []) + [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths = {"PYTHONPATH": os.pathsep.join(folders), "RAYFT_CACHE": str(folder / "cache")}
    return inherited | {"HF_HUB_OFFLINE": "1"} | paths | taken_out


def end_tree(pid: int) -> None:
    """Ends a process that we started, and all that it has started."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        _send(process, "terminate")
    _, alive = psutil.wait_procs(processes[1:], END_SECONDS)
    for process in (root, *alive):
        _send(process, "kill")


def _send(process: psutil.Process, what: str) -> None:
    try:
        getattr(process, what)()
    except psutil.NoSuchProcess:
        return

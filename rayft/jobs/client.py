"""Talks to a cluster's job server."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rayft.errors import ClusterError, Fault, InterruptedSweep, RunError, SweepFailedError
from rayft.sweep.ray_environment import TOKEN, use_token

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
RUN_LINE = "run folder "
"""What the line begins with in which a job says where its run is."""
POLL_SECONDS = 1.0
NO_AGENT = "No available agent"
"""What the server says for as long as the process on its head that starts jobs isn't up."""
AGENT_SECONDS = 60.0
"""How long a head that has just been started is waited for."""

Given = TypeVar("Given")


@dataclass(frozen=True)
class Job:
    """A sweep on a cluster.

    Attributes:
        id: Ray's submission id.
        name: The run's name.
        state: Ray's, such as PENDING, RUNNING or SUCCEEDED.
        started: Seconds since 1970, or None.
        ended: Likewise.
        message: Ray's last word on it.
        exit_status: Of the command, if it ended by itself.
    """

    id: str
    name: str
    state: str
    started: float | None
    ended: float | None
    message: str
    exit_status: int | None


class JobServer:
    """A cluster's job server.

    Args:
        address: `http://HOST:PORT` of the dashboard.

    Raises:
        ClusterError: It can't be talked to; says why.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        _check(self.address)
        use_token()
        from ray.job_submission import JobSubmissionClient

        self._client: Any = self._asked(lambda: JobSubmissionClient(self.address))

    def submit(self, command: str, runtime_env: dict[str, Any], name: str) -> str:
        """Starts a job; returns its id."""
        job = {"entrypoint": command, "runtime_env": runtime_env, "metadata": {"rayft": name}}
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return str(self._asked(lambda: self._client.submit_job(**job)))
            except ClusterError as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def jobs(self) -> list[Job]:
        """All sweeps that the cluster remembers, the newest first."""
        found = [details for details in self._asked(self._client.list_jobs) if "rayft" in (details.metadata or {})]
        return sorted((_job(details) for details in found), key=lambda job: -(job.started or 0))

    def job(self, name: str) -> Job:
        """The job of an id, or the newest one of a run's name.

        Raises:
            RunError: There is none.
        """
        jobs = self.jobs()
        for job in jobs:
            if name in (job.id, job.name):
                return job
        known = ", ".join(f"{job.id} ({job.name})" for job in jobs) or "none"
        raise RunError([Fault("JOB", f"must be a job of {self.address}, which has {known}; got {name!r}")])

    def logs(self, job: Job) -> str:
        """All that a job has printed."""
        return str(self._asked(lambda: self._client.get_job_logs(job.id)))

    def run_address(self, job: Job) -> str:
        """Where a job's run is.

        Raises:
            RunError: The job hasn't come so far.
        """
        lines = [line for line in self.logs(job).splitlines() if line.startswith((RUN_LINE, "resumes "))]
        if not lines:
            raise RunError([Fault(job.id, "has no run yet")])
        return lines[-1].split(" ", 2)[-1].strip()

    def follow(self, job: Job) -> Job:
        """Prints what a job prints until it ends; returns how it ended."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.id):
                print(text, end="", flush=True)

        self._asked(lambda: asyncio.run(tail()))
        return self.wait(job)

    def wait(self, job: Job, seconds: float | None = None) -> Job:
        """Waits until a job has ended, or for some seconds; returns how it stands."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (now := self._job(job.id)).state not in ENDED and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL_SECONDS)
        return now

    def stop(self, job: Job) -> None:
        """Asks a job to end."""
        self._asked(lambda: self._client.stop_job(job.id))

    def delete(self, job_id: str) -> None:
        """Makes the cluster forget a job that has ended."""
        self._asked(lambda: self._client.delete_job(job_id))

    def _job(self, job_id: str) -> Job:
        return _job(self._asked(lambda: self._client.get_job_info(job_id)))

    def _asked(self, ask: Callable[[], Given]) -> Given:
        """Asks the server, and turns its ways to fail into one."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return ask()
        except AuthenticationError:
            rule = f"{self.address} wants a token: put the cluster's into {TOKEN}, or RAY_AUTH_TOKEN"
            raise ClusterError([Fault("--address", rule)]) from None
        except (ConnectionError, requests.RequestException, aiohttp.ClientError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ClusterError([Fault("--address", f"no job server answers at {self.address}: {reason}")]) from None


def raise_for(job: Job, come_back: str) -> None:
    """Ends this command as the job's ended.

    Raises:
        RayftError: It didn't succeed.
    """
    if job.state == "SUCCEEDED":
        return
    if job.state == "STOPPED" or job.exit_status == InterruptedSweep.exit_status:
        raise InterruptedSweep(f"job {job.id} was stopped; {come_back}")
    failed = SweepFailedError(f"job {job.id} failed: {job.message}")
    if job.exit_status in (1, 2):  # it has said why
        failed = SweepFailedError(f"job {job.id} ended with exit status {job.exit_status}")
        failed.exit_status = job.exit_status
    raise failed


def _check(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme == "ray":
        rule = "ray:// is Ray's client, which runs the sweep far from its run folder; submit to the job server,"
        raise ClusterError([Fault("--address", f"{rule} such as http://127.0.0.1:8265, but got {address!r}")])
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError([Fault("--address", f"must be a job server such as http://127.0.0.1:8265, got {address!r}")])
    if parts.username or parts.password:
        raise ClusterError([Fault("--address", "must hold no credentials; the token comes from the environment")])
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        tunnel = f"ssh -L 8265:127.0.0.1:{parts.port or 8265} {parts.hostname}"
        print(f"the token goes to {parts.hostname} unencrypted; better: {tunnel}", file=sys.stderr)


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        name=(details.metadata or {}).get("rayft", ""),
        state=str(getattr(details.status, "value", details.status)),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=(details.message or "").strip().splitlines()[0] if (details.message or "").strip() else "",
        exit_status=details.driver_exit_code,
    )

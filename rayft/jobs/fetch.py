"""Brings a run from a cluster, or from remote storage, to this machine."""

import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path

import rayft
from rayft.errors import Fault, RunError
from rayft.jobs.client import JobServer
from rayft.jobs.send import Receiver
from rayft.sweep.mirror import fetch
from rayft.sweep.remote_folder import is_remote
from rayft.sweep.run_folder import RunFolder

FETCHED = ("environment.json", "rayft.log", "study.db", "report.html", "trials", "best")


def fetch_run(run: str, address: str | None, to: Path) -> Path:
    """Copies study, TensorBoard events and the best model of a run below `to`; what is there is replaced.

    Args:
        run: Its address in remote storage, its folder on the cluster, or a job's id or name.
        address: The cluster's job server; not needed for remote storage.
        to: The folder that gets the run folder.

    Returns:
        The run folder.

    Raises:
        RunError: There is no such run.
        ClusterError: The job server can't be talked to.
    """
    if not is_remote(run):
        if address is None:
            rule = "is needed, unless RUN is an address of remote storage such as s3://BUCKET/PREFIX/NAME"
            raise RunError([Fault("--address", f"{rule}; got {run!r}")])
        server = JobServer(address)
        if "/" not in run:
            run = server.run_address(server.job(run))
        if not is_remote(run):
            return _fetch_from_node(server, run, to)
    found = RunFolder.find(run, "views")
    assert found.remote is not None
    folder = to / found.path.name
    fetch(found.remote, folder, *FETCHED)
    shutil.copy(found.path / "sweep.yaml", folder)
    for checkpoint in folder.glob("trials/*/checkpoint-*"):  # a run can be exported from where it was trained
        shutil.rmtree(checkpoint)
    return folder


def _fetch_from_node(server: JobServer, run: str, to: Path) -> Path:
    """By way of a job that prints the run, since the job server gives out nothing else."""
    modules = {"py_modules": [str(Path(rayft.__file__).parent)], "excludes": ["__pycache__"]}
    job_id = server.submit(shlex.join(["exec", "python", "-m", "rayft.jobs.send", run]), modules, "")
    ended = server.wait(server.job(job_id))
    if ended.state != "SUCCEEDED":
        said = [line for line in server.logs(ended).splitlines() if line.strip()]
        raise RunError([Fault(run, said[-1] if said else ended.message)])
    with tempfile.TemporaryFile() as file:
        receiver = Receiver(file.write)
        receiver.take(server.logs(ended).encode())
        if receiver.name is None or not receiver.is_complete:
            raise RunError([Fault(run, "came incomplete; try again")])
        file.seek(0)
        folder = to / receiver.name
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=file, mode="r:gz") as tar:
            tar.extractall(folder, filter="data")  # nothing outside of the folder
    server.delete(job_id)
    return folder

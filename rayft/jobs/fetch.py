"""Brings a run from a cluster, or from remote storage, to this machine."""

import contextlib
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import rayft
from rayft.errors import Fault, RunError
from rayft.jobs.client import JobServer
from rayft.jobs.send import Receiver
from rayft.sweep.mirror import fetch
from rayft.sweep.remote_folder import RemoteFolder, is_remote
from rayft.sweep.run_folder import RunFolder, write_atomically

FETCHED = ("environment.json", "rayft.log", "study.db", "report.html", "best")
MARKER = ".fetched"
"""The file of a fetched run that names where it came from. Only such a folder may be replaced by a later fetch."""


def fetch_run(run: str, address: str | None, to: Path) -> Path:
    """Copies study, TensorBoard events and the best model of a run below `to`; an earlier fetch of it is replaced.

    Args:
        run: Its address in remote storage, its folder on the cluster, or a job's id or name.
        address: The cluster's job server; not needed for remote storage.
        to: The folder that gets the run folder.

    Returns:
        The run folder.

    Raises:
        RunError: There is no such run, or its folder below `to` holds something else.
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
    with _taken(folder, found.address):
        _fetch_from_storage(found.remote, folder)
        shutil.copy(found.path / "sweep.yaml", folder)
    return folder


def _fetch_from_storage(remote: RemoteFolder, folder: Path) -> None:
    """All but the checkpoints: a run can be exported from where it was trained."""
    events = [path for path, _ in remote.sizes("trials") if _is_events(PurePosixPath(path))]
    shutil.rmtree(folder / "trials", ignore_errors=True)
    for path in events:
        with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
            fetch(remote, folder, path)
    try:
        fetch(remote, folder, *FETCHED)
    except FileNotFoundError:  # a better model is taking the place of this one
        raise RunError([Fault(remote.address, "came incomplete; try again")]) from None


def _is_events(path: PurePosixPath) -> bool:
    """Whether it is `trials/NUMBER/events...`; a store takes any name, also one that would lead out of the folder."""
    return len(path.parts) == 3 and path.parts[1] != ".." and path.name.startswith("events")


def _fetch_from_node(server: JobServer, run: str, to: Path) -> Path:
    """By way of a job that prints the run, since the job server gives out nothing else."""
    folder, source = to / Path(run).name, f"{Path(run)} of {server.address}"
    _check(folder, source)  # now, and not after all of it has come
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
        with _taken(folder, source), tarfile.open(fileobj=file, mode="r:gz") as tar:
            for old in ("trials", "best"):
                shutil.rmtree(folder / old, ignore_errors=True)
            tar.extractall(folder, filter="data")  # nothing outside of the folder
    server.delete(job_id)
    return folder


@contextlib.contextmanager
def _taken(folder: Path, source: str) -> Iterator[None]:
    """Makes the folder, or takes an earlier fetch's, and keeps others out of it.

    Raises:
        RunError: It holds something else, or is in use.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        _check(folder, source)
    with RunFolder(folder).lock():
        write_atomically(folder / MARKER, source)
        yield


def _check(folder: Path, source: str) -> None:
    """Refuses a folder that holds what a fetch from `source` must not replace, such as a sweep of this machine.

    Raises:
        RunError: It does.
    """
    marker = folder / MARKER
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not marker.is_file():
        rule = "wasn't fetched, and would be lost"
    elif (before := marker.read_text(encoding="utf-8")) != source:
        rule = f"was fetched from {before}, not from {source}"
    elif any(folder.glob("trials/*/checkpoint-*")):
        rule = "has been worked on since it was fetched, and that would be lost"
    else:
        return
    raise RunError([Fault(str(folder), f"{rule}; fetch into another folder with --to OTHER")])

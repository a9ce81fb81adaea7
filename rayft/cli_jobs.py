"""The commands for sweeps that run as jobs of a cluster."""

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayft.cli_options import Overrides, SweepPath, located, result_alone, run_name, shown_path
from rayft.config import NO_CREDENTIALS, holds_credentials
from rayft.errors import ClusterError, Fault, RayftError, RunError, UserError
from rayft.sweep_file import load_sweep

if TYPE_CHECKING:
    from rayft.jobs.client import Job, JobServer

ServerAddress = Annotated[
    str, typer.Option("--address", help="The cluster's job server, such as http://127.0.0.1:8265.", show_default=False)
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's id or the run's name.", show_default=False)]


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the program's."""
    for command in (submit, jobs, logs, stop, fetch):
        app.command()(command)


def submit(
    file: SweepPath,
    address: ServerAddress,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the file's without it.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Where the cluster writes the run: a folder that all nodes see, or s3://...")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Goes on with this run of the cluster.")] = None,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Whether to send the data and model files.")] = True,
    environment: Annotated[
        str, typer.Option(help="install: the packages of this machine's versions; cluster: what the nodes have.")
    ] = "install",
    detach: Annotated[bool, typer.Option("--detach", help="Doesn't wait for the job to end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: the job as JSON on standard output, as with --detach.")
    ] = False,
) -> None:
    """Runs a sweep as a job of a Ray cluster; Ctrl-C leaves it running."""
    if resume is not None:
        _check_resume(resume, {"--set": overrides, "--storage": storage, "--name": name})
    config = load_sweep(file, [*(overrides or []), *([f"storage={json.dumps(storage)}"] if storage else [])])
    run = run_name(file.stem if name is None else name)
    if environment not in ("install", "cluster"):
        raise typer.BadParameter(f"must be install or cluster, but got {environment!r}", param_hint="--environment")
    from rayft.jobs import package
    from rayft.jobs.client import JobServer

    server = JobServer(address)
    place = package.cluster_storage(config.storage)
    with result_alone(as_json), located(file), package.packed(config, place, files) as packed:
        for path, size in packed.files.items():
            typer.echo(f"  {size / 1e6:8.2f} MB  {path}")
        typer.echo(f"sending {packed.bytes / 1e6:.2f} MB to {server.address}")
        arguments = ["resume", resume] if resume else ["sweep", "sweep.yaml", "--name", run]
        command = package.entrypoint(*arguments, "--address", "auto")
        job_id = server.submit(command, package.runtime_env(packed, environment), run)  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps({"job": job_id, "run": resume or run, "storage": place, "address": server.address}))
        return
    typer.echo(f"job {job_id}")
    if detach:
        typer.echo(_come_back(job_id, server))
    else:
        _follow(server, server.job(job_id))


def jobs(
    address: ServerAddress, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Lists the sweeps that a cluster runs or has run."""
    from dataclasses import asdict

    from rayft.jobs.client import JobServer
    from rayft.report.tables import jobs_table, output_console

    found = JobServer(address).jobs()
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in found], indent=2))
    else:
        output_console().print(jobs_table(found, time.time()))


def logs(
    job: JobName,
    address: ServerAddress,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Waits for more until the job ends.")] = True,
) -> None:
    """Shows what a job prints, from its beginning; Ctrl-C leaves it running."""
    from rayft.jobs.client import JobServer

    server = JobServer(address)
    found = server.job(job)
    if follow:
        _follow(server, found)
    else:
        typer.echo(server.logs(found), nl=False)


def stop(job: JobName, address: ServerAddress) -> None:
    """Ends a job as Ctrl-C would: the run can be resumed."""
    from rayft.jobs.client import ENDED, JobServer
    from rayft.jobs.package import STOP_SECONDS

    server = JobServer(address)
    found = server.job(job)
    if found.state in ENDED:
        typer.echo(f"job {found.id} has ended already: {found.state}")
        return
    server.stop(found)
    ended = server.wait(found, STOP_SECONDS + 30)
    typer.echo(f"job {found.id}: {ended.state}")
    with contextlib.suppress(UserError):  # it may have been stopped before it had one
        run = server.run_address(found)
        typer.echo(f"go on with: rayft submit SWEEP.yaml --resume {run} --address {server.address}")


def fetch(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A job's id or name, a run folder of the cluster, or s3://...")
    ],
    address: Annotated[str | None, typer.Option(help="The cluster's job server; not needed for s3://...")] = None,
    to: Annotated[Path, typer.Option(help="The folder that gets the run folder.")] = Path("runs"),
) -> None:
    """Copies a run's study, TensorBoard events and best model to this machine."""
    from rayft.jobs.fetch import fetch_run

    folder = shown_path(fetch_run(run, address, to))
    typer.echo(f"fetched {folder}; look at it with: rayft trials {folder}, rayft tensorboard {folder}")


def _check_resume(run: str, others: dict[str, object]) -> None:
    """Refuses what would be ignored, and a run's address that all who see the job must not read."""
    rule = "can't be used with --resume, which goes on with the sweep that is in the run"
    faults = [Fault(option, rule) for option, value in others.items() if value is not None and value != []]
    if holds_credentials(run):
        faults.append(Fault("--resume", NO_CREDENTIALS))
    if faults:
        raise RunError(faults)


def _follow(server: "JobServer", job: "Job") -> None:
    from rayft.jobs.client import raise_for

    try:
        ended = server.follow(job)
    except KeyboardInterrupt:
        typer.echo(f"\n{_come_back(job.id, server)}")
        return
    except ClusterError as error:  # it answered a moment ago, so nothing is wrong with the input
        rules = "; ".join(fault.rule for fault in error.faults)
        raise RayftError(f"lost touch with job {job.id}: {rules}\n{_come_back(job.id, server)}") from None
    raise_for(ended, f"rayft logs {job.id} --address {server.address} --no-follow says how to go on")


def _come_back(job_id: str, server: "JobServer") -> str:
    here = f"{job_id} --address {server.address}"
    commands = ("rayft logs", "follows it"), ("rayft stop", "ends it"), ("rayft fetch", "brings its results here")
    return "\n".join([f"job {job_id} runs on:", *(f"  {command} {here}   {what}" for command, what in commands)])

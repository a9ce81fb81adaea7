"""The command line. Heavy imports are inside the commands: `rayft --help` and a typo's error must be instant."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayft import __version__, cli_predict, cli_report, cli_trials
from rayft.cli_jobs import add_commands
from rayft.cli_options import (
    AsJson,
    Overrides,
    Quiet,
    RunAddress,
    SweepPath,
    located,
    result_alone,
    run_name,
    shown_path,
)
from rayft.errors import InterruptedSweep, RayftError, UserError
from rayft.sweep_file import load_sweep

if TYPE_CHECKING:
    from rayft.commands import Finished

app = typer.Typer(
    help="Finds the best way to fine-tune a pretrained model on your data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, such as auto or HOST:6379; this machine without it.")
]


@app.command()
def sweep(
    file: SweepPath,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the file's without it.")] = None,
    storage: Annotated[str | None, typer.Option(help="The folder that gets the run folder.")] = None,
    address: Address = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Searches, and exports the best model to RUN/best."""
    changes = list(overrides or [])
    changes += [f"search.trials={trials}"] if trials is not None else []
    changes += [f"storage={json.dumps(storage)}"] if storage is not None else []
    config = load_sweep(file, changes)
    run = run_name(file.stem if name is None else name)
    from rayft.commands import new_sweep
    from rayft.report.progress import Progress
    from rayft.report.tables import progress_console

    console = progress_console(quiet, as_json)
    with result_alone(quiet or as_json), located(file), Progress(config, console) as progress:
        finished = new_sweep(config, run, address, progress)
    _show(finished, quiet, as_json)


@app.command()
def resume(
    run: RunAddress,
    trials: Annotated[
        int | None, typer.Option(min=1, help="The new number of trials, all counted: extends a finished sweep.")
    ] = None,
    address: Address = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Goes on with a sweep that was cut off, or extends one that is done."""
    from rayft.commands import resume_sweep
    from rayft.report.progress import Progress
    from rayft.report.tables import progress_console
    from rayft.sweep.run_folder import RunFolder

    folder, console = RunFolder.find(run), progress_console(quiet, as_json)
    with (
        result_alone(quiet or as_json),
        located(folder.path / "sweep.yaml"),
        Progress(folder.config(), console) as progress,
    ):
        finished = resume_sweep(folder, trials, address, progress)
    _show(finished, quiet, as_json)


@app.command()
def export(
    run: RunAddress,
    trial: Annotated[int | None, typer.Option(min=0, help="The trial; the best one without it.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="The model folder; RUN/best, or RUN/export-TRIAL, without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Writes a trial's model as a folder for transformers, and verifies it."""
    from rayft.commands import export_trial
    from rayft.report.tables import output_console, winner_table
    from rayft.sweep.run_folder import RunFolder

    found = RunFolder.find(run)
    with result_alone(as_json):
        best, folder = export_trial(found, trial, to)
    if as_json:
        typer.echo(_result(best, found.remote_address, found.path, folder))
        return
    output_console().print(winner_table(best, Path(shown_path(folder))))


@app.command()
def tensorboard(
    run: RunAddress,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The first free one from 6006 on without it.", show_default=False),
    ] = None,
) -> None:
    """Opens TensorBoard on a run's trials, on this machine only."""
    from rayft.sweep.run_folder import RunFolder

    folder = RunFolder.find(run, "views")
    logdir = str(folder.path / "trials")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1"]
    command += [] if port is None else ["--port", str(port)]
    if folder.remote is None:
        os.execv(sys.executable, command)
    from rayft.sweep.mirror import following_events

    with following_events(folder.remote, folder.path):
        sys.exit(subprocess.run(command).returncode)


@app.command()
def check(
    file: SweepPath,
    overrides: Overrides = None,
    forecast: Annotated[
        bool, typer.Option("--forecast/--no-forecast", help="Time the model here, and forecast time and memory.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Reads the data, maps the model's layers, reports all that can be wrong, and forecasts time and memory."""
    config = load_sweep(file, overrides)
    from rayft.check.check import check_facts, print_check
    from rayft.report.tables import output_console

    if not as_json:
        with located(file):
            print_check(config, output_console(), forecast)
        return
    with located(file), result_alone():
        facts = check_facts(config, forecast)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


cli_trials.add_commands(app)
cli_predict.add_command(app)
cli_report.add_command(app)
add_commands(app)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="The version, and no more.")] = False) -> None:
    if version:
        typer.echo(f"rayft {__version__}")
        raise typer.Exit


def main() -> None:
    """The `rayft` program: maps errors to the exit statuses of the contract."""
    try:
        app()
    except UserError as error:
        faults = "\n".join(f"  {fault}" for fault in error.faults)
        typer.echo(f"rayft: {len(error.faults)} fault{'s' * (len(error.faults) > 1)} in the input\n{faults}", err=True)
        sys.exit(error.exit_status)
    except InterruptedSweep as error:
        typer.echo(f"\n{error}", err=True)
        sys.exit(error.exit_status)
    except RayftError as error:
        typer.echo(f"rayft: {error}", err=True)
        sys.exit(error.exit_status)
    except OSError as error:  # a folder that can't be written, storage that can't be reached
        where = f": {error.filename}" if error.filename else ""
        typer.echo(f"rayft: {error.strerror or error}{where}", err=True)
        sys.exit(RayftError.exit_status)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; `rayft resume RUN` goes on with a run that has started", err=True)
        sys.exit(InterruptedSweep.exit_status)


def _show(finished: "Finished", quiet: bool, as_json: bool) -> None:
    from rayft.report.selection import front_of
    from rayft.report.tables import output_console, trials_table, winner_table

    folder = finished.run.path
    if as_json:
        typer.echo(_result(finished.best, finished.run.remote_address, folder, finished.run.best))
        return
    if quiet:
        typer.echo(shown_path(finished.run.best))
        return
    console, search = output_console(), finished.config.search
    run = finished.run.remote_address or shown_path(folder)
    console.print(trials_table(finished.records, finished.config, front_of(finished.records, finished.config)))
    console.print(winner_table(finished.best, Path(shown_path(finished.run.best))))
    commands = [f"tensorboard {run}", f"trials {run}", f"resume {run} --trials {2 * search.trials}"]
    console.print("next:  " + "\n       ".join(f"rayft {command}" for command in commands))


def _result(best: dict[str, Any], remote_run: str | None, run: Path, model: Path) -> str:
    """What `rayft.json` holds, and where it all lies."""
    places = {"run": remote_run or str(run.resolve()), "folder": str(model.resolve())}
    return json.dumps(best | places, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    main()

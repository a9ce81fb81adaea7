"""The command line. Heavy imports are inside the commands: `rayft --help` and a typo's error must be instant."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayft import __version__, cli_predict
from rayft.cli_jobs import add_commands
from rayft.cli_options import Overrides, RunAddress, SweepPath, located, run_name, shown_path
from rayft.config import SweepConfig
from rayft.errors import InterruptedSweep, RayftError, UserError
from rayft.sweep_file import load_sweep

if TYPE_CHECKING:
    from rayft.commands import Finished
    from rayft.sweep.study import SweepStudy

app = typer.Typer(
    help="Finds the best way to fine-tune a pretrained model on your data.",
    no_args_is_help=True,
    add_completion=False,
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
) -> None:
    """Searches, and exports the best model to RUN/best."""
    changes = list(overrides or [])
    changes += [f"search.trials={trials}"] if trials is not None else []
    changes += [f"storage={json.dumps(storage)}"] if storage is not None else []
    config = load_sweep(file, changes)
    run = run_name(file.stem if name is None else name)
    from rayft.commands import new_sweep
    from rayft.report.progress import Progress
    from rayft.report.tables import output_console

    with located(file), Progress(config, output_console()) as progress:
        finished = new_sweep(config, run, address, progress)
    _show(finished)


@app.command()
def resume(
    run: RunAddress,
    trials: Annotated[
        int | None, typer.Option(min=1, help="The new number of trials, all counted: extends a finished sweep.")
    ] = None,
    address: Address = None,
) -> None:
    """Goes on with a sweep that was cut off, or extends one that is done."""
    from rayft.commands import resume_sweep
    from rayft.report.progress import Progress
    from rayft.report.tables import output_console
    from rayft.sweep.run_folder import RunFolder

    folder = RunFolder.find(run)
    with located(folder.path / "sweep.yaml"), Progress(folder.config(), output_console()) as progress:
        finished = resume_sweep(folder, trials, address, progress)
    _show(finished)


@app.command()
def trials(run: RunAddress, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Lists the trials of a run, best first; also while it runs."""
    from rayft.report.tables import output_console, trials_json, trials_table

    config, study = _open_run(run)
    records = study.records()
    if as_json:
        typer.echo(json.dumps(trials_json(records), indent=2))
    else:
        output_console().print(trials_table(records, config.metric, config.mode))


@app.command()
def export(
    run: RunAddress,
    trial: Annotated[int | None, typer.Option(min=0, help="The trial; the best one without it.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="The model folder; RUN/best, or RUN/export-TRIAL, without it.")
    ] = None,
) -> None:
    """Writes a trial's model as a folder for transformers, and verifies it."""
    from rayft.commands import export_trial
    from rayft.report.tables import output_console, winner_table
    from rayft.sweep.run_folder import RunFolder

    best, folder = export_trial(RunFolder.find(run), trial, to)
    output_console().print(winner_table(best, Path(shown_path(folder))))


@app.command()
def tensorboard(
    run: RunAddress, port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 6006
) -> None:
    """Opens TensorBoard on a run's trials, on this machine only."""
    from rayft.sweep.run_folder import RunFolder

    folder = RunFolder.find(run, "views")
    logdir = str(folder.path / "trials")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", str(port)]
    if folder.remote is None:
        os.execv(sys.executable, command)
    from rayft.sweep.mirror import following_events

    with following_events(folder.remote, folder.path):
        sys.exit(subprocess.run(command).returncode)


@app.command()
def check(file: SweepPath, overrides: Overrides = None) -> None:
    """Reads the data, maps the model's layers, and reports everything that can be wrong before a trial runs."""
    config = load_sweep(file, overrides)
    from rayft.report.check import print_check
    from rayft.report.tables import output_console

    with located(file):
        print_check(config, output_console())


cli_predict.add_command(app)
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


def _open_run(run: str) -> "tuple[SweepConfig, SweepStudy]":
    from rayft.sweep.run_folder import ENVIRONMENT, RunFolder
    from rayft.sweep.study import STUDY_FILE, SweepStudy

    folder = RunFolder.find(run, "views")
    if folder.remote is not None:
        from rayft.sweep.mirror import fetch

        fetch(folder.remote, folder.path, STUDY_FILE, ENVIRONMENT)
    config = folder.config()
    return config, SweepStudy.of_run(folder, config)


def _show(finished: "Finished") -> None:
    from rayft.report.tables import output_console, trials_table, winner_table

    console, search = output_console(), finished.config.search
    run = finished.run.remote_address or shown_path(finished.run.path)
    console.print(trials_table(finished.records, finished.config.metric, finished.config.mode))
    console.print(winner_table(finished.best, Path(shown_path(finished.run.best))))
    commands = [f"tensorboard {run}", f"trials {run}", f"resume {run} --trials {2 * search.trials}"]
    console.print("next:  " + "\n       ".join(f"rayft {command}" for command in commands))


if __name__ == "__main__":
    main()

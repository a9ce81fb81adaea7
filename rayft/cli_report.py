"""The command that shows a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from rayft.cli_options import RunAddress, shown_path


def add_command(app: typer.Typer) -> None:
    """Adds this command to the program's."""
    app.command()(report)


def report(
    run: RunAddress,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="The file; RUN/report.html without it.")] = None,
) -> None:
    """Writes a run's report as one HTML file that needs no network; also while the sweep runs."""
    from rayft.export.record import RECORD
    from rayft.report.html.write import write_report
    from rayft.sweep.run_folder import ENVIRONMENT, RunFolder
    from rayft.sweep.study import STUDY_FILE, SweepStudy

    folder = RunFolder.find(run, "views")
    if folder.remote is not None:
        from rayft.sweep.mirror import fetch

        fetch(folder.remote, folder.path, STUDY_FILE, ENVIRONMENT, f"{folder.best.name}/{RECORD}")
    config = folder.config()
    study = SweepStudy.of_run(folder, config)
    typer.echo(shown_path(write_report(folder.path, folder.path.name, config, study, to)))

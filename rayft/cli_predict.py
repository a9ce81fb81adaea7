"""The command that uses an exported model."""

from pathlib import Path
from typing import Annotated

import typer

from rayft.errors import InterruptedPrediction


def add_command(app: typer.Typer) -> None:
    """Adds the command to the program's."""
    app.command()(predict)


def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An exported model's folder, or a run folder.", show_default=False)
    ],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A file that the model's task reads, or a folder of images.", show_default=False
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="The new file, in the format of its suffix; FILE-predictions without it."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that go through the model at once.")] = 32,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The column to read, if not the sweep's; twice for pairs."),
    ] = None,
    generate: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Continues texts by N tokens at most (causal-lm).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces OUT if it is there.")] = False,
) -> None:
    """Writes a file's rows with what a model predicts for each."""
    try:
        from rayft.predict.predict import predict as predict_file

        done = predict_file(model, file, to, column or [], batch_size, generate, overwrite=overwrite)
    except KeyboardInterrupt:
        raise InterruptedPrediction("interrupted, nothing is written") from None
    typer.echo(str(done))

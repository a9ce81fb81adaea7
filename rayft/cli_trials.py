"""The commands that look at a run's trials, and that train one again."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayft import completion
from rayft.cli_options import AsJson, RunAddress, located, open_run, result_alone
from rayft.config import STRATEGIES
from rayft.errors import Fault, InterruptedReproduction, RunError

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord

_TRIAL: dict[str, Any] = {"min": 0, "show_default": False, "autocompletion": completion.trial_numbers}
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help=f"Only trials of this state: {', '.join(completion.STATES)}. May be repeated.",
        autocompletion=completion.states,
    ),
]
Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help=f"Only trials with this strategy: {', '.join(STRATEGIES)}. May be repeated.",
        autocompletion=completion.strategies,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Adds these commands to the program's."""
    for command in (trials, show, reproduce):
        app.command()(command)


def trials(
    run: RunAddress,
    state: States = None,
    strategy: Strategies = None,
    front: Annotated[
        bool, typer.Option("--front", help="Only trials that no other one beats in all of search.metric.")
    ] = False,
    top: Annotated[int | None, typer.Option(min=1, metavar="N", help="The N best of these.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the trials of a run, best first; also while it runs."""
    _check_choices({"--state": (state, completion.STATES), "--strategy": (strategy, STRATEGIES)})
    from rayft.report.selection import Selection, front_of
    from rayft.report.tables import output_console, trials_json, trials_table

    _, config, study = open_run(run)
    records = study.records()
    selection = Selection(tuple(state or ()), tuple(strategy or ()), front, top)
    wanted, on_front = selection.of(records, config), front_of(records, config)
    if as_json:
        typer.echo(json.dumps(trials_json(wanted, config, on_front), indent=2))
    elif wanted:
        output_console().print(trials_table(wanted, config, on_front))
    else:
        typer.echo(selection.nothing(records, config))


def show(
    run: RunAddress,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.", **_TRIAL)],
    as_json: AsJson = False,
) -> None:
    """Shows all that is on record of one trial, with its curve beside the sweep's median."""
    from dataclasses import asdict

    from rayft.report.tables import output_console
    from rayft.report.trial import print_trial, view_trial

    folder, config, study = open_run(run)
    records = study.records()
    view = view_trial(config, folder, records, _trial(run, records, trial))
    if as_json:
        typer.echo(json.dumps(asdict(view), indent=2))
    else:
        print_trial(view, output_console())


def reproduce(
    run: RunAddress,
    trial: Annotated[
        int | None, typer.Argument(metavar="TRIAL", help="The trial's number; the winner without it.", **_TRIAL)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="How far values may lie from the record; by the precision without it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trains a trial again on this machine, without Ray, and says whether it gives what is on record."""
    from rayft.commands import find_winner
    from rayft.report.tables import format_params
    from rayft.reproduce import reproduce_trial, reservations
    from rayft.sweep.run_folder import RunFolder

    seen, config, study = open_run(run)
    folder = RunFolder.find(run)  # which what is fetched to train goes to, as for an export
    record = find_winner(config, folder, study) if trial is None else _trial(run, study.records(), trial)
    with located(folder.path / "sweep.yaml"), result_alone(as_json):
        typer.echo(
            f"trial {record.number}: {format_params(record.params)}" if record.params else f"trial {record.number}"
        )
        for note in reservations(config, seen):
            typer.echo(note)
        try:
            reproduction = reproduce_trial(config, folder, record, tolerance, typer.echo)
        except KeyboardInterrupt:
            raise InterruptedReproduction("interrupted; the run is as it was") from None
    typer.echo(json.dumps(reproduction.state_dict(), indent=2) if as_json else reproduction.in_words())
    raise typer.Exit(0 if reproduction.same else 1)


def _trial(run: str, records: "Sequence[TrialRecord]", number: int) -> "TrialRecord":
    for record in records:
        if record.number == number:
            return record
    rule = f"must be one of 0 to {records[-1].number}, but got {number}" if records else "no trial has started"
    raise RunError([Fault(run, rule, "TRIAL")])


def _check_choices(given: dict[str, tuple[list[str] | None, Sequence[str]]]) -> None:
    faults = [
        Fault(option, f"must be one of {', '.join(choices)}, but got {value!r}")
        for option, (values, choices) in given.items()
        for value in values or ()
        if value not in choices
    ]
    if faults:
        raise RunError(faults)

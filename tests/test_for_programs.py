"""--json and --quiet: what is on standard output, whoever prints what else meanwhile."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayft.cli_options import result_alone
from rayft.commands import Finished
from rayft.errors import SweepFailedError
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.trial_record import TrialRecord
from tests.conftest import WORDS
from tests.program import exit_status, make_run
from tests.sweep.conftest import sweep

BEST: dict[str, Any] = {
    "trial": 0,
    "epoch": 1,
    "params": {"strategy": "full"},
    "validation": {"accuracy": 0.9},
    "test": None,
    "labels": ["schön"],
    "final": None,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("model: m\ndata: {train: t.csv}\n")
    return tmp_path


def chatter() -> None:
    """What libraries and processes below print."""
    print("of this process")
    os.write(1, b"of another\n")


@pytest.fixture(params=["sweep", "resume"])
def command(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`rayft sweep` or `rayft resume`, at the end of a sweep that has said a lot."""
    run = make_run(folder / "runs")

    def finish(*given: Any) -> Finished:
        chatter()
        given[-1].note("what everybody should read")
        return Finished(run, sweep(), [TrialRecord(0, "complete", {})], BEST)

    monkeypatch.setattr("rayft.commands.new_sweep", finish)
    monkeypatch.setattr("rayft.commands.resume_sweep", finish)
    return ["sweep", "a.yaml"] if request.param == "sweep" else ["resume", "runs/reviews"]


def test_a_sweep_s_result_is_one_document(command: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*command, "--json") == 0
    shown = capfd.readouterr()
    run = folder / "runs" / "reviews"
    assert json.loads(shown.out) == {**BEST, "run": str(run), "folder": str(run / "best")}
    for text in ("of this process", "of another", "what everybody should read"):
        assert text in shown.err


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_a_quiet_sweep_says_where_the_model_is(
    option: str, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*command, option) == 0
    shown = capfd.readouterr()
    assert shown.out == "runs/reviews/best\n"
    assert "what everybody should read" not in shown.err


def test_both_give_the_document_and_no_progress(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*command, "--json", "--quiet") == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["trial"] == 0
    assert "what everybody should read" not in shown.err


def test_without_either_it_is_for_people(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rayft.report.tables.winner_table", lambda *_: "the winner")
    assert exit_status(*command) == 0
    assert "rayft tensorboard runs/reviews" in capfd.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_failure_leaves_standard_output_empty(
    option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Finished:
        chatter()
        raise SweepFailedError("all 4 trials failed")

    monkeypatch.setattr("rayft.commands.new_sweep", fail)
    assert exit_status("sweep", "a.yaml", option) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "rayft: all 4 trials failed\n" in shown.err
    print("back")  # standard output is itself again
    assert capfd.readouterr().out == "back\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["trials", "runs/none"],
        ["show", "runs/none", "0"],
        ["reproduce", "runs/none"],
        ["export", "runs/none"],
        ["resume", "runs/none"],
        ["check", "a.yaml"],
        ["sweep", "a.yaml"],
        ["jobs", "--address", "http://127.0.0.1:1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_errors_of_every_command_are_on_standard_error(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*arguments, "--json") == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    faults = "2 faults" if arguments[0] == "check" else "1 fault"  # neither data nor model is there
    assert shown.err.startswith(f"rayft: {faults} in the input\n")


def test_an_export_s_result_is_one_document(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def export(run: RunFolder, number: int | None, to: Path | None) -> tuple[dict[str, Any], Path]:
        chatter()
        return BEST, to or run.best

    monkeypatch.setattr("rayft.commands.export_trial", export)
    make_run(folder / "runs")
    assert exit_status("export", "runs/reviews", "--to", "model", "--json") == 0
    assert json.loads(capfd.readouterr().out) == {
        **BEST,
        "run": str(folder / "runs" / "reviews"),
        "folder": str(folder / "model"),
    }


def test_a_check_s_facts(folder: Path, model_folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "t.csv").write_text("text,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(WORDS)))
    model = str(model_folder("bert"))
    (folder / "b.yaml").write_text(
        f"model: {model}\ndata: {{train: t.csv, validation: 0.2}}\nsearch: {{trials: 3}}\n"
        "search_space: {strategy: [full, partial], freeze_depth: {low: 1, high: 2, when: {strategy: partial}}}\n"
    )
    assert exit_status("check", "b.yaml", "--json", "--set", "training.epochs=2") == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["task"], facts["metric"], facts["mode"]) == ("text-classification", "accuracy", "max")
    assert (facts["trials"], facts["epochs"]) == (3, 2)
    rows = {split: sum(own["classes"].values()) for split, own in facts["data"].items()}
    assert rows == {split: own["rows"] for split, own in facts["data"].items()}
    assert sum(rows.values()) == len(WORDS)
    own = facts["models"][model]
    assert own["lengths"]["train"]["longest"] == 3, "a word between two special tokens"
    frozen_from = {part["part"]: part["frozen_from"] for part in own["layers"]}
    blocks = {"block 1": 1, "block 2": 2, "block 3": 3}
    assert frozen_from == {"embeddings": 1, **blocks, "after the blocks": None, "head": None}
    assert "classifier.weight" in own["layers"][-1]["parameters"]
    assert facts["space"]["strategy"] == {"choices": ["full", "partial"], "when": {}}
    assert facts["space"]["freeze_depth"]["when"] == {"strategy": "partial"}


def test_what_is_printed_before_stays_before(capfd: pytest.CaptureFixture[str]) -> None:
    print("first")
    with result_alone():
        chatter()
    print("second")
    assert capfd.readouterr().out == "first\nsecond\n"

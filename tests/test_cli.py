import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayft import __version__, cli
from rayft.errors import SWEEP_FILE, DataError, Fault, InterruptedSweep, RayftError, SweepFailedError, VerificationError
from tests.conftest import WORDS

SWEEP = "model: m\ndata: {train: t.csv}\n"
HEAVY = {"torch", "ray", "transformers", "optuna", "datasets", "peft", "sklearn", "pyarrow", "numpy", "tensorboard"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def rayft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "rayft.cli", *arguments)


def refused(*arguments: str) -> list[str]:
    """The faults that the program ends with: on one screen, without a traceback, and without anything left behind."""
    before = sorted(Path().rglob("*"))
    ended = rayft(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    title, *faults = ended.stderr.splitlines()
    assert title == f"rayft: {len(faults)} fault{'s' * (len(faults) > 1)} in the input"
    assert all(fault.startswith("  ") for fault in faults)
    assert len(ended.stderr) < 24 * 100
    assert sorted(Path().rglob("*")) == before
    return [fault.strip() for fault in faults]


# Weight


@pytest.mark.parametrize("module", ["rayft.config", "rayft.sweep_file", "rayft.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    ended = run_python("-c", code)
    assert ended.returncode == 0, ended.stderr
    loaded = set(json.loads(ended.stdout))
    assert {"rayft", "pydantic"} <= loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "typo.yaml"], ["sweep", "sound.yaml", "--name", "a/b"]])
def test_help_and_typos_are_instant(arguments: list[str], folder: Path) -> None:
    (folder / "typo.yaml").write_text("modle: m\n")
    (folder / "sound.yaml").write_text(SWEEP)
    ended = run_python("-X", "importtime", "-m", "rayft.cli", *arguments)
    assert ended.returncode == (0 if arguments == ["--help"] else 2)
    imported = {line.split("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines() if line.count("|") == 2}
    assert {"typer", "yaml"} <= imported
    assert imported.isdisjoint(HEAVY)


def test_help_names_every_command_and_option() -> None:
    ended = rayft("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    commands = ("sweep", "resume", "trials", "show", "export", "report", "tensorboard", "check", "reproduce", "predict")
    for command in commands:
        assert f" {command} " in ended.stdout
    ended = rayft("sweep", "-h")
    assert ended.returncode == 0
    for option in ("--set", "--name", "--storage", "--address", "--trials"):
        assert f" {option} " in ended.stdout


def test_the_version() -> None:
    ended = rayft("--version")
    assert (ended.returncode, ended.stdout) == (0, f"rayft {__version__}\n")


# Exit statuses


def test_typos_in_the_file(folder: Path) -> None:
    (folder / "typo.yaml").write_text(SWEEP + "search:\n  trails: 4\ntraining:\n  learning_rate: -1.0\n")
    trials, rate = sorted(refused("sweep", "typo.yaml"))
    assert rate == "typo.yaml:6: training.learning_rate: must be > 0, but got -1.0"
    assert trials.startswith("typo.yaml:4: search.trails: unknown key; did you mean trials? known are metric, mode,")


def test_a_file_that_is_no_yaml(folder: Path) -> None:
    (folder / "a.yaml").write_text("model: [m\ndata: {train: t.csv}\n")
    (fault,) = refused("check", "a.yaml")
    assert fault.startswith("a.yaml:2: is not valid YAML: ")


def test_no_such_file() -> None:
    assert refused("sweep", "none.yaml") == ["none.yaml: no such file"]


def test_a_wrong_override(folder: Path) -> None:
    (folder / "a.yaml").write_text(SWEEP)
    assert refused("sweep", "a.yaml", "--set", "search.trials=0") == ["--set: search.trials: must be >= 1, but got 0"]


@pytest.mark.parametrize("name", ["a/b", "../a", "-a", ".a", "a b", "", "ä", "a" * 101])
def test_a_bad_name(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(SWEEP)
    assert exit_status(["sweep", "a.yaml", f"--name={name}"]) == 2
    rule = "must be letters, digits, dots, hyphens and underscores, first a letter or digit, but got "
    assert capsys.readouterr().err == f"rayft: 1 fault in the input\n  --name: {rule}{name!r}\n"


@pytest.mark.parametrize("command", ["trials", "resume", "export", "tensorboard", "reproduce"])
def test_an_unknown_run(command: str, folder: Path) -> None:
    (folder / "runs" / "reviews").mkdir(parents=True)
    (folder / "runs" / "reviews" / "sweep.yaml").write_text(SWEEP)
    assert refused(command, "runs/reveiws") == ["runs/reveiws: no such run folder; runs has reviews"]


def test_a_folder_that_is_no_run(folder: Path) -> None:
    (folder / "runs").mkdir()
    assert refused("trials", "runs") == ["runs: is not a run folder: it has no sweep.yaml"]


def test_what_the_data_lacks_is_told_with_the_line_of_the_sweep_file(
    folder: Path, model_folder: Callable[[str], Path]
) -> None:
    (folder / "t.csv").write_text("text,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(WORDS)))
    (folder / "a.yaml").write_text(f"model: {model_folder('bert')}\ndata:\n  train: t.csv\n  columns: {{text: body}}\n")
    (fault,) = refused("check", "a.yaml")
    assert fault.startswith("t.csv:1: data.columns: ") or fault.startswith("t.csv: data.columns: ")
    assert "there is no column 'body'" in fault


def test_check_names_what_is_wrong_with_the_data_and_with_every_model(
    folder: Path, model_folder: Callable[[str], Path]
) -> None:
    (folder / "t.csv").write_text("text,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(WORDS)))
    (folder / "broken").mkdir()
    (folder / "a.yaml").write_text(
        f"model: [{model_folder('bert')}, broken]\n"
        "data:\n  train: t.csv\n  columns: {text: body}\n"
        "training: {strategy: partial}\n"
        "search_space: {freeze_depth: [1, 99]}\n"
    )
    found = refused("check", "a.yaml")
    for words in ("there is no column 'body'", "must be <= 3, the number of blocks of", "broken"):
        assert any(words in fault for fault in found), words
    assert len(found) == 3


def test_a_ray_client_address(folder: Path, model_folder: Callable[[str], Path]) -> None:
    (folder / "t.csv").write_text("text,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(WORDS)))
    (folder / "a.yaml").write_text(f"model: {model_folder('bert')}\ndata: {{train: t.csv}}\n")
    ended = rayft("sweep", "a.yaml", "--address", "ray://head:10001")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "--address: ray:// runs the sweep far from its run folder" in ended.stderr
    assert "but got 'ray://head:10001'" in ended.stderr
    assert not list(folder.glob("runs/*")), "a run folder of a sweep that never started"


SECRET = "hunter2"
NOWHERE = ["--address", "http://127.0.0.1:1"]


@pytest.mark.parametrize("storage", [f"s3://me:{SECRET}@bucket/runs", f"s3://me:a/{SECRET}@bucket/runs"])
def test_a_secret_is_refused_before_anything_is_sent(storage: str, folder: Path) -> None:
    (folder / "a.yaml").write_text(SWEEP)
    (folder / "b.yaml").write_text(f"{SWEEP}storage: {storage}\n")
    asked = (
        ("storage: ", ["a.yaml", "--storage", storage]),
        ("b.yaml:3: storage: ", ["b.yaml"]),
        ("--resume: ", ["a.yaml", "--resume", f"{storage}/a"]),
    )
    for where, arguments in asked:
        (fault,) = refused("submit", *arguments, *NOWHERE)
        assert f"{where}must hold no credentials" in fault
        assert SECRET not in fault


def test_a_job_that_goes_on_with_a_run_takes_no_other_sweep(folder: Path) -> None:
    (folder / "a.yaml").write_text(SWEEP)
    others = ["--set", "search.trials=4", "--storage", "far", "--name", "b"]
    faults = refused("submit", "a.yaml", "--resume", "~/runs/a", *others, *NOWHERE)
    assert [fault.partition(": ")[0] for fault in faults] == ["--set", "--storage", "--name"]
    assert all("can't be used with --resume" in fault for fault in faults)


def exit_status(arguments: list[str]) -> int:
    """The exit status of the program, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["rayft", *arguments])
        cli.main()
    return caught.value.code if isinstance(caught.value.code, int) else int(caught.value.code is not None)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (
            DataError([Fault("t.csv:7", "has no label"), Fault("t.csv:8", "is empty")]),
            2,
            "rayft: 2 faults in the input\n",
        ),
        (DataError([Fault(SWEEP_FILE, "can't be found", "data.train")]), 2, "  a.yaml:2: data.train: can't be found\n"),
        (SweepFailedError("all 4 trials failed"), 1, "rayft: all 4 trials failed\n"),
        (VerificationError("0.5 is not 0.6"), 1, "rayft: 0.5 is not 0.6\n"),
        (InterruptedSweep("go on with: rayft resume runs/a"), 130, "go on with: rayft resume runs/a\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_has_its_exit_status(
    error: RayftError | KeyboardInterrupt,
    status: int,
    text: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    (folder / "a.yaml").write_text(SWEEP)
    monkeypatch.setattr("rayft.check.check.print_check", fail)
    assert exit_status(["check", "a.yaml"]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert "Traceback" not in shown.err


def test_a_bug_is_no_user_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("our own")

    (folder / "a.yaml").write_text(SWEEP)
    monkeypatch.setattr("rayft.check.check.print_check", fail)
    monkeypatch.setattr(sys, "argv", ["rayft", "check", "a.yaml"])
    with pytest.raises(AssertionError, match="our own"):
        cli.main()


def test_check_says_that_nothing_is_wrong_and_leaves_nothing(folder: Path, model_folder: Callable[[str], Path]) -> None:
    (folder / "t.csv").write_text("text,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(WORDS)))
    (folder / "a.yaml").write_text(f"model: {model_folder('bert')}\ndata: {{train: t.csv}}\nsearch: {{trials: 3}}\n")
    ended = rayft("check", "a.yaml", "--set", "training.epochs=2")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^ train +\d+ +\d+ +3 +3 +3 +$", ended.stdout, re.M), "a word between two special tokens"
    assert "3 trials of at most 2 epochs; nothing is wrong" in ended.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["a.yaml", "t.csv"]

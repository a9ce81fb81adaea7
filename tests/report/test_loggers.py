import importlib.util
import io
import itertools
import json
import logging
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import wandb
from mlflow import MlflowClient
from mlflow.entities import Run
from pydantic import ValidationError
from rich.console import Console
from wandb.proto import wandb_internal_pb2

from rayft import commands
from rayft.config import LoggerName, SweepConfig, Value
from rayft.config_tasks import TASK_RULES
from rayft.errors import SWEEP_FILE, ConfigError, SweepFailedError
from rayft.report import loggers
from rayft.report.loggers import aside, base, check_installed, trial_loggers
from rayft.report.loggers.base import RunLogger, SweepFacts
from rayft.report.progress import Progress
from rayft.sweep.open_sweep import OpenSweep, Watcher
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.trial_record import TrialRecord
from rayft.training.results import CurvePoint, EpochResult

METRICS = TASK_RULES["text-classification"].metrics
PARAMS: dict[str, Value] = {"strategy": "partial", "learning_rate": 3e-4, "batch_size": 32, "max_grad_norm": None}


def result(epoch: int, value: float) -> EpochResult:
    return EpochResult(
        epoch=epoch,
        metrics=dict.fromkeys(METRICS, value),
        train_loss=value / 2,
        curve=(CurvePoint(epoch, 1.0, 1e-4),),
        seconds=8.0,
        samples_per_second=40.0 + epoch,
        padding=0.1,
    )


def ended(number: int, **others: Any) -> TrialRecord:
    record = TrialRecord(number, "complete", PARAMS, 0.75, best_epoch=2, epochs=3, metrics=dict.fromkeys(METRICS, 0.75))
    return replace(record, **others)


def logging_to(config: SweepConfig, *names: LoggerName) -> SweepConfig:
    return config.model_copy(update={"logging": [*names]})


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, config: SweepConfig) -> RunFolder:
    return RunFolder.create(str(tmp_path / "runs"), "headlines", config)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return MlflowClient(uri)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Weights & Biases writes."""
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield tmp_path / "wandb"
    wandb.teardown()


def mlflow_runs(store: MlflowClient, experiment: str = "rayft") -> dict[str, Run]:
    found = store.get_experiment_by_name(experiment)
    assert found is not None
    runs = store.search_runs([found.experiment_id])
    names = {run.info.run_name: run for run in runs}
    assert len(names) == len(runs)
    return names


def history(store: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, metric)]


def of_leveldb(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format (doc/log_format.md), after the seven bytes that say whose it is."""
    place, record = 7, b""
    while place < len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield record
            record = b""


def wandb_records(file: Path) -> list[wandb_internal_pb2.Record]:
    return [wandb_internal_pb2.Record.FromString(record) for record in of_leveldb(file.read_bytes())]


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def test_mlflow_gets_parameters_curves_final_values_and_how_each_trial_ended(
    run: RunFolder, config: SweepConfig, store: MlflowClient, notes: list[str]
) -> None:
    with trial_loggers(run, logging_to(config, "mlflow"), notes.append) as (watcher,):
        for number in (0, 1):
            watcher.trial_started(number, PARAMS)
        for epoch, number in itertools.product((1, 2, 3), (0, 1)):  # both at a time
            watcher.epoch(number, result(epoch, epoch / 4 + number))
        watcher.trial_ended(ended(0))
        watcher.trial_ended(ended(1, state="pruned"))
        watcher.trial_ended(ended(2, state="failed", best_epoch=None, metrics={}))
        watcher.trial_ended(ended(3, role="final", final_of=0, seed=2))
    assert notes == []
    runs = mlflow_runs(store)
    status = {name: run.info.status for name, run in runs.items()}
    assert status == {
        "headlines/0": "FINISHED",
        "headlines/1": "KILLED",
        "headlines/2": "FAILED",
        "headlines/3": "FINISHED",
    }
    assert runs["headlines/0"].data.params == {
        "model": "model",
        "strategy": "partial",
        "learning_rate": "0.0003",
        "batch_size": "32",
        "max_grad_norm": "null",
    }
    for number in (0, 1):
        trial = runs[f"headlines/{number}"]
        points = [(epoch, epoch / 4 + number) for epoch in (1, 2, 3)]
        for metric in METRICS:
            assert history(store, trial, f"validation/{metric}") == points
            assert history(store, trial, f"best/{metric}") == [(2, 0.75)]
        assert history(store, trial, "train/loss") == [(epoch, value / 2) for epoch, value in points]
        assert history(store, trial, "train/samples_per_second") == [(1, 41.0), (2, 42.0), (3, 43.0)]
    assert runs["headlines/2"].data.metrics == {}
    tags = {name: {k: v for k, v in run.data.tags.items() if k.startswith("rayft.")} for name, run in runs.items()}
    who = {"rayft.run": run.study_name, "rayft.sweep": "headlines"}
    assert tags["headlines/1"] == who | {"rayft.trial": "1", "rayft.state": "pruned", "rayft.role": "search"}
    last = {"rayft.state": "complete", "rayft.role": "final", "rayft.final_of": "0", "rayft.seed": "2"}
    assert tags["headlines/3"] == who | {"rayft.trial": "3"} | last


def test_a_trial_that_was_cut_off_goes_on_in_its_mlflow_run(
    run: RunFolder, config: SweepConfig, store: MlflowClient, notes: list[str]
) -> None:
    config = logging_to(config, "mlflow")
    with trial_loggers(run, config, notes.append) as (watcher,):
        watcher.trial_started(0, PARAMS)
        watcher.epoch(0, result(1, 0.25))
        watcher.trial_started(0, PARAMS)  # a worker was lost
        watcher.epoch(0, result(2, 0.5))
    assert mlflow_runs(store)["headlines/0"].info.status == "KILLED"
    with trial_loggers(run, config, notes.append) as (watcher,):
        watcher.trial_started(0, PARAMS)
        watcher.epoch(0, result(3, 0.75))
        deadline = time.monotonic() + 30
        while mlflow_runs(store)["headlines/0"].info.status != "RUNNING":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        watcher.trial_ended(ended(0))
    (trial,) = mlflow_runs(store).values()
    assert trial.info.status == "FINISHED"
    assert history(store, trial, "validation/loss") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert notes == []


def test_a_new_sweep_of_an_old_ones_name_has_mlflow_runs_of_its_own(
    tmp_path: Path, config: SweepConfig, store: MlflowClient, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "headlines of mine")
    for storage in ("here", "there"):
        run = RunFolder.create(str(tmp_path / storage), "headlines", config)
        with trial_loggers(run, logging_to(config, "mlflow"), notes.append) as (watcher,):
            watcher.trial_ended(ended(0))
    experiment = store.get_experiment_by_name("headlines of mine")
    assert experiment is not None and store.get_experiment_by_name("rayft") is None
    assert len(store.search_runs([experiment.experiment_id])) == 2
    assert notes == []


def test_wandb_gets_parameters_curves_final_values_and_how_each_trial_ended(
    run: RunFolder, config: SweepConfig, offline: Path, notes: list[str]
) -> None:
    with trial_loggers(run, logging_to(config, "wandb"), notes.append) as (watcher,):
        for number in (0, 1):
            watcher.trial_started(number, PARAMS)
        for epoch, number in itertools.product((1, 2, 3), (0, 1)):  # both at a time
            watcher.epoch(number, result(epoch, epoch / 4 + number))
        watcher.trial_ended(ended(0, role="final", final_of=None, seed=2))
        watcher.trial_ended(ended(1, state="failed"))
    assert notes == []
    for number, exit_code in ((0, 0), (1, 1)):
        (file,) = offline.glob(f"offline-run-*/run-{run.study_name}-{number}.wandb")
        records = wandb_records(file)
        (start,) = (record.run for record in records if record.HasField("run"))
        assert (start.project, start.run_group, start.display_name) == ("rayft", "headlines", f"headlines/{number}")
        values = items(start.config.update)
        values.pop("_wandb", None)
        assert values == {"sweep": "headlines", "trial": number, "model": "model", **PARAMS}
        rows = [items(record.history.item) for record in records if record.HasField("history")]
        assert [row["_step"] for row in rows] == [1, 2, 3]
        for metric in METRICS:
            assert [row[f"validation/{metric}"] for row in rows] == [epoch / 4 + number for epoch in (1, 2, 3)]
        assert [row["train/loss"] for row in rows] == [(epoch / 4 + number) / 2 for epoch in (1, 2, 3)]
        assert [row["train/samples_per_second"] for row in rows] == [41.0, 42.0, 43.0]
        summary: dict[str, Any] = {}
        for record in records:
            summary |= items(record.summary.update)
        assert {name: summary[f"best/{name}"] for name in METRICS} == dict.fromkeys(METRICS, 0.75)
        last = {"state": "complete", "role": "final", "final_of": None, "seed": 2}
        expected = {"state": "failed", "role": "search"} if number else last
        assert {name: summary[name] for name in expected} == expected
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [exit_code]


def test_a_trial_that_was_cut_off_goes_on_under_its_wandb_id(
    run: RunFolder, config: SweepConfig, offline: Path, notes: list[str]
) -> None:
    for epoch in (1, 2):
        with trial_loggers(run, logging_to(config, "wandb"), notes.append) as (watcher,):
            watcher.trial_started(0, PARAMS)
            watcher.epoch(0, result(epoch, 0.5))
        time.sleep(1.1)  # its folders' names have seconds
    assert notes == []
    files = sorted(offline.glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run.study_name}-0.wandb"] * 2
    steps = [
        [items(record.history.item)["_step"] for record in wandb_records(file) if record.HasField("history")]
        for file in files
    ]
    assert steps == [[1], [2]]


def test_without_a_key_wandb_is_left_out_and_mlflow_goes_on(
    run: RunFolder,
    config: SweepConfig,
    store: MlflowClient,
    offline: Path,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(offline.parent))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(offline.parent / "netrc"))
    with trial_loggers(run, logging_to(config, "wandb", "mlflow"), notes.append) as watchers:
        for watcher in watchers:
            watcher.trial_started(0, PARAMS)
            watcher.epoch(0, result(1, 0.5))
            watcher.trial_ended(ended(0))
    (note,) = notes
    assert re.fullmatch(r"logging to wandb failed \(UsageError: No API key .*\); the sweep goes on without it", note)
    assert [record.getMessage() for record in caplog.records if record.name == aside.__name__] == [note]
    assert mlflow_runs(store)["headlines/0"].info.status == "FINISHED"


class Broken:
    """Fails, or waits, at an epoch."""

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = event
        self.calls: list[str] = []

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        self.calls.append("started")

    def epoch(self, number: int, result: EpochResult) -> None:
        self.calls.append("epoch")
        if self.event is None:
            raise ConnectionError("https://me:hunter2/3@server/api is away\nmore")
        self.event.wait()

    def trial_ended(self, record: TrialRecord) -> None:
        self.calls.append("ended")

    def close(self) -> None:
        self.calls.append("closed")


def use(monkeypatch: pytest.MonkeyPatch, broken: Broken) -> None:
    def make(facts: SweepFacts) -> RunLogger:
        return broken

    monkeypatch.setattr(loggers, "LOGGERS", {"mlflow": make})


def run_trials(watcher: Watcher) -> None:
    for number in (0, 1):
        watcher.trial_started(number, PARAMS)
        watcher.epoch(number, result(1, 0.5))
        watcher.trial_ended(ended(number))


def test_a_logger_that_fails_is_told_of_once_without_passwords_and_is_called_no_more(
    run: RunFolder,
    config: SweepConfig,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    use(monkeypatch, broken)
    with caplog.at_level(logging.INFO), trial_loggers(run, logging_to(config, "mlflow"), notes.append) as (watcher,):
        run_trials(watcher)
    reason = "ConnectionError: https://server/api is away"
    assert notes == [f"logging to mlflow failed ({reason}); the sweep goes on without it"]
    assert [record.getMessage() for record in caplog.records] == notes
    assert broken.calls == ["started", "epoch"]


def test_a_sweep_goes_on_without_the_logger_that_failed(
    run: RunFolder, config: SweepConfig, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(sweep: OpenSweep, *others: object) -> None:
        for _ in range(2):
            asked, params = sweep.study.ask()
            for watcher in sweep.watchers:
                watcher.trial_started(asked, params)
                watcher.epoch(asked, result(1, 0.5))
            sweep.study.record_epoch(asked, 1, dict.fromkeys(METRICS, 0.5), 8.0)
            record = sweep.study.finish(asked)
            for watcher in sweep.watchers:
                watcher.trial_ended(record)

    monkeypatch.setattr(commands, "search", search)
    broken = Broken()
    monkeypatch.setattr(loggers, "LOGGERS", {"wandb": lambda facts: broken, "mlflow": loggers.MlflowRuns})
    out = io.StringIO()
    one_epoch = config.training.model_copy(update={"epochs": 1})
    config = logging_to(config, "wandb", "mlflow").model_copy(update={"training": one_epoch})
    with (
        Progress(config, Console(file=out, width=200)) as progress,
        pytest.raises(SweepFailedError, match="no trial has a checkpoint"),
    ):
        commands._run(config, run, None, progress, (), None, began=0.0)
    assert out.getvalue().count("logging to wandb failed") == run.log.read_text().count("logging to wandb failed") == 1
    assert "hunter2" not in out.getvalue() + run.log.read_text()
    assert broken.calls == ["started", "epoch"]
    assert [trial.info.status for trial in mlflow_runs(store).values()] == ["FINISHED"] * 2


def test_a_server_that_does_not_answer_makes_nobody_wait(
    run: RunFolder, config: SweepConfig, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    use(monkeypatch, Broken(answer))
    monkeypatch.setattr(base, "LONGEST_WAIT", 0.5)
    start = time.monotonic()
    with trial_loggers(run, logging_to(config, "mlflow"), notes.append) as (watcher,):
        run_trials(watcher)
        assert time.monotonic() - start < 0.4
    assert 0.5 <= time.monotonic() - start < 5
    answer.set()
    assert notes == ["logging to mlflow isn't through after 0 s; the sweep goes on without it"]


@pytest.mark.parametrize("is_folder", [False, True], ids=["nothing", "a folder of that name"])
def test_a_missing_package_is_refused_before_anything_runs(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, is_folder: bool, tmp_path: Path
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: ModuleSpec(name, None) if is_folder else None)
    config = logging_to(config, "mlflow", "wandb").model_copy(update={"storage": str(tmp_path / "runs")})
    with pytest.raises(ConfigError) as caught:
        commands.new_sweep(config, "headlines", None, Progress(config, Console(file=io.StringIO())))
    assert caught.value.exit_status == 2
    assert [str(fault) for fault in caught.value.faults] == [
        f"{SWEEP_FILE}: logging: mlflow isn't installed; pip install 'rayft[mlflow]'",
        f"{SWEEP_FILE}: logging: wandb isn't installed; pip install 'rayft[wandb]'",
    ]
    assert not (tmp_path / "runs").exists()


def test_packages_that_are_there_are_accepted(config: SweepConfig) -> None:
    check_installed(logging_to(config, "mlflow", "wandb"), SWEEP_FILE)
    assert importlib.util.find_spec("mlflow") is not None


@pytest.mark.parametrize("value", [["mlfow"], ["wandb", "wandb"], "mlflow", None, [["mlflow"]], {"mlflow": True}])
def test_other_values_are_refused_with_the_choices(config: SweepConfig, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        SweepConfig.model_validate({"model": "m", "data": {"train": "t.csv"}, "logging": value})
    (error,) = caught.value.errors()
    assert error["loc"] == ("logging",)
    rule = f"must be a list of mlflow, wandb or both, each once, but got {value!r}"
    assert str(error["ctx"]["error"]) == rule


def test_no_logger_is_the_default(config: SweepConfig, run: RunFolder, notes: list[str]) -> None:
    assert config.logging == []
    with trial_loggers(run, config, notes.append) as watchers:
        assert watchers == ()

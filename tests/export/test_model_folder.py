import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import pipeline

from rayft.config_tasks import TASK_RULES
from rayft.errors import CheckpointError, RunError, VerificationError
from rayft.export.model_folder import export_model, write_model
from rayft.export.record import read_record
from rayft.export.scorers.classes import all_logits, classification_metrics
from rayft.export.scorers.score import load
from rayft.export.verify import Verifier
from tests.export.conftest import LABELS, PARAMS, TrainedRun

TrainedRuns = Callable[..., TrainedRun]
CPU = torch.device("cpu")


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    with Verifier() as verifier:
        yield verifier


def load_and_score(folder: Path, run: TrainedRun) -> dict[str, float]:
    pipe = load("text-classification", folder, CPU)
    table = pa.ipc.open_file(str(run.folder / "encoded/raw/validation.arrow")).read_all()
    return classification_metrics(all_logits(pipe, table), table["label"].to_numpy())


@pytest.mark.parametrize("strategy", PARAMS)
def test_written_model_scores_what_training_measured(trained_run: TrainedRuns, tmp_path: Path, strategy: str) -> None:
    run = trained_run(strategy)
    write_model(run.config, run.folder, run.trial, run.data, tmp_path / "model")
    assert load_and_score(tmp_path / "model", run) == pytest.approx(run.trial.metrics, abs=1e-5)
    # files of plain transformers: nothing of peft, and no pickle
    assert not list((tmp_path / "model").glob("adapter*"))
    assert not list((tmp_path / "model").glob("*.bin"))


@pytest.mark.parametrize(("family", "paired"), [("gpt2", False), ("bert", True)])
def test_decoders_and_pairs_score_the_same(trained_run: TrainedRuns, tmp_path: Path, family: str, paired: bool) -> None:
    run = trained_run("full", family, paired)
    write_model(run.config, run.folder, run.trial, run.data, tmp_path / "model")
    assert load_and_score(tmp_path / "model", run) == pytest.approx(run.trial.metrics, abs=1e-5)


def test_export_is_proved_and_complete(trained_run: TrainedRuns, tmp_path: Path, verifier: Verifier) -> None:
    run, to = trained_run("lora"), tmp_path / "exports/best"
    best = export_model(run.config, run.folder, run.trial, to, verifier, score_test=True)
    assert best == json.loads((to / "rayft.json").read_text())
    assert {"model", "task", "trial", "epoch", "params", "metric", "validation", "test"} <= best.keys()
    assert (best["trial"], best["epoch"], best["params"]) == (3, 1, PARAMS["lora"])
    assert best["validation"] == run.trial.metrics
    assert best["verification"]["validation"] == pytest.approx(run.trial.metrics, abs=1e-3)
    assert best["test"].keys() == set(TASK_RULES["text-classification"].metrics)
    assert best["rows"] == {"train": 96, "validation": 48, "test": 32}
    assert read_record(to).columns == run.config.data.columns
    assert {path.name for path in to.parent.iterdir()} == {"best"}  # nothing is left of the work

    classify = pipeline("text-classification", model=str(to))
    (answer,) = classify(["great " * 100], truncation=True)
    assert answer["label"] in LABELS
    assert classify.tokenizer.model_max_length == run.config.data.max_length
    assert classify.model.config.id2label == dict(enumerate(LABELS))


def test_an_earlier_export_is_replaced_only_by_one_that_is_proved(
    trained_run: TrainedRuns, tmp_path: Path, verifier: Verifier
) -> None:
    run, to = trained_run("full"), tmp_path / "best"
    to.mkdir()
    (to / "rayft.json").write_text("{}")
    (to / "left-over.txt").write_text("of an earlier export")
    recorded = {**run.trial.metrics, "loss": run.trial.metrics["loss"] + 0.002}
    with pytest.raises(VerificationError, match=r"record.*: loss is \d\.\d+, but \d\.\d+ is on record"):
        export_model(run.config, run.folder, replace(run.trial, metrics=recorded), to, verifier, score_test=False)
    assert (to / "rayft.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]

    best = export_model(run.config, run.folder, run.trial, to, verifier, score_test=False)
    assert best["test"] is None  # the test split is for the winner only
    assert json.loads((to / "rayft.json").read_text()) == best
    assert not (to / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_of_something_else_is_never_replaced(
    trained_run: TrainedRuns, tmp_path: Path, verifier: Verifier
) -> None:
    run = trained_run("full")
    (tmp_path / "thesis.txt").write_text("years of work")
    trial = replace(run.trial, checkpoint=None)
    with pytest.raises(RunError) as error:
        export_model(run.config, run.folder, trial, tmp_path, verifier, score_test=False)
    assert [fault.where for fault in error.value.faults] == [str(run.folder), str(tmp_path)]  # both faults at once
    assert "trial 3 (complete) has no checkpoint" in error.value.faults[0].rule
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_checkpoint_other_than_the_recorded_one_is_refused(trained_run: TrainedRuns, tmp_path: Path) -> None:
    run = trained_run("full")
    with pytest.raises(CheckpointError, match="on record"):
        write_model(run.config, run.folder, replace(run.trial, digest="0" * 64), run.data, tmp_path / "model")


def test_a_damaged_checkpoint_is_refused(trained_run: TrainedRuns, tmp_path: Path) -> None:
    run = trained_run("partial")
    shutil.copytree(run.folder / "trials", tmp_path / "trials")
    weights = tmp_path / "trials/3/checkpoint-1/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        write_model(run.config, tmp_path, run.trial, run.data, tmp_path / "model")


def test_a_checkpoint_of_another_strategy_is_refused(trained_run: TrainedRuns, tmp_path: Path) -> None:
    run = trained_run("partial")
    with pytest.raises(CheckpointError, match="strategy full trains"):
        write_model(run.config, run.folder, replace(run.trial, params=PARAMS["full"]), run.data, tmp_path / "model")

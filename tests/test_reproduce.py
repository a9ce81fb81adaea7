"""`rayft reproduce` on runs that were trained as a sweep trains, and on records that no training gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayft.config import SweepConfig
from rayft.data.encoded import EncodedData
from rayft.export.verify import TOLERANCE
from rayft.models.layers import map_layers
from rayft.models.load import load_model, load_tokenizer
from rayft.reproduce import EpochPair, Reproduction, recorded_precision, reservations
from rayft.search_space import resolve
from rayft.sweep.remote_folder import RemoteFolder
from rayft.sweep.run_folder import ENVIRONMENT, RunFolder
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord
from rayft.training.loop import FineTuning
from rayft.training.workers import Workers
from tests.export.conftest import LABELS, rows
from tests.program import exit_status
from tests.sweep.conftest import sweep
from tests.texts import TEXTS, encode_texts, text_splits

SEED = 3
EPOCHS = 3
START = {"strategy": "partial", "learning_rate": 3e-3, "freeze_depth": 2, "dropout": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> RunFolder:
    """A run of three trials of one configuration, in which the study and the encoded data are all that is left.

    Trial 0 was stopped after two epochs of three; of trial 1 the record was changed; trial 2 has no epoch.
    """
    config = SweepConfig.model_validate(
        {
            "model": str(model_folder("bert")),
            "data": {"train": "gone.csv", "max_length": 9},
            "training": {"epochs": EPOCHS, "batch_size": 8, "precision": "fp32"},
            "search_space": {name: [value] for name, value in START.items()},
            "search": {"seed": SEED, "metric": "loss", "trials": 3},
        }
    )
    run = RunFolder.create(str(tmp_path_factory.mktemp("runs")), "reviews", config)
    tokenizer = load_tokenizer(config.models[0])
    splits = text_splits(rows(96, 0), rows(48, 1), None, None, LABELS)
    encode_texts(splits, tokenizer, config.data.max_length, run.encoded)
    base = load_model(config.models[0], TEXTS, LABELS, tokenizer.pad_token_id, SEED)
    tuning = FineTuning(
        base,
        map_layers(base),
        EncodedData.open(run.encoded),
        resolve(config, START),
        epochs=EPOCHS,
        seed=SEED,
        workers=Workers(rank=0, world_size=1, device=torch.device("cpu")),
    )
    study = SweepStudy.of_run(run, config)
    for _ in range(3):
        study.ask()
    for epoch in (1, 2):
        result = tuning.train_epoch()
        changed = {**result.metrics, "loss": result.metrics["loss"] + 0.01 * (epoch - 1)}
        study.record_epoch(0, epoch, result.metrics, result.seconds)
        study.record_epoch(1, epoch, changed, result.seconds)
    for number in (0, 1):
        study.finish(number)
    return run


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_trial_gives_what_is_on_record(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("reproduce", str(run.path), "0") == 0
    title, training, *epochs, verdict = capsys.readouterr().out.splitlines()
    assert title.startswith("trial 0: strategy=partial learning_rate=0.003")
    assert training == "training 2 of 3 epochs in fp32 on cpu"
    assert [line.split(":")[0] for line in epochs] == ["epoch 1", "epoch 2"]
    assert verdict.startswith("the same: loss is ")


def test_a_record_that_training_does_not_give(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("reproduce", str(run.path), "1") == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("not the same: epoch 2 gave loss ")
    assert verdict.endswith("is on record, further away than 0.001")
    assert exit_status("reproduce", str(run.path), "1", "--tolerance", "0.02") == 0
    assert "within 0.02 of the record (fp32)" in capsys.readouterr().out


def test_json_is_alone_on_standard_output(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status("reproduce", str(run.path), "1", "--json") == 1
    shown = capfd.readouterr()
    found = json.loads(shown.out)
    assert (found["trial"], found["metric"], found["precision"], found["same"]) == (1, "loss", "fp32", False)
    assert found["tolerance"] == TOLERANCE["fp32"]
    first, second = found["epochs"]
    assert first["reproduced"] == pytest.approx(first["recorded"], abs=1e-5)
    assert second["recorded"] - second["reproduced"] == pytest.approx(0.01, abs=1e-5)
    assert "epoch 2: loss" in shown.err


def test_the_run_is_left_as_it_was(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.suffix != ".lock"
        }

    before = files()
    assert exit_status("reproduce", str(run.path), "0") == 0
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["2"], 2, "TRIAL: trial 2 (running) has no finished epoch to hold a new one against"),
        (["3"], 2, "TRIAL: must be one of 0 to 2, but got 3"),
        ([], 1, "no trial has a checkpoint"),
    ],
)
def test_what_cannot_be_reproduced(
    arguments: list[str], status: int, text: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("reproduce", str(run.path), *arguments, "--json") == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err


def test_an_interrupted_one_says_so(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "train_epoch", interrupt)
    assert exit_status("reproduce", str(run.path), "0") == 130
    assert capsys.readouterr().err == "rayft: interrupted; the run is as it was\n"


def test_a_run_of_remote_storage(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "cache"))
    address = f"file://{tmp_path}/far/reviews"
    for entry in run.path.iterdir():
        RemoteFolder(address).upload(entry, entry.name)
    assert exit_status("reproduce", address, "0") == 0
    assert "the same: loss is " in capsys.readouterr().out
    assert exit_status("show", address, "0") == 0


# In words


def reproduction(*pairs: tuple[float, float], tolerance: float = 1e-3) -> Reproduction:
    epochs = tuple(EpochPair(epoch, *pair) for epoch, pair in enumerate(pairs, start=1))
    return Reproduction(0, "perplexity", "fp32", "cpu", tolerance, epochs)


@pytest.mark.parametrize(
    ("pairs", "same", "text"),
    [
        ([(0.5, 0.5)], True, "the same: perplexity is exactly that on record in its one epoch"),
        ([(0.5, 0.5), (0.6, 0.6009)], True, "within 0.001 of the record (fp32), at most 0.0009 away, in each of its 2"),
        ([(0.5, 0.5), (0.6, 0.6011)], False, "epoch 2 gave perplexity 0.601100, but 0.600000 is on record, further"),
        ([(400.0, 400.3)], True, "the same"),
        ([(400.0, 400.5)], False, "not the same"),
        ([(-0.5, 0.5)], False, "not the same"),
        ([(0.5, float("nan"))], False, "not the same"),
    ],
)
def test_the_verdict(pairs: list[tuple[float, float]], same: bool, text: str) -> None:
    found = reproduction(*pairs)
    assert found.same is same
    assert text in found.in_words()


# What it was trained in, and why values may differ


def record(number: int = 0, checkpoint: str | None = None) -> TrialRecord:
    return TrialRecord(number=number, state="complete", params={}, checkpoint=checkpoint)


def write_state(run: RunFolder, number: int, precision: object) -> str:
    folder = run.checkpoint(number, 1)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"precision": precision}))
    return folder.relative_to(run.path).as_posix()


def test_the_precision_is_that_of_the_checkpoint_or_of_another_trial_s(tmp_path: Path) -> None:
    config, run = sweep(), RunFolder(tmp_path)
    assert recorded_precision(config, run, record()) == "auto"
    write_state(run, 1, "fp32")
    assert recorded_precision(config, run, record()) == "fp32"
    assert recorded_precision(config, run, record(checkpoint=write_state(run, 0, "bf16"))) == "bf16"
    assert recorded_precision(config, run, record(number=1)) == "fp32"
    fixed = config.model_copy(update={"training": config.training.model_copy(update={"precision": "fp32"})})
    assert recorded_precision(fixed, run, record()) == "fp32"


@pytest.mark.parametrize("precision", [None, "fp8", 3])
def test_a_damaged_checkpoint_is_passed_over(precision: object, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_state(run, 0, precision)
    write_state(run, 1, "bf16")
    assert recorded_precision(sweep(), run, record()) == "bf16"


def test_several_workers_and_other_packages_are_said(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert reservations(sweep(), run) == []
    (tmp_path / ENVIRONMENT).write_text(json.dumps({"packages": {"torch": "1.0", "no-such-package": "2.0"}}))
    (packages,) = reservations(sweep(), run)
    assert f"torch 1.0 then and {torch.__version__} now, no-such-package 2.0 then and none now" in packages
    (tmp_path / ENVIRONMENT).write_text("{")
    (workers,) = reservations(sweep(cluster={"workers_per_trial": 2}), run)
    assert "ran on 2 workers and here runs on one: sums are taken in another order" in workers

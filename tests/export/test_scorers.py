"""What each task's scorer measures of an exported model is what training measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayft.config import StrategyName, SweepConfig, TaskName
from rayft.config_tasks import TASK_RULES
from rayft.data.encode import encode_splits
from rayft.data.encoded import EncodedData
from rayft.data.splits import Splits
from rayft.export.model_folder import write_model
from rayft.export.scorers.score import KINDS, _beside, bootstrap, load
from rayft.export.verify import TOLERANCE
from rayft.models.layers import map_layers
from rayft.models.load import load_model, load_preprocessor
from rayft.search_space import resolve
from rayft.sweep.trial_record import TrialRecord
from rayft.tasks import get_task
from rayft.training.loop import FineTuning
from tests.conftest import tiny_model
from tests.examples import FAMILY, preprocessor_of, rows_of, splits_of
from tests.training.conftest import ALONE

MAX_LENGTH = 12
CASES: list[tuple[TaskName, str, StrategyName]] = [
    *((task, family, "full") for task, family in FAMILY.items()),
    ("causal-lm", "gpt2", "lora"),
    ("causal-lm", "smollm3", "partial"),
    ("image-classification", "vit", "partial"),
    ("image-classification", "resnet", "lora"),
    ("image-classification", "efficientnet", "adversarial"),
    ("regression", "roberta", "lora"),
    ("token-classification", "deberta-v2", "layerwise"),
    ("multi-label-classification", "gpt2", "partial"),
]
PARAMS: dict[StrategyName, dict[str, Any]] = {
    "full": {},
    "partial": {"freeze_depth": 2},
    "layerwise": {"layer_decay": 0.7},
    "adversarial": {"adversarial_weight": 0.2},
    "lora": {"lora_rank": 2},
}


def model_folder(task: TaskName, family: str, folder: Path) -> Path:
    """A pretrained model as users have it: without a head, unless the task takes the model's own."""
    model = tiny_model(family, task=task)
    (model.base_model if get_task(task).has_new_head else model).save_pretrained(folder)
    preprocessor_of(task).save_pretrained(folder)
    return folder


def trained(
    splits: Splits, family: str, strategy: StrategyName, folder: Path
) -> tuple[dict[str, float], EncodedData, Path]:
    """A model after an epoch, exported: what training measured of validation, the data, and the model's folder."""
    chosen = get_task(splits.task)
    base_folder = model_folder(splits.task, family, folder / "base")
    length = {"max_length": MAX_LENGTH} if chosen.preprocessor == "tokenizer" else {}
    training = {"strategy": strategy, "learning_rate": 1e-2, "batch_size": 8, "epochs": 1, **PARAMS[strategy]}
    config = SweepConfig.model_validate(
        {"model": str(base_folder), "task": splits.task, "data": {"train": "train", **length}, "training": training}
    )
    preprocessor = load_preprocessor(config.model, chosen)
    encode_splits(splits, chosen, preprocessor, config.data, folder / "encoded")
    data = EncodedData.open(folder / "encoded")
    padding = data.pad_token_id if data.train.has_tokens else None
    base = load_model(config.model, chosen, data.label_names, padding, config.search.seed)
    chosen.check_model(base)
    tuning = FineTuning(base, map_layers(base), data, resolve(config, {}), epochs=1, seed=0, workers=ALONE)
    tuning.train_epoch()
    tuning.pack().write(folder / "trial/checkpoint-1")
    measured = tuning.evaluate(data.validation)
    trial = TrialRecord(
        number=0,
        state="complete",
        params={},
        value=measured["loss"],
        best_epoch=1,
        epochs=1,
        values={},
        metrics=measured,
        seconds=1.0,
        checkpoint="trial/checkpoint-1",
        digest=tuning.pack().digest,
    )
    write_model(config, folder, trial, data, folder / "model")
    return measured, data, folder / "model"


def scored(
    data: EncodedData, folder: Path, model: Path, rounding: float = 0.0
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    pipe = load(data.task, model, torch.device("cpu"))
    table = pa.ipc.open_file(str(folder / "encoded/raw/validation.arrow")).read_all()
    with torch.inference_mode():
        found = _beside(KINDS[data.task][2]).score(pipe, table, rounding, data.facts)
    metrics, slack, classes, measure, rows = found[:5]
    every = {name: measure(name, np.arange(rows)) for name in metrics}
    assert every == pytest.approx(metrics, abs=1e-6), "one metric at a time measures the same"
    return metrics, slack, classes


def assert_same(metrics: dict[str, float], measured: dict[str, float]) -> None:
    assert metrics.keys() == measured.keys()
    for name, value in measured.items():
        # After one epoch numbers are predicted nearly alike, so that rounding may change their order.
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-2 if name in ("pearson", "spearman") else 1e-5)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    right = np.random.default_rng(1).random(400) < 0.8
    low, high = bootstrap(lambda rows: float(right[rows].mean()), 400)
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert (low, high) == (pytest.approx(right.mean() - half, abs=5e-3), pytest.approx(right.mean() + half, abs=5e-3))
    assert bootstrap(lambda rows: 1.0, 5) == [1.0, 1.0]


@pytest.mark.parametrize(("task", "family", "strategy"), CASES)
def test_the_scorer_measures_what_training_did(
    tmp_path: Path, task: TaskName, family: str, strategy: StrategyName
) -> None:
    measured, data, model = trained(splits_of(task), family, strategy, tmp_path)
    metrics, slack, classes = scored(data, tmp_path, model)
    assert set(metrics) == set(slack) == set(TASK_RULES[task].metrics)
    assert_same(metrics, measured)
    assert bool(classes) == bool(data.label_names)
    assert all(value == pytest.approx(0.0, abs=1e-6) for value in slack.values())


def test_chats_are_scored_by_their_answers(tmp_path: Path) -> None:
    splits = splits_of("causal-lm", chat=True)
    measured, data, model = trained(splits, "llama", "full", tmp_path)
    assert data.facts["chat"] is True and int(data.validation.lengths.max()) == MAX_LENGTH
    metrics, _, _ = scored(data, tmp_path, model)
    assert_same(metrics, measured)


def test_pairs_of_texts_are_scored(tmp_path: Path) -> None:
    splits = splits_of("regression")
    for rows in (splits.train, splits.validation):
        rows.inputs["text_pair"] = rows_of("regression", len(rows), seed=5).inputs["text"]
    measured, data, model = trained(splits, "bert", "full", tmp_path)
    metrics, _, _ = scored(data, tmp_path, model)
    assert_same(metrics, measured)


@pytest.mark.parametrize("task", FAMILY)
def test_rounding_gives_room_and_never_less_than_none(tmp_path: Path, task: TaskName) -> None:
    _, data, model = trained(splits_of(task), FAMILY[task], "full", tmp_path)
    narrow, wide = (scored(data, tmp_path, model, rounding)[1] for rounding in (TOLERANCE["bf16"], 1.0))
    for name in TASK_RULES[task].metrics:
        assert 0 <= narrow[name] <= wide[name] + 1e-9 or name == "spearman", name
    assert any(value > 0 for value in wide.values())

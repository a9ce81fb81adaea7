import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from rayft.config import SweepConfig
from rayft.config_tasks import TASK_RULES
from rayft.data.encoded import EncodedData
from rayft.data.splits import Rows
from rayft.errors import ConfigError
from rayft.sweep.read_data import read_data
from rayft.tasks import get_task
from tests.examples import encode, splits_of
from tests.tasks.conftest import Faults, Load, collated, loss_of

TASK = get_task("multi-label-classification")
LISTS = [["good"], ["good", "bad"], [], ["bad", "dull", "bad"], ["dull"], ["good"]]
ROWS = [{"text": f"row {number}", "label": labels} for number, labels in enumerate(LISTS)]
CSV = "text,good,bad\nrow 0,1,0\nrow 1,yes,TRUE\nrow 2,0.0,no\nrow 3,false,1.0\n"
BOTH = {"columns": {"label": ["good", "bad"]}}


@pytest.fixture
def data(tmp_path: Path) -> EncodedData:
    return encode(splits_of("multi-label-classification"), tmp_path)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("file", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_lists_of_labels(folder: Path, load: Load, file: str) -> None:
    write_rows(folder / file, ROWS)
    splits = load("multi-label-classification", file, validation=file)
    assert splits.label_names == ("bad", "dull", "good")
    assert isinstance(splits.train.labels, np.ndarray) and splits.train.labels.dtype == np.float32
    expected = [[0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert splits.train.labels.tolist() == expected


def test_a_column_for_each_label(folder: Path, load: Load) -> None:
    (folder / "rows.csv").write_text(CSV)
    splits = load("multi-label-classification", "rows.csv", validation="rows.csv", **BOTH)
    assert splits.label_names == ("good", "bad")
    assert isinstance(splits.train.labels, np.ndarray)
    assert splits.train.labels.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]


def test_columns_of_booleans(folder: Path, load: Load) -> None:
    rows = [{"text": f"row {n}", "good": n % 2 == 0, "bad": n // 2 == 0} for n in range(4)]
    write_rows(folder / "rows.parquet", rows)
    splits = load("multi-label-classification", "rows.parquet", validation="rows.parquet", **BOTH)
    assert isinstance(splits.train.labels, np.ndarray)
    assert splits.train.labels.tolist() == [[1, 1], [0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "", "label": ["good"]}, "empty text"),
        ({"text": "a", "label": None}, "missing labels"),
        ({"text": "a", "label": ["good", " "]}, "missing label"),
        ({"text": "a", "label": ["caf\udce9"]}, "undecodable bytes"),
    ],
)
def test_bad_rows(folder: Path, load: Load, faults: Faults, row: dict[str, object], reason: str) -> None:
    write_rows(folder / "rows.jsonl", [*ROWS, row])
    (fault,) = faults("multi-label-classification", "rows.jsonl")
    assert f"1 of 7 rows are bad: rows.jsonl:7 ({reason}); mend them" in fault
    splits = load("multi-label-classification", "rows.jsonl", validation="rows.jsonl", on_bad_row="drop")
    assert len(splits.train) == 6
    assert splits.notes[0] == f"train: left out 1 of 7 rows (1 {reason})"


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_labels_of_the_wrong_type_are_never_dropped(folder: Path, faults: Faults, on_bad_row: str) -> None:
    write_rows(folder / "rows.jsonl", [*ROWS, {"text": "a", "label": "good"}, {"text": "a", "label": [0.5]}])
    (fault,) = faults("multi-label-classification", "rows.jsonl", on_bad_row=on_bad_row)
    assert "2 of 8 rows have the wrong type: rows.jsonl:7 (labels must be a list, but are 'good')" in fault
    assert "rows.jsonl:8 (label '0.5' is neither a name nor a whole number)" in fault

    (folder / "rows.csv").write_text(f"{CSV}row 4,2,\n")
    (fault,) = faults("multi-label-classification", "rows.csv", on_bad_row=on_bad_row, **BOTH)
    assert "rows.csv:6 (label column 'good' must hold 0 or 1, but has '2')" in fault


def test_labels_that_train_lacks(folder: Path, faults: Faults) -> None:
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "test.jsonl", [ROWS[0], {"text": "a", "label": ["good", "bda"]}])
    (fault,) = faults("multi-label-classification", "train.jsonl", test="test.jsonl")
    assert fault.startswith("test.jsonl:2: data.test: train lacks the label 'bda' (1 row in test); did you mean 'bad'?")
    (folder / "train.csv").write_text("text,good,bad\na,1,0\nb,0,0\nc,1,0\nd,0,0\n")
    assert faults("multi-label-classification", "train.csv", **BOTH) == [
        "train.csv: data.train: must have at least 2 classes, but all 4 rows have the label 'good'"
    ]
    (folder / "train.csv").write_text("text,good,bad\na,0,0\nb,0,0\n")
    (fault,) = faults("multi-label-classification", "train.csv", **BOTH)
    assert fault.endswith("must have at least 2 classes, but no row has a label")


def sweep(train: str, **sections: object) -> SweepConfig:
    return SweepConfig.model_validate(
        {"model": "model", "data": {"train": train, "validation": train, **sections.pop("data", {})}, **sections}  # type: ignore[dict-item]
    )


def test_text_classification_turns_into_it(folder: Path) -> None:
    (folder / "rows.csv").write_text(CSV)
    write_rows(folder / "rows.jsonl", ROWS)
    for config in (sweep("rows.csv", data=BOTH), sweep("rows.jsonl")):
        assert config.task == "text-classification"
        resolved, splits = read_data(config)
        assert resolved.task == splits.task == "multi-label-classification"
        assert resolved.metric == "micro_f1"
    (folder / "plain.csv").write_text("text,label\na,x\nb,y\n")
    assert read_data(sweep("plain.csv"))[0].task == "text-classification"


def test_what_it_does_not_have_is_said_once_the_data_shows_it(folder: Path) -> None:
    write_rows(folder / "rows.jsonl", ROWS)
    config = sweep("rows.jsonl", search_space={"strategy": ["full", "adversarial"], "label_smoothing": [0.0, 0.1]})
    with pytest.raises(ConfigError) as caught:
        read_data(config)
    keys = {fault.key: fault.rule for fault in caught.value.faults}
    assert "doesn't read it" in keys["search_space.label_smoothing"]
    assert "a row with several labels has no such" in keys["search_space.strategy"]
    assert read_data(sweep("rows.jsonl", search={"metric": "macro_f1"}))[0].metric == "macro_f1"


def test_a_row_belongs_to_its_rarest_label() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=np.float32)
    strata, names = TASK.strata(Rows({"text": [""] * 5}, labels), ("common", "rarer", "rarest"))
    assert names is None
    assert strata.tolist() == [1, 2, 3, 0, 1]


def test_collated_rows(data: EncodedData) -> None:
    batch = collated(data, data.train, [3, 0])
    lengths = data.train.lengths[[3, 0]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, lengths.max())
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths.tolist()
    rows = splits_of("multi-label-classification").train
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [list(rows.labels[3]), list(rows.labels[0])]  # type: ignore[index]


def test_loss_is_the_mean_over_labels(data: EncodedData) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, generator=generator), torch.randint(0, 2, (5, 3), generator=generator).float()
    expected = torch.nn.BCEWithLogitsLoss()(logits, labels) * 5
    assert loss_of(data, logits, labels) == pytest.approx(float(expected))


def test_balanced_weights(tmp_path: Path) -> None:
    splits = splits_of("multi-label-classification")
    assert isinstance(splits.train.labels, np.ndarray)
    splits.train.labels[:, 2] = 0  # a label without a row
    data = encode(splits, tmp_path, class_weights="balanced")
    counts = splits.train.labels.sum(axis=0)
    weights = data.facts["class_weights"]
    assert weights[:2] == pytest.approx([counts.sum() / (3 * count) for count in counts[:2]])
    assert np.isfinite(weights).all()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    weighted = torch.nn.BCEWithLogitsLoss(weight=torch.tensor(weights))(logits, labels) * 4
    assert loss_of(data, logits, labels) == pytest.approx(float(weighted))


def test_metrics_are_scikit_learns(data: EncodedData) -> None:
    generator = np.random.default_rng(0)
    for rows in (1, 2, 24):
        split = data.validation
        split.labels = generator.integers(0, 2, (rows, 3)).astype(np.float32)
        outputs = generator.normal(size=(rows, 3)).astype(np.float32)
        true, predicted = split.labels, (outputs > 0).astype(int)
        metrics = TASK.metrics(outputs, split, data)
        assert tuple(metrics) == TASK_RULES["multi-label-classification"].metrics
        assert metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        for kind in ("micro", "macro", "weighted"):
            expected = f1_score(true, predicted, average=kind, zero_division=0.0)
            assert metrics[f"{kind}_f1"] == pytest.approx(expected), kind
        loss = log_loss(true.ravel(), 1 / (1 + np.exp(-outputs.ravel().astype(float))), labels=[0, 1])
        assert metrics["loss"] == pytest.approx(loss)
    assert TASK.confusion(outputs, split, data) is None

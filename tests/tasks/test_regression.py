from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error

from rayft.config_tasks import TASK_RULES
from rayft.data.encoded import EncodedData
from rayft.data.splits import Rows
from rayft.errors import ModelError
from rayft.tasks import get_task
from rayft.tasks.regression import correlation, ranks
from tests.conftest import FAMILIES, tiny_model
from tests.examples import encode, splits_of
from tests.strategies.setups import batch
from tests.tasks.conftest import Faults, Load, collated, loss_of

TASK = get_task("regression")
CSV = "text,label\na,1\nb,-2.5\nc,1e3\nd, .5 \n"
WITHOUT_A_BIAS = {"gpt2", "llama"}


@pytest.fixture
def data(tmp_path: Path) -> EncodedData:
    return encode(splits_of("regression"), tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("rows.csv", CSV),
        ("rows.tsv", CSV.replace(",", "\t")),
        ("rows.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": -2.5}\n'
                       '{"text": "c", "label": 1000.0}\n{"text": "d", "label": "0.5"}\n'),
    ],
)  # fmt: skip
def test_numbers(folder: Path, load: Load, file: str, content: str) -> None:
    (folder / file).write_text(content)
    splits = load("regression", file, validation=file)
    assert isinstance(splits.train.labels, np.ndarray) and splits.train.labels.dtype == np.float32
    assert splits.train.labels.tolist() == [1, -2.5, 1000, 0.5]
    assert splits.label_names == ()


@pytest.mark.parametrize(("cell", "reason"), [("", "missing label"), (" ", "missing label")])
def test_rows_without_a_number_may_be_dropped(folder: Path, load: Load, faults: Faults, cell: str, reason: str) -> None:
    (folder / "rows.csv").write_text(f"{CSV}e,{cell}\n")
    (fault,) = faults("regression", "rows.csv")
    assert f"1 of 5 rows are bad: rows.csv:6 ({reason})" in fault
    splits = load("regression", "rows.csv", on_bad_row="drop", validation="rows.csv")
    assert len(splits.train) == 4


@pytest.mark.parametrize("cell", ["high", "nan", "inf", "1e999", "1,5", "True"])
def test_what_is_no_number_is_never_dropped(folder: Path, faults: Faults, cell: str) -> None:
    (folder / "rows.csv").write_text(f'{CSV}e,"{cell}"\n')
    (fault,) = faults("regression", "rows.csv", on_bad_row="drop")
    assert f"1 of 5 rows have the wrong type: rows.csv:6 (label '{cell}' is not a number)" in fault


def test_one_number_for_all_rows_teaches_nothing(folder: Path, faults: Faults) -> None:
    (folder / "rows.csv").write_text("text,label\na,3\nb,3.0\nc,3\n")
    assert "rows.csv: data.train: every row has the same number 3" in faults("regression", "rows.csv")


def test_several_label_columns_are_refused(folder: Path, faults: Faults) -> None:
    (folder / "rows.csv").write_text("text,x,y\na,1,2\nb,2,3\nc,3,4\n")
    (fault,) = faults("regression", "rows.csv", columns={"label": ["x", "y"]})
    assert "label must be one column" in fault


def test_each_split_gets_its_share_of_each_range() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(200, dtype=np.float32))
    strata, names = TASK.strata(Rows({"text": [""] * 200}, labels), ())
    assert names is None
    assert np.bincount(strata).tolist() == [20] * 10
    for stratum in range(10):
        assert sorted(labels[strata == stratum]) == list(range(20 * stratum, 20 * stratum + 20))
    assert TASK.strata(Rows({"text": [""] * 3}, labels[:3]), ())[0].tolist() == [0, 0, 0]


def test_a_fraction_holds_out_its_share_of_few_rows(folder: Path, load: Load) -> None:
    lines = "".join(f"row {n},{n}\n" for n in range(200))
    (folder / "rows.csv").write_text(f"text,label\n{lines}")
    splits = load("regression", "rows.csv", validation=0.02)  # 20 rows a range, of which each has 0.4
    assert len(splits.validation) == 4 and len(splits.train) == 196


def test_loss_is_in_standard_deviations_of_train(data: EncodedData) -> None:
    labels = np.asarray(splits_of("regression").train.labels, dtype=np.float64)
    assert data.facts["mean"] == pytest.approx(labels.mean())
    assert data.facts["deviation"] == pytest.approx(labels.std())
    batch = collated(data, data.train, [0, 1, 2, 3])
    assert batch["labels"].tolist() == labels[:4].tolist()
    logits = torch.tensor([[0.5], [-1.0], [0.0], [2.0]])
    standardised = torch.from_numpy((labels[:4] - labels.mean()) / labels.std())
    expected = torch.nn.functional.mse_loss(logits.squeeze().double(), standardised, reduction="sum")
    assert loss_of(data, logits, batch["labels"]) == pytest.approx(float(expected), rel=1e-5)


def test_metrics_are_scikit_learns_and_scipys(data: EncodedData) -> None:
    generator = np.random.default_rng(0)
    mean, deviation = data.facts["mean"], data.facts["deviation"]
    for rows in (3, 50):
        split = data.validation
        split.labels = generator.integers(0, 8, rows).astype(np.float32)  # with ties
        outputs = np.round(generator.normal(size=(rows, 1)), 1).astype(np.float32)
        true, predicted = split.labels.astype(float), outputs[:, 0].astype(float) * deviation + mean
        metrics = TASK.metrics(outputs, split, data)
        assert tuple(metrics) == TASK_RULES["regression"].metrics
        assert metrics["mse"] == pytest.approx(mean_squared_error(true, predicted))
        assert metrics["mae"] == pytest.approx(mean_absolute_error(true, predicted))
        assert metrics["pearson"] == pytest.approx(pearsonr(true, predicted).statistic)
        assert metrics["spearman"] == pytest.approx(spearmanr(true, predicted).statistic)
        assert metrics["loss"] == pytest.approx(metrics["mse"] / deviation**2)
    constant = TASK.metrics(np.zeros((rows, 1), dtype=np.float32), split, data)
    assert constant["pearson"] == constant["spearman"] == 0.0


def test_ranks_are_scipys() -> None:
    values = np.random.default_rng(1).integers(0, 5, 40).astype(float)
    assert ranks(values).tolist() == (rankdata(values) - 1).tolist()
    assert correlation(values, -values) == pytest.approx(-1)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WITHOUT_A_BIAS))
def test_the_finished_model_gives_the_numbers_themselves(data: EncodedData, family: str) -> None:
    model = tiny_model(family, task="regression").eval()
    TASK.check_model(model)
    with torch.no_grad():
        learnt = model(**batch()).logits
        expected = learnt * data.facts["deviation"] + data.facts["mean"]
        assert learnt.shape == (4, 1)
        finished = TASK.finish(model, data)(**batch()).logits
    torch.testing.assert_close(finished, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", sorted(WITHOUT_A_BIAS))
def test_models_without_a_bias_are_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"must end in a linear layer with a bias for task regression, which \w+"):
        TASK.check_model(tiny_model(family, task="regression"))

import json
import random
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import confusion_matrix
from transformers import BertTokenizer, PreTrainedTokenizerBase

from rayft.config import DataConfig
from rayft.config_tasks import TASK_RULES
from rayft.data.encode import encode_splits
from rayft.data.encoded import IGNORED, EncodedData
from rayft.data.splits import Rows, Splits
from rayft.errors import DataError, ModelError
from rayft.tasks import get_task
from rayft.tasks.token_classification import entities
from tests.data.conftest import bert_tokenizer
from tests.examples import LABEL_NAMES, encode, splits_of
from tests.tasks.conftest import Faults, Load, collated, loss_of

__all__ = ["bert_tokenizer"]

TASK = get_task("token-classification")
ROWS: list[dict[str, object]] = [
    {"tokens": ["EU", "rejects", "German", "call"], "tags": ["B-ORG", "O", "B-MISC", "O"]},
    {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
]
NAMES = ("B-MISC", "B-ORG", "B-PER", "I-PER", "O")
IDS = [[1, 4, 0, 4], [2, 3]]
CONLL = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

-DOCSTART- -X- O O
# a comment
Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.fixture
def data(tmp_path: Path) -> EncodedData:
    return encode(splits_of("token-classification"), tmp_path)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def assert_read(splits: Splits) -> None:
    assert splits.train.inputs["tokens"] == [row["tokens"] for row in ROWS]
    assert splits.train.labels == IDS
    assert splits.label_names == NAMES


@pytest.mark.parametrize("file", ["rows.jsonl", "rows.parquet"])
def test_lists_of_words_and_tags(folder: Path, load: Load, file: str) -> None:
    write_rows(folder / file, ROWS)
    assert_read(load("token-classification", file, validation=file))


@pytest.mark.parametrize("suffix", ["conll", "iob", "bio", "txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_files(folder: Path, load: Load, suffix: str, end: str) -> None:
    (folder / f"rows.{suffix}").write_bytes(CONLL.replace("\n", end).encode())
    assert_read(load("token-classification", f"rows.{suffix}", validation=f"rows.{suffix}"))


def test_a_saved_data_set_names_its_tags(folder: Path, load: Load) -> None:
    tags = datasets.Sequence(datasets.ClassLabel(names=list(NAMES)))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner": tags})
    rows = {"tokens": [row["tokens"] for row in ROWS], "ner": IDS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "saved"))
    assert_read(load("token-classification", "saved", validation="saved", columns={"tags": "ner"}))


def test_conll_lines_without_a_tag_are_named(folder: Path, faults: Faults) -> None:
    (folder / "rows.conll").write_text("a O\nb\n\nc B-X\nd\n")
    assert faults("token-classification", "rows.conll") == [
        "rows.conll: every line must have a word and a tag, but 2 have one cell: rows.conll:2, rows.conll:5"
    ]


def test_a_sentence_is_named_by_its_first_line(folder: Path, faults: Faults) -> None:
    (folder / "rows.conll").write_bytes("\n\na\u2028b O\nc B-X\n\n\n".encode() + b"caf\xe9 O\nd B-X\n")
    fault = faults("token-classification", "rows.conll", validation="rows.conll")[0]
    assert "1 of 2 rows are bad: rows.conll:7 (undecodable bytes)" in fault


def test_a_word_may_hold_other_white_space(folder: Path, load: Load) -> None:
    (folder / "rows.conll").write_text("10\u00a0000\tB-NUM\na\u2028b\tO\n")
    splits = load("token-classification", "rows.conll", validation="rows.conll")
    assert splits.train.inputs["tokens"] == [["10\u00a0000", "a\u2028b"]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": [], "tags": []}, "no words"),
        ({"tokens": None, "tags": ["O"]}, "no words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "an empty word"),
        ({"tokens": ["caf\udce9"], "tags": ["O"]}, "undecodable bytes"),
        ({"tokens": ["a"], "tags": None}, "missing tags"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 words"),
        ({"tokens": ["a"], "tags": [""]}, "missing label"),
    ],
)
def test_bad_rows(folder: Path, load: Load, faults: Faults, row: dict[str, object], reason: str) -> None:
    write_rows(folder / "rows.jsonl", [*ROWS, row])
    (fault,) = faults("token-classification", "rows.jsonl")
    assert f"1 of 3 rows are bad: rows.jsonl:3 ({reason}); mend them" in fault
    splits = load("token-classification", "rows.jsonl", validation="rows.jsonl", on_bad_row="drop")
    assert_read(splits)
    assert splits.notes[0] == f"train: left out 1 of 3 rows (1 {reason})"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": "two words", "tags": ["O"]}, "words must be a list of texts, but are 'two words'"),
        ({"tokens": [1, 2], "tags": ["O", "O"]}, "words must be a list of texts, but are '[1, 2]'"),
        ({"tokens": ["a"], "tags": "O"}, "tags must be a list, but are 'O'"),
        ({"tokens": ["a"], "tags": [0.5]}, "label '0.5' is neither a name nor a whole number"),
    ],
)
def test_rows_of_the_wrong_type_are_never_dropped(
    folder: Path, faults: Faults, row: dict[str, object], reason: str
) -> None:
    write_rows(folder / "rows.jsonl", [*ROWS, row])
    (fault,) = faults("token-classification", "rows.jsonl", on_bad_row="drop")
    assert f"1 of 3 rows have the wrong type: rows.jsonl:3 ({reason})" in fault


def test_tags_that_train_lacks(folder: Path, faults: Faults) -> None:
    write_rows(folder / "rows.jsonl", ROWS)
    write_rows(folder / "test.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-LOC"]}])
    (fault,) = faults("token-classification", "rows.jsonl", test="test.jsonl")
    assert fault.startswith("test.jsonl:1: data.test: train lacks the tag 'B-LOC' (1 row in test)")
    write_rows(folder / "one.jsonl", [{"tokens": ["a"], "tags": ["O"]}] * 4)
    (fault,) = faults("token-classification", "one.jsonl")
    assert "must have at least 2 classes, but all 4 rows have the tag 'O'" in fault


def sub_word_splits() -> Splits:
    # An unknown letter, a word of several sub-words, and one of which the tokenizer leaves nothing.
    words = [["hyperparametrization", "film"], ["the", "\u200b", "bank"], ["good"] * 20]
    rows = Rows({"tokens": words}, [[1, 3], [3, 0, 2], [3] * 20])
    return Splits("token-classification", rows, rows, None, None, LABEL_NAMES["token-classification"], ())


def test_the_first_sub_word_has_the_tag(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    config = DataConfig(train="train", max_length=12)
    notes = encode_splits(sub_word_splits(), TASK, bert_tokenizer, config, tmp_path)
    assert notes == [
        "train: 1 of 3 rows (33%) are cut to data.max_length 12",
        "validation: 1 of 3 rows (33%) are cut to data.max_length 12",
    ]
    data = EncodedData.open(tmp_path)
    tokens = [bert_tokenizer.convert_ids_to_tokens(data.train.ragged("input_ids", row).tolist()) for row in range(3)]
    targets = [data.train.ragged("targets", row).tolist() for row in range(3)]
    assert sum(token.startswith("##") for token in tokens[0]) >= 2
    for row, (own, found) in enumerate(zip(tokens, targets, strict=True)):
        marked = [target for token, target in zip(own, found, strict=True) if target != IGNORED]
        expected = [token for token in own if not token.startswith(("##", "["))]
        assert len(marked) == len(expected), row
        assert all(target == IGNORED for token, target in zip(own, found, strict=True) if token.startswith(("##", "[")))
    assert [target for target in targets[0] if target != IGNORED] == [1, 3]
    assert [target for target in targets[1] if target != IGNORED] == [3, 2]
    assert targets[2] == [IGNORED, *[3] * 10, IGNORED]
    assert data.train.target_counts.tolist() == [2, 2, 10]

    batch = collated(data, data.train, [2, 1])
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 12)
    assert batch["labels"][0].tolist() == targets[2]
    assert batch["labels"][1].tolist() == targets[1] + [IGNORED] * (12 - len(targets[1]))
    assert TASK.row_weights(data.train, data).tolist() == [2, 2, 10]


def test_rows_without_a_token_are_refused(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Rows({"tokens": [["\u200b"], ["good"]]}, [[0], [1]])
    splits = Splits("token-classification", rows, rows, None, None, LABEL_NAMES["token-classification"], ())
    with pytest.raises(DataError, match="train: 1 of 2 texts have no tokens"):
        encode_splits(splits, TASK, bert_tokenizer, DataConfig(train="train"), tmp_path)


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    class Slow(BertTokenizer):  # type: ignore[misc]
        is_fast = False

    slow = Slow(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    with pytest.raises(ModelError, match="must come with a fast tokenizer for token-classification"):
        TASK.facts(slow, DataConfig(train="train"), splits_of("token-classification").train)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_over_words(data: EncodedData, smoothing: float) -> None:
    labels = collated(data, data.train, [0, 1, 2])["labels"]
    logits = torch.randn(*labels.shape, 4, generator=torch.Generator().manual_seed(0))
    tagged = labels != IGNORED
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")(logits[tagged], labels[tagged])
    assert loss_of(data, logits, labels, label_smoothing=smoothing) == pytest.approx(float(expected), rel=1e-5)


def test_metrics_are_seqevals(data: EncodedData) -> None:
    split, names = data.validation, data.label_names
    labels = collated(data, split, list(range(len(split))))["labels"]
    assert TASK.output_size(data) == 1 + max(int(data.train.lengths.max()), int(split.lengths.max()))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(*labels.shape, 4, generator=generator)
        logits += 2 * seed * torch.nn.functional.one_hot(labels.clamp(min=0), 4)
        outputs = np.zeros((len(split), TASK.output_size(data)), dtype=np.float32)
        found = TASK.outputs(logits, labels).numpy()
        outputs[:, : found.shape[1]] = found
        metrics = TASK.metrics(outputs, split, data)
        assert tuple(metrics) == TASK_RULES["token-classification"].metrics

        words = [row != IGNORED for row in labels]
        true = [[names[tag] for tag in row[own]] for row, own in zip(labels, words, strict=True)]
        predicted = [[names[tag] for tag in row.argmax(-1)[own]] for row, own in zip(logits, words, strict=True)]
        assert metrics["f1"] == pytest.approx(f1_score(true, predicted))
        assert metrics["precision"] == pytest.approx(precision_score(true, predicted))
        assert metrics["recall"] == pytest.approx(recall_score(true, predicted))
        flat_true, flat_predicted = np.concatenate(true), np.concatenate(predicted)
        assert metrics["accuracy"] == pytest.approx((flat_true == flat_predicted).mean())
        every = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        assert metrics["loss"] == pytest.approx(float(every), rel=1e-5)
        counts = confusion_matrix(flat_true, flat_predicted, labels=names)
        assert TASK.confusion(outputs, split, data).tolist() == counts.tolist()  # type: ignore[union-attr]


KINDS = ["O"] + [f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "A-B")]
BARE = ["PER", "LOC", "ORG", "B", "I", "X", "0", "1", "12", ".", ".-PER", "é"]


def test_entities_are_seqevals() -> None:
    draw = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of tags without a prefix
        for _ in range(5000):
            names = draw.sample(KINDS, draw.randint(2, len(KINDS))) + draw.sample(BARE, draw.choice([0, 0, 4]))
            tags = draw.choices(names, k=draw.randint(0, 12))
            assert entities(tags) == set(get_entities(tags)), tags


def test_without_any_entity_scores_are_0(data: EncodedData) -> None:
    split = data.validation
    outputs = np.full((len(split), TASK.output_size(data)), 3, dtype=np.float32)  # all of them O
    metrics = TASK.metrics(outputs, split, data)
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == 0.0
    assert metrics["accuracy"] > 0

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerBase

from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.splits import Splits
from rayft.errors import DataError, RunError
from rayft.tasks import texts as text_tasks
from tests.texts import encode_texts, text_rows, text_splits

TEXTS = [
    "A first text.",
    "another one, a longer text of more words than the others",
    "short",
    "Ünïcode \U0001f600 text",
]
PAIRS = ["and its pair", "with another", "words " * 40, "end"]


def splits_of(texts: list[str], pairs: list[str] | None = None, unlabeled: list[str] | None = None) -> Splits:
    labels = np.arange(len(texts)) % 2
    rows = text_rows(texts, pairs, labels)
    extra = None if unlabeled is None else text_rows(unlabeled)
    validation = text_rows(texts[::-1], pairs and pairs[::-1], labels)
    return text_splits(rows, validation, None, extra, ("no", "yes"))


def ids_of(split: EncodedSplit) -> list[list[int]]:
    return [split.ragged("input_ids", row).tolist() for row in range(len(split))]


def test_what_the_tokenizer_says_comes_back(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    encode_texts(splits_of(TEXTS, unlabeled=["only text"]), bert_tokenizer, 12, tmp_path / "encoded")
    data = EncodedData.open(tmp_path / "encoded")
    expected = bert_tokenizer(TEXTS, truncation=True, max_length=12)
    assert ids_of(data.train) == expected["input_ids"]
    assert ids_of(data.validation) == expected["input_ids"][::-1]
    assert data.train.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.label_names == ("no", "yes")
    assert data.test is None
    assert data.unlabeled is not None
    assert (data.unlabeled.labels, data.unlabeled.name, len(data.unlabeled)) == (None, "unlabeled", 1)


def test_pairs_with_token_types(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    encode_texts(splits_of(TEXTS, PAIRS), bert_tokenizer, 16, tmp_path)
    train = EncodedData.open(tmp_path).train
    expected = bert_tokenizer(TEXTS, PAIRS, truncation=True, max_length=16)
    assert ids_of(train) == expected["input_ids"]
    assert [train.ragged("token_type_ids", row).tolist() for row in range(len(train))] == expected["token_type_ids"]
    raw = pa.ipc.open_file(str(tmp_path / "raw/validation.arrow")).read_all()
    assert raw.to_pydict() == {"text": TEXTS[::-1], "text_pair": PAIRS[::-1], "label": [0, 1, 0, 1]}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["splits"]["train"]["truncated"] == 2
    assert manifest["splits"]["train"]["columns"] == ["input_ids", "token_type_ids", "label"]


def test_a_tokenizer_without_token_types(tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase) -> None:
    encode_texts(splits_of(["one two", "three"]), bare_tokenizer, 8, tmp_path)
    train = EncodedData.open(tmp_path).train
    assert train.columns == ("input_ids", "label")
    assert ids_of(train) == [[1, 2], [3]]


def test_truncated_rows_are_those_that_lose_tokens(tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase) -> None:
    encode_texts(splits_of(["one two three four", "one two three four five", "one"]), bare_tokenizer, 4, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["splits"]["train"] == {
        "columns": ["input_ids", "label"],
        "rows": 3,
        "tokens": 9,
        "truncated": 1,
        "classes": {"no": 2, "yes": 1},
    }
    assert (manifest["max_length"], manifest["label_names"]) == (4, ["no", "yes"])


def test_rows_of_several_record_batches(
    tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tasks, "ROWS_PER_BATCH", 3)
    texts = [" ".join(["one", "two", "three"][: n % 3 + 1]) for n in range(8)]
    encode_texts(splits_of(texts), bare_tokenizer, 8, tmp_path)
    monkeypatch.undo()  # a reader takes the size from the file
    train = EncodedData.open(tmp_path).train
    assert ids_of(train) == [[1, 2, 3][: n % 3 + 1] for n in range(8)]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1] * 4


def test_rows_are_views_of_the_file(tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase) -> None:
    encode_texts(splits_of(["one two", "three"] * 500), bare_tokenizer, 8, tmp_path)
    before = pa.total_allocated_bytes()
    train = EncodedData.open(tmp_path).train
    ids = [train.ragged("input_ids", row) for row in range(len(train))]
    assert all(not row.flags.owndata and not row.flags.writeable for row in ids)
    assert pa.total_allocated_bytes() - before < 1000  # 1500 tokens alone would be 6000 bytes


def test_rows_without_a_token_are_refused(tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"train: 1 of 2 texts have no tokens: '\\u200b'") as caught:
        encode_texts(splits_of(["one", "\u200b"]), bare_tokenizer, 8, tmp_path)
    assert len(caught.value.faults) == 2
    with pytest.raises(RunError, match="unfinished"):
        EncodedData.open(tmp_path)


def test_encoding_again_replaces_and_an_interruption_leaves_it_unfinished(
    tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase
) -> None:
    encode_texts(splits_of(["one", "two"]), bare_tokenizer, 8, tmp_path)
    encode_texts(splits_of(["three", "four"]), bare_tokenizer, 8, tmp_path)
    assert ids_of(EncodedData.open(tmp_path).train) == [[3], [4]]
    assert not list(tmp_path.glob("*.tmp"))

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_texts(splits_of(["five", "one"]), interrupted, 8, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"unfinished, it has no manifest\.json"):
        EncodedData.open(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "short", "swapped", "manifest"])
def test_damaged_files_are_refused(tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase, damage: str) -> None:
    encode_texts(splits_of(["one", "two", "three"], unlabeled=["one"]), bare_tokenizer, 8, tmp_path)
    file = tmp_path / "train.arrow"
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "swapped":
        (tmp_path / "unlabeled.arrow").replace(file)
    else:
        file = tmp_path / "manifest.json"
        file.write_text("{")
    with pytest.raises(RunError) as caught:
        EncodedData.open(tmp_path)
    assert caught.value.faults[0].where == str(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Invalid JSON"),
        ('{"task": "regre', "Invalid JSON"),
        ("{}", "task: Field required"),
        ("[1]", "should be an object"),
    ],
)
def test_a_damaged_manifest_is_named(
    tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase, text: str, words: str
) -> None:
    encode_texts(splits_of(["one", "two"]), bare_tokenizer, 8, tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json: is damaged: .*" + words):
        EncodedData.open(tmp_path)


def test_a_manifest_without_a_split_that_every_sweep_has_is_refused(
    tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase
) -> None:
    encode_texts(splits_of(["one", "two"]), bare_tokenizer, 8, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["splits"]["validation"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="must have the splits train and validation"):
        EncodedData.open(tmp_path)

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayft.data.labels import class_names
from tests.data.conftest import TRAIN, Load

Faults = Callable[..., list[str]]


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


BAD = TRAIN.encode() + b" ,good\nfine,\ncaf\xe9,bad\nfine too,bad\n,\n,good\n,good\n,good\n"


def test_bad_rows_stop_with_the_count_and_the_first_five_places(files: Path, faults: Faults) -> None:
    write(files / "train.csv", BAD)
    assert faults() == [
        "train.csv: data.train: 7 of 20 rows are bad: train.csv:14 (empty text), train.csv:15 (missing label), "
        "train.csv:16 (undecodable bytes), train.csv:18 (empty text), train.csv:19 (empty text), ...; "
        "mend them, or leave them out with data.on_bad_row: drop"
    ]


def test_bad_rows_are_left_out_on_request(files: Path, load: Load) -> None:
    write(files / "train.csv", BAD)
    splits = load(on_bad_row="drop")
    assert len(splits.train) == 13
    assert splits.train.inputs["text"][-1] == "fine too"
    assert splits.notes == ("train: left out 7 of 20 rows (5 empty text, 1 missing label, 1 undecodable bytes)",)


def test_nothing_left_after_dropping(files: Path, faults: Faults) -> None:
    write(files / "validation.csv", "text,label\n,good\na,\n")
    assert faults(on_bad_row="drop") == ["validation.csv: data.validation: no row is left, all 2 are bad"]


def test_faults_of_all_files_at_once(files: Path, faults: Faults) -> None:
    write(files / "broken.jsonl", "{\n")
    write(files / "odd.csv", "text,label\n,good\nwell,goood\nbetter,goood\n")
    write(files / "empty.csv", "")
    found = faults(train=["train.csv", "missing.csv"], validation="broken.jsonl", test="odd.csv", unlabeled="empty.csv")
    assert [message.split(": ")[0] for message in found] == ["missing.csv", "broken.jsonl", "odd.csv", "empty.csv"]
    found = faults(validation="empty.csv", test="odd.csv")
    assert found[0] == "empty.csv: is empty"
    assert found[1].startswith("odd.csv: data.test: 1 of 3 rows are bad: odd.csv:2 (empty text)")
    assert found[2] == (
        "odd.csv:3: data.test: train lacks the label 'goood' (2 rows in test); did you mean 'good'? "
        "train has 'bad', 'good'"
    )
    assert len(found) == 3


def test_a_header_without_rows(files: Path, faults: Faults) -> None:
    write(files / "validation.csv", "text,label\n")
    assert faults() == ["validation.csv: has no rows"]


def test_missing_columns_list_those_there_are_nearest_first(files: Path, faults: Faults) -> None:
    write(files / "train.csv", "id,sentence,Labels\n1,a,x\n2,b,y\n")
    assert faults() == [
        "train.csv: data.columns: there is no column 'text', nearest first there are 'sentence', 'Labels', 'id'",
        "train.csv: data.columns: there is no column 'label', nearest first there are 'Labels', 'sentence', 'id'",
    ]


def test_columns_that_are_named_twice(faults: Faults) -> None:
    assert faults(columns={"text": ["text", "text"]})[0] == (
        "data.columns: must be different columns, but 'text' is named twice"
    )
    assert faults(columns={"label": "text"}) == ["data.columns: must be different columns, but 'text' is named twice"]


@pytest.mark.parametrize(
    "content",
    [
        '{"text": 1, "label": "x"}\n{"text": 2.5, "label": "y"}\n',
        '{"text": "1", "label": "x"}\n{"text": "-2e3", "label": "y"}\n',
    ],
)
def test_a_text_column_of_numbers(files: Path, faults: Faults, content: str) -> None:
    write(files / "train.jsonl", content)
    (message,) = faults(train="train.jsonl")
    assert message.startswith(
        "train.jsonl: data.columns: the text column 'text' must hold text, but every cell is a number"
    )


def test_one_number_among_texts_is_text(files: Path, load: Load) -> None:
    write(files / "train.csv", "text,label\n42,good\nfine,bad\n")
    assert load().train.inputs["text"] == ["42", "fine"]


def test_wrong_types_are_never_dropped(files: Path, faults: Faults) -> None:
    write(
        files / "train.jsonl",
        '{"text": ["a"], "label": "good"}\n{"text": "b", "label": 0.5}\n{"text": "c", "label": "good"}\n',
    )
    assert faults(train="train.jsonl", on_bad_row="drop")[0] == (
        "train.jsonl: data.train: 2 of 3 rows have the wrong type: train.jsonl:1 (text is not a string, but list), "
        "train.jsonl:2 (label '0.5' is neither a name nor a whole number)"
    )


def test_a_lone_surrogate_in_json_is_undecodable(files: Path, faults: Faults) -> None:
    write(
        files / "validation.jsonl",
        '{"text": "a \\ud83d", "label": "good"}\n{"text": "a \\ud83d\\ude00", "label": "bad"}\n',
    )
    (message,) = faults(validation="validation.jsonl")
    assert "1 of 2 rows are bad: validation.jsonl:1 (undecodable bytes)" in message


def test_one_class_only(files: Path, faults: Faults) -> None:
    write(files / "train.csv", "text,label\na,good\nb,good\n")
    found = faults()
    assert found[0] == "train.csv: data.train: must have at least 2 classes, but all 2 rows have the label 'good'"
    assert found[1].startswith("validation.csv:3: data.validation: train lacks the label 'bad'")


def test_many_unknown_labels_fit_on_a_screen(files: Path, faults: Faults) -> None:
    write(files / "validation.csv", "text,label\n" + "".join(f"a,{n}\n" for n in range(40)))
    found = faults()
    assert len(found) == 6
    assert found[4].startswith("validation.csv:6: data.validation: train lacks the label '4' (1 row in validation);")
    assert found[5] == "validation.csv: data.validation: train lacks 35 more of its labels"


def test_labels_are_not_compared_where_train_is_incomplete(files: Path, faults: Faults) -> None:
    write(files / "train.csv", "text,label\na,good\nb,good\n")
    assert len(faults(train=["train.csv", "missing.csv"])) == 1


def test_unlabeled_rows_need_no_label(files: Path, load: Load) -> None:
    write(files / "more.csv", "text\nsome\nmore\n")
    unlabeled = load(unlabeled="more.csv").unlabeled
    assert unlabeled is not None
    assert (unlabeled.inputs["text"], unlabeled.labels) == (["some", "more"], None)


def test_labels_of_every_type_become_names(files: Path, load: Load) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [10.0, 9.0, 10.0]}), files / "train.parquet")
    write(files / "validation.jsonl", '{"text": "d", "label": 9}\n{"text": "e", "label": " 10 "}\n')
    splits = load(train="train.parquet", validation="validation.jsonl")
    assert splits.label_names == ("9", "10")
    assert splits.train.labels is not None and splits.validation.labels is not None
    assert splits.train.labels.tolist() == [1, 0, 1]
    assert splits.validation.labels.tolist() == [0, 1]


def test_true_and_false_are_names_too(files: Path, load: Load) -> None:
    write(files / "train.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert load(train="train.jsonl", validation="train.jsonl").label_names == ("False", "True")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "-1.5", "9"], ("-1.5", "9", "10")),
        (["b", "10", "9", "a"], ("10", "9", "a", "b")),
        (["nan", "1"], ("1", "nan")),
    ],
)
def test_label_order(labels: list[str], names: tuple[str, ...]) -> None:
    assert class_names(labels) == names

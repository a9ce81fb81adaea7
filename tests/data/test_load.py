from pathlib import Path

import datasets
import pytest

from rayft.data.load import SplitName, read_source, source_name
from tests.texts import TEXTS

WANTED = ("text", "label")


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text,label\nfrom {path.stem},x\n", encoding="utf-8")


def texts(source: str | list[str], split: SplitName = "train") -> list[str]:
    parts, faults = read_source(source, split, WANTED, TEXTS)
    assert not faults
    return [text for part in parts for text in part.cells["text"]]


def messages(source: str | list[str], split: SplitName = "train") -> list[str]:
    return [str(fault) for fault in read_source(source, split, WANTED, TEXTS)[1]]


def test_a_file_relative_to_the_working_directory_or_absolute(folder: Path) -> None:
    write(folder, "a.csv")
    assert texts("a.csv") == texts(str(folder / "a.csv")) == ["from a"]


def test_globs_are_sorted_and_lists_keep_their_order(folder: Path) -> None:
    write(folder, "part-2.csv", "part-10.csv", "part-1.csv", "z.csv")
    assert texts("part-*.csv") == ["from part-1", "from part-10", "from part-2"]
    assert texts(["z.csv", str(folder / "part-1*.csv")]) == ["from z", "from part-1", "from part-10"]


def test_a_file_that_is_named_twice_is_read_once(folder: Path) -> None:
    write(folder, "a.csv", "b.csv")
    assert texts(["b.csv", "*.csv", "b.csv"]) == ["from b", "from a"]


def test_a_file_whose_name_looks_like_a_glob(folder: Path) -> None:
    write(folder, "a[1].csv")
    assert texts("a[1].csv") == ["from a[1]"]


def test_every_missing_file_is_told_and_the_others_are_read(folder: Path) -> None:
    write(folder, "train.csv")
    parts, faults = read_source(["tarin.csv", "train.csv", "none/a.csv", "*.tsv"], "train", WANTED, TEXTS)
    assert [part.name for part in parts] == ["train.csv"]
    assert [str(fault) for fault in faults] == [
        "tarin.csv: data.train: there is no such file; did you mean train.csv?",
        f"none/a.csv: data.train: there is no folder none, seen from {folder}",
        f"*.tsv: data.train: no file matches, seen from {folder}",
    ]


def test_an_empty_list_and_an_empty_name(folder: Path) -> None:
    assert messages([]) == messages("") == ["data.train: must name a file, a glob, a saved dataset folder or hub:NAME"]


def test_a_folder_that_is_no_saved_dataset(folder: Path) -> None:
    write(folder, "files/a.csv")
    (message,) = messages("files")
    assert message.startswith("files: data.train: a folder must be one that datasets' save_to_disk wrote")
    assert "files/*.csv" in message


@pytest.fixture
def saved(folder: Path) -> Path:
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")})

    def split(name: str) -> datasets.Dataset:
        rows = {"text": [f"{name} 0", f"{name} 1", f"{name} 2"], "label": [1, -1, 0], "idx": [0, 1, 2]}
        return datasets.Dataset.from_dict(rows, features=features)

    data = datasets.DatasetDict({name: split(name) for name in ("train", "validation")})
    data.save_to_disk(folder / "both")
    data["train"].select([2, 0]).save_to_disk(folder / "one")
    return folder


def test_a_saved_dataset_with_class_names(saved: Path) -> None:
    (part,), faults = read_source("both", "validation", WANTED, TEXTS)
    assert not faults
    assert part.cells == {"text": ["validation 0", "validation 1", "validation 2"], "label": ["pos", None, "neg"]}
    assert part.place(0) == "both validation row 1"
    assert part.available == ("text", "label", "idx")


def test_a_saved_dataset_of_one_split_keeps_its_selection(saved: Path) -> None:
    assert texts("one", "test") == ["train 2", "train 0"]


def test_a_saved_dataset_without_the_split(saved: Path) -> None:
    assert messages("both", "test") == ["both: data.test: must have a split test, but has train, validation"]
    assert texts("both", "unlabeled") == ["train 0", "train 1", "train 2"]


def test_a_damaged_saved_dataset(saved: Path) -> None:
    for file in (saved / "one").glob("*.arrow"):
        file.write_bytes(b"nothing")
    (message,) = messages("one")
    assert message.startswith("one: can't be read as a saved data set")


def test_hub_names_go_through_load_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    write(folder, "hub/train.csv", "hub/test.csv")
    assert texts(f"hub:{folder / 'hub'}", "train") == ["from train"]
    assert texts(f"hub:{folder / 'hub'}:default", "test") == ["from test"]
    (message,) = messages(f"hub:{folder / 'hub'}:other", "test")
    assert message.startswith(f"hub:{folder / 'hub'}:other: data.test: can't be loaded")
    assert "default" in message


def test_a_hub_name_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (message,) = messages("hub:nobody/nothing-at-all")
    assert message.startswith("hub:nobody/nothing-at-all: data.train: can't be loaded")


def test_source_names() -> None:
    assert source_name("a.csv") == source_name(["a.csv"]) == "a.csv"
    assert source_name(["a.csv", "b.csv", "c.csv"]) == "a.csv and 2 more"

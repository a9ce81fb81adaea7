from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rayft.data.splits import Rows, stratify
from tests.data.conftest import Load

Faults = Callable[..., list[str]]


def test_files_as_they_are(load: Load) -> None:
    splits = load()
    assert (len(splits.train), len(splits.validation), splits.test, splits.unlabeled) == (12, 2, None, None)
    assert splits.train.inputs["text"][:2] == ["text 0 is good", "text 0 is bad"]
    assert splits.label_names == ("bad", "good")
    assert splits.train.labels is not None
    assert splits.train.labels.dtype == np.int64
    assert splits.train.labels.tolist() == [1, 0] * 6
    assert splits.notes == ()
    assert list(splits.present()) == ["train", "validation"]


def test_fractions_are_of_the_whole_train_file(load: Load) -> None:
    splits = load(validation=0.34, test=0.17)
    assert splits.test is not None
    for rows, per_class in ((splits.train, 3), (splits.validation, 2), (splits.test, 1)):
        assert rows.labels is not None
        assert Counter(rows.labels.tolist()) == {0: per_class, 1: per_class}
        assert [text.endswith("good") for text in rows.inputs["text"]] == rows.labels.astype(bool).tolist()
    every = splits.train.inputs["text"] + splits.validation.inputs["text"] + splits.test.inputs["text"]
    assert sorted(every) == sorted(load().train.inputs["text"])


def test_the_same_validation_with_and_without_a_test_fraction(load: Load) -> None:
    assert load(validation=0.3).validation.inputs["text"] == load(validation=0.3, test=0.2).validation.inputs["text"]


def test_a_validation_file_and_a_test_fraction(load: Load) -> None:
    splits = load(test=0.17)
    assert splits.test is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 2, 2)


def test_pairs(files: Path, load: Load) -> None:
    (files / "pairs.csv").write_text(
        "a,b,label\n" + "".join(f"a{n},b{n},{n % 2}\n" for n in range(8)), encoding="utf-8"
    )
    splits = load(train="pairs.csv", validation=0.25, columns={"text": ["a", "b"]})
    for rows in (splits.train, splits.validation):
        assert rows.inputs["text_pair"] == [text.replace("a", "b") for text in rows.inputs["text"]]
    assert (len(splits.train), len(splits.validation)) == (6, 2)


def test_stratify_is_a_partition_by_class_and_seed() -> None:
    labels = np.random.default_rng(7).choice(3, size=1000, p=[0.7, 0.25, 0.05])
    chosen = stratify(labels, {"validation": 0.2, "test": 0.1}, seed=3)
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(1000))
    for split, fraction in (("validation", 0.2), ("test", 0.1)):
        shares = np.bincount(labels[chosen[split]]) / np.bincount(labels)
        assert shares == pytest.approx([fraction] * 3, abs=0.011)
    again = stratify(labels, {"validation": 0.2, "test": 0.1}, seed=3)
    other = stratify(labels, {"validation": 0.2, "test": 0.1}, seed=4)
    assert all(np.array_equal(chosen[split], again[split]) for split in chosen)
    assert not np.array_equal(chosen["validation"], other["validation"])


def test_which_rows_a_seed_holds_out_never_changes() -> None:
    """A resumed or repeated sweep on another machine must see the same split."""
    chosen = stratify(np.arange(20) % 2, {"validation": 0.3}, seed=0)
    assert chosen["validation"].tolist() == [4, 5, 7, 8, 12, 19]


def test_a_fraction_too_small_for_a_class(files: Path, faults: Faults) -> None:
    (files / "train.csv").write_text("text,label\n" + "a,x\n" * 20 + "b,y\n" * 3 + "c,z\n", encoding="utf-8")
    assert faults(validation=0.15) == [
        "train.csv: data.validation: 0.15 holds out no row of 'y' (3 rows), 'z' (1 row); "
        "at this fraction every class needs at least 4 rows"
    ]


def test_fractions_that_leave_nothing_to_train_on(files: Path, faults: Faults) -> None:
    (files / "train.csv").write_text("text,label\n" + "a,x\n" * 20 + "b,y\n" * 2, encoding="utf-8")
    assert faults(validation=0.5, test=0.3) == [
        "train.csv: data.validation: 0.5 and 0.3 leaves no row to train on of 'y' (2 rows)"
    ]


def test_fractions_that_sum_to_one(faults: Faults) -> None:
    assert faults(validation=0.5, test=0.5) == [
        "train.csv: data.validation: the fractions must sum to less than 1, but got 0.5 + 0.5"
    ]


def test_duplicates_across_splits_are_a_note(files: Path, load: Load) -> None:
    (files / "validation.csv").write_text("text,label\ntext 1 is bad,bad\nnew,good\nnew,bad\n", encoding="utf-8")
    (files / "test.csv").write_text("text,label\ntext 0 is bad,good\nnew,good\nnewer,bad\n", encoding="utf-8")
    assert load(test="test.csv").notes == (
        "validation: 1 of 3 rows are exact duplicates of rows in train",
        "test: 1 of 3 rows are exact duplicates of rows in train",
        "test: 1 of 3 rows are exact duplicates of rows in validation",
    )


def test_pairs_are_duplicates_only_as_a_whole(files: Path, load: Load) -> None:
    (files / "train.csv").write_text("a,b,label\nx,y,0\nx,z,1\n", encoding="utf-8")
    (files / "validation.csv").write_text("a,b,label\nx,z,0\nx,w,1\ny,x,0\n", encoding="utf-8")
    assert load(columns={"text": ["a", "b"]}).notes == (
        "validation: 1 of 3 rows are exact duplicates of rows in train",
    )


def test_rows_have_a_length() -> None:
    assert len(Rows({"text": ["a", "b"]}, None)) == 2


def test_many_small_strata_give_their_share_together() -> None:
    strata = np.repeat(np.arange(100), 2)
    chosen = stratify(strata, {"validation": 0.1, "test": 0.1}, seed=3, each=False)
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(200))
    assert [len(chosen[split]) for split in ("train", "validation", "test")] == [160, 20, 20]  # type: ignore[index]
    assert len(stratify(strata, {"validation": 0.1}, seed=3)["validation"]) == 0, "of each by itself that is 0.2 rows"
    alone = stratify(strata, {"validation": 0.1}, seed=3, each=False)["validation"]
    assert alone.tolist() == chosen["validation"].tolist()
    assert len(set(strata[alone])) == 20, "of 20 strata one each"

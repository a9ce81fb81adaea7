import random
from pathlib import Path

import numpy as np
import pytest

from rayft.data.load import SplitName
from rayft.data.quality import _signature, class_counts, quality_notes
from rayft.data.splits import Rows

NAMES = ("a", "b")
WORDS = [f"word{number}" for number in range(500)]


def rows(*texts: str, labels: list[int] | None = None) -> Rows:
    return Rows({"text": list(texts)}, np.array(labels if labels is not None else [n % 2 for n in range(len(texts))]))


def notes(train: Rows, validation: Rows | None = None, test: Rows | None = None) -> list[str]:
    given = {"train": train, "validation": validation, "test": test}
    splits: dict[SplitName, Rows] = {name: own for name, own in given.items() if own is not None}  # type: ignore[misc]
    return quality_notes(splits, NAMES)


def texts(count: int, length: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


def test_sound_data_has_no_notes() -> None:
    found = texts(30, 8)
    assert notes(rows(*found[:20]), rows(*found[20:25]), rows(*found[25:])) == []


def test_repeats_within_and_across_splits() -> None:
    one, two, three = texts(3, 8)
    found = notes(rows(one, two, one, two, one, labels=[0, 1, 0, 1, 0]), rows(one, three, one), rows(three, two))
    assert found == [
        "train: 3 of 5 rows are exact duplicates of others in it",
        "validation: 2 of 3 rows are exact duplicates of rows in train",
        "test: 1 of 2 rows are exact duplicates of rows in train",
        "test: 1 of 2 rows are exact duplicates of rows in validation",
    ]


def test_texts_that_differ_by_a_word_are_nearly_the_same() -> None:
    (text,), others = texts(1, 40), texts(10, 40, seed=1)
    near = " ".join(["another", *text.split()[1:]])
    train = rows(text, *others)
    assert notes(train, rows(near, *texts(3, 40, seed=2))) == [
        "validation: 1 of 4 texts are nearly the same as one in train, so their score says less about new texts"
    ]
    assert notes(train, rows(text.upper() + "!", *texts(1, 40, seed=2)))[0].startswith("validation: 1 of 2 texts")
    reversed_text = " ".join(reversed(text.split()))
    assert notes(train, rows(reversed_text, *texts(1, 40, seed=2))) == [], "the same words in another order"
    both = notes(train, rows(near, others[0][:-1]), rows(near, others[1][:-1], "x"))
    assert [note.split(" texts")[0] for note in both if "nearly" in note] == ["validation: 2 of 2", "test: 2 of 3"]


@pytest.mark.parametrize("shared", [0.3, 0.6, 0.9])
def test_signatures_estimate_jaccard_similarity(shared: float) -> None:
    estimates = []
    for seed in range(20):
        (text,) = texts(1, 200, seed=seed)
        words = text.split()
        (other,) = texts(1, 200, seed=1000 + seed)
        count = int(200 * shared)
        mixed = " ".join([*words[:count], *other.split()[count:]])
        estimates.append(float((_signature(text) == _signature(mixed)).mean()))
    # Of 200 pairs each, `shared` times 200 are common.
    assert np.mean(estimates) == pytest.approx(shared / (2 - shared), abs=0.05)


def test_texts_without_words_have_signatures() -> None:
    assert notes(rows("!!", "??", "…", "--"), rows("!?", "::")) == []
    assert notes(rows("one", "two"), rows("One!", "three"))[0].startswith("validation: 1 of 2 texts are nearly")


def test_images_are_compared_by_their_content(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    train = Rows({"image": [tmp_path / "a", tmp_path / "b", b"2"]}, np.array([0, 1, 1]))
    assert notes(train, Rows({"image": [tmp_path / "c"]}, np.array([1]))) == [
        "train: 1 of 3 rows are exact duplicates of others in it",
        "validation: 1 of 1 rows are exact duplicates of rows in train",
        f"train: 1 input with contradictory labels: {str(tmp_path / 'a')[:40] + '...'!r} as a and b",
    ]
    assert "contradictory labels: 'an image' as a and b" in notes(Rows({"image": [b"1", b"1"]}, np.array([0, 1])))[-1]


def test_contradictory_labels() -> None:
    conflicts = [f"text {number}" for number in range(5) for _ in range(2)]
    found = notes(rows(*conflicts))
    assert found[-1] == (
        "train: 5 inputs with contradictory labels: 'text 0' as a and b; 'text 1' as a and b; 'text 2' as a and b, ..."
    )
    several = Rows({"text": ["x", "x", "y"]}, np.array([[1, 0], [1, 1], [0, 0]], dtype=np.float32))
    assert notes(several)[1] == "train: 1 input with contradictory labels: 'x' as a and a, b"
    numbers = Rows({"text": ["x", "x"]}, np.array([1.5, 2], dtype=np.float32))
    assert quality_notes({"train": numbers}, ())[-1].endswith("'x' as 1.5 and 2")
    tagged = Rows({"tokens": [["x", "y"], ["x", "y"]]}, [[0, 1], [1, 1]])
    assert notes(tagged)[-2].endswith("'x y' as a b and b b")
    assert quality_notes({"train": Rows({"text": ["x", "x"]}, None)}, ()) == [
        "train: 1 of 2 rows are exact duplicates of others in it"
    ]


@pytest.mark.parametrize(("most", "is_noted"), [(19, False), (20, True)])
def test_classes_of_unlike_size(most: int, is_noted: bool) -> None:
    found = notes(rows(*texts(most + 2, 8), labels=[0] * most + [1] * 2))
    note = (
        f"train: 'a' has {most} rows and 'b' 2; data.class_weights: balanced gives both the same weight, "
        "and macro_f1 counts them alike"
    )
    assert found == ([note] if is_noted else [])


def test_counts_of_classes() -> None:
    assert class_counts(np.array([1, 1, 0]), ("a", "b", "c")) == [1, 2, 0]
    assert class_counts(np.array([[1, 0], [1, 1]], dtype=np.float32), NAMES) == [2, 1]
    assert class_counts([[0, 1, 1], [1]], NAMES) == [1, 3]


def test_tags_that_are_no_spans() -> None:
    train = Rows({"tokens": [["a", "b"], ["c"]]}, [[0, 1], [0]])
    assert quality_notes({"train": train}, ("B-PER", "O")) == []
    (note,) = quality_notes({"train": train}, ("NOUN", "VERB"))
    assert note.startswith("train: no tag begins with B- or I-") and note.endswith(
        "search.metric: accuracy counts words"
    )

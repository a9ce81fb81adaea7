import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from rayft.models.prefix_files import DISK_RESERVE, FeatureShape, NoCacheError, NoRoomError, PrefixFeatures, PrefixStore

LENGTHS = np.array([3, 1, 5, 2])
TOKENS = int(LENGTHS.sum())
ALL = np.arange(len(LENGTHS))
ENTRY = FeatureShape(depth=1, tokens=TOKENS, hidden_size=4, dtype=torch.float32).bytes


def values(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Padded with ones, which must not be kept."""
    hidden = torch.randn(len(LENGTHS), 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.where(torch.arange(5)[:, None] < torch.from_numpy(LENGTHS)[:, None, None], hidden, 1.0)


def write(store: PrefixStore, name: str, dtype: torch.dtype = torch.float32) -> None:
    with store.writing(name, FeatureShape(1, TOKENS, 4, dtype), LENGTHS) as writer:
        writer.write(ALL[2:], values(dtype)[2:])
        writer.write(ALL[:2], values(dtype)[:2])


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    folder = tmp_path / "cache"
    folder.mkdir()
    return PrefixStore(folder, budget_bytes=3 * ENTRY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_back_padded_with_zeros(store: PrefixStore, dtype: torch.dtype) -> None:
    write(store, "entry", dtype)
    features = store.open("entry", LENGTHS)
    assert features is not None and features.depth == 1
    rows = np.array([3, 0, 3])
    found = features.batch(rows, length=4)
    assert found.dtype == dtype and found.shape == (3, 4, 4)
    for place, row in zip(found, rows, strict=True):
        assert torch.equal(place[: LENGTHS[row]], values(dtype)[row, : LENGTHS[row]])
        assert not place[LENGTHS[row] :].any()


def test_the_file_is_raw_and_ragged(store: PrefixStore, tmp_path: Path) -> None:
    write(store, "entry", torch.bfloat16)
    entry = tmp_path / "cache" / "entry"
    assert {path.name for path in entry.iterdir()} == {"values.bin", "manifest.json"}
    assert (entry / "values.bin").stat().st_size == TOKENS * 4 * 2
    assert json.loads((entry / "manifest.json").read_text()) == {
        "format": 2,
        "row": None,
        "depth": 1,
        "tokens": TOKENS,
        "hidden_size": 4,
        "dtype": "bfloat16",
        "bytes": TOKENS * 4 * 2,
    }


def test_a_folder_of_its_own_is_private(tmp_path: Path) -> None:
    PrefixStore(tmp_path / "new", ENTRY).lock("entry")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_what_is_not_there_is_none(store: PrefixStore) -> None:
    assert store.open("entry", LENGTHS) is None


@pytest.mark.parametrize("size", [0, ENTRY - 1, ENTRY + 1])
def test_a_file_of_another_size_is_none(store: PrefixStore, tmp_path: Path, size: int) -> None:
    write(store, "entry")
    os.truncate(tmp_path / "cache" / "entry" / "values.bin", size)
    assert store.open("entry", LENGTHS) is None
    write(store, "entry")
    assert store.open("entry", LENGTHS) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 0}', None])
def test_a_damaged_manifest_is_none(store: PrefixStore, tmp_path: Path, text: str | None) -> None:
    write(store, "entry")
    manifest = tmp_path / "cache" / "entry" / "manifest.json"
    changed = json.dumps(json.loads(manifest.read_text()) | {"format": 0})
    manifest.write_text(changed if text is None else text)
    assert store.open("entry", LENGTHS) is None


def test_values_of_other_rows_are_none(store: PrefixStore) -> None:
    write(store, "entry")
    assert store.open("entry", LENGTHS[:-1]) is None


def test_nothing_is_left_of_an_unfinished_entry(store: PrefixStore, tmp_path: Path) -> None:
    shape = FeatureShape(1, TOKENS, 4, torch.float32)
    with pytest.raises(KeyboardInterrupt), store.writing("entry", shape, LENGTHS) as writer:
        writer.write(ALL, values())
        assert entries(tmp_path / "cache") == {"entry"} and store.open("entry", LENGTHS) is None
        assert torch.equal(writer.written().batch(ALL[:1], 3), values()[:1, :3])
        raise KeyboardInterrupt
    assert entries(tmp_path / "cache") == set()


def test_another_dtype_in_the_middle_is_refused(store: PrefixStore, tmp_path: Path) -> None:
    shape = FeatureShape(1, TOKENS, 4, torch.float32)
    with pytest.raises(NoCacheError, match="same dtype"), store.writing("entry", shape, LENGTHS) as writer:
        writer.write(ALL, values(torch.bfloat16))
    assert entries(tmp_path / "cache") == set()


def opened_long_ago(folder: Path, *names: str) -> None:
    for age, name in enumerate(reversed(names)):
        os.utime(folder / name / "manifest.json", (1e9 - age, 1e9 - age))


def test_the_budget_holds_by_removing_what_was_opened_longest_ago(store: PrefixStore, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    other = PrefixStore(folder, budget_bytes=3 * ENTRY)
    for name in "abc":
        write(store, name)
    opened_long_ago(folder, "b", "a", "c")
    assert other.open("b", LENGTHS) is not None  # now the latest
    write(store, "d")
    assert entries(folder) == {"b", "c", "d"}
    write(store, "e")
    assert entries(folder) == {"b", "d", "e"}


@pytest.mark.parametrize("reader", ["this", "another"])
def test_what_is_read_is_not_removed_and_later_it_is(store: PrefixStore, tmp_path: Path, reader: str) -> None:
    folder = tmp_path / "cache"
    for name in "abc":
        write(store, name)
    read = (store if reader == "this" else PrefixStore(folder, budget_bytes=3 * ENTRY)).open("a", LENGTHS)
    opened_long_ago(folder, "a", "b", "c")
    write(store, "d")
    assert entries(folder) == {"a", "c", "d"}
    del read
    opened_long_ago(folder, "a", "c", "d")
    write(store, "e")
    assert entries(folder) == {"c", "d", "e"}


def test_another_process_keeps_what_it_reads(store: PrefixStore, tmp_path: Path) -> None:
    write(store, "a")
    code = """
import sys
import numpy as np
from pathlib import Path
from rayft.models.prefix_files import PrefixStore
features = PrefixStore(Path(sys.argv[1]), 10**9).open("a", np.array(eval(sys.argv[2])))
print(features is not None, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(LENGTHS.tolist())]
    small = PrefixStore(tmp_path / "cache", budget_bytes=ENTRY)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "True\n"
        with pytest.raises(NoRoomError):
            write(small, "b")
        assert entries(tmp_path / "cache") == {"a"}
        reader.kill()
    write(small, "b")
    assert entries(tmp_path / "cache") == {"b"}


def test_what_can_not_fit_removes_nothing(store: PrefixStore, tmp_path: Path) -> None:
    for name in "abc":
        write(store, name)
    read = [store.open(name, LENGTHS) for name in "ab"]
    with pytest.raises(NoCacheError, match="the budget is 0"):
        write(PrefixStore(tmp_path / "cache", ENTRY - 1), "d")
    two = FeatureShape(1, TOKENS, 8, torch.float32)
    with pytest.raises(NoCacheError, match="more than there are"), store.writing("d", two, LENGTHS):
        pass
    assert entries(tmp_path / "cache") == {"a", "b", "c"} and all(read)


def test_some_of_the_disk_stays_free(store: PrefixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    write(store, "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(DISK_RESERVE))
    write(store, "b")  # in the place of a
    assert entries(tmp_path / "cache") == {"b"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(DISK_RESERVE - 1))
    with pytest.raises(NoCacheError, match="more than there are"):
        write(store, "c")


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_count(
    store: PrefixStore, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    for name in ("dead", "living"):
        (folder / name).mkdir()
        (folder / name / "values.tmp").write_bytes(bytes(2 * ENTRY))
    with FileLock(folder / "living.lock"):
        write(store, "a")
        assert entries(folder) == {"living", "a"}
        read = store.open("a", LENGTHS)
        assert read is not None
        with pytest.raises(NoCacheError, match="more than there are"):
            write(store, "b")
    write(store, "b")
    assert entries(folder) == {"a", "b"}


def test_features_of_a_missing_file_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PrefixFeatures(tmp_path / "none", FeatureShape(1, TOKENS, 4, torch.float32), LENGTHS)

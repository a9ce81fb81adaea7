"""What others may have put into files that rayft is pointed at: nothing of it runs, and nothing leaves its folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayft.cli_options import run_name
from rayft.config import DataConfig
from rayft.data.splits import load_splits
from rayft.errors import RunError, UserError
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import SweepStudy
from tests.sweep.conftest import sweep
from tests.texts import TEXTS

LONG = "word " * 2_000_000


def rayft(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rayft.cli", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(str(tmp_path / "runs"), "mine", sweep())


@pytest.mark.parametrize("link", ["best", "trials/0", "trials/0/checkpoint-1", "encoded", "sweep.yaml"])
def test_a_link_out_of_a_run_folder_is_refused(run: RunFolder, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    (outside / "checkpoint-1").mkdir(parents=True)
    (outside / "sweep.yaml").write_bytes((run.path / "sweep.yaml").read_bytes())
    place = run.path / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(outside / "sweep.yaml" if link == "sweep.yaml" else outside)
    with pytest.raises(RunError) as caught:
        RunFolder.find(str(run.path))
    assert f"{place}: is a link that leads out of the run folder" in str(caught.value)


def test_every_command_refuses_such_a_run(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (run.path / "best").symlink_to(tmp_path / "outside")
    for command in ("resume", "trials", "export", "tensorboard", "report", "reproduce", "show"):
        status, output = rayft(tmp_path, command, str(run.path), *(["0"] if command == "show" else []))
        assert status == 2, output
        assert "is a link that leads out of the run folder" in output
        assert "Traceback" not in output


def test_a_link_within_a_run_folder_is_nobodys_harm(run: RunFolder) -> None:
    (run.path / "newest").symlink_to(run.path / "sweep.yaml")
    assert RunFolder.find(str(run.path)) == run


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "..", ".hidden", "a/b", "a\nb", ""])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(RunError, match="--name: must be letters"):
        run_name(name)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_a_line_of_ten_megabytes_is_read_as_any_other(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train.{suffix}"
    rows = [{"text": text, "label": label} for text, label in ((LONG, "a"), ("b", "b"), ("c", "a"), ("d", "b"))]
    write(path, rows)
    splits = load_splits(DataConfig(train=str(path), validation=0.5), seed=0, task=TEXTS)
    texts = [text for rows in splits.present().values() for text in rows.inputs["text"]]
    assert max(map(len, texts)) >= len(LONG.strip())


@pytest.mark.parametrize(
    "content", [b"\x80\x04\x95cposix\nsystem\n", b"", b"\x00" * 4096, b"SQLite format 3\x00" + b"\xff" * 200]
)
def test_a_study_that_is_no_study_is_a_named_error(run: RunFolder, content: bytes) -> None:
    (run.path / "trials" / "0").mkdir(parents=True)
    (run.path / "study.db").write_bytes(content)
    with pytest.raises(RunError, match=r"study\.db: is .*put a copy of it back"):
        SweepStudy.of_run(run, run.config())
    assert (run.path / "study.db").read_bytes() == content, "nothing starts anew in silence"


def test_half_a_study_is_a_named_error(run: RunFolder) -> None:
    study = SweepStudy.of_run(run, run.config())
    for _ in range(20):
        study.ask()
    path = run.path / "study.db"
    SweepStudy.of_run(run, run.config())  # as a whole it is fine
    os.truncate(path, path.stat().st_size // 2 + 1)
    with pytest.raises(RunError, match=r"study\.db: is damaged"):
        SweepStudy.of_run(run, run.config())


@pytest.mark.parametrize("content", ["", "model: [", "!!python/object/apply:os.system ['touch ran']", "model: x\n" * 2])
def test_a_damaged_configuration_is_a_named_error(run: RunFolder, tmp_path: Path, content: str) -> None:
    (run.path / "sweep.yaml").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.yaml"):
        RunFolder.find(str(run.path)).config()
    assert not list(tmp_path.rglob("ran"))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def test_a_run_without_its_configuration_is_no_run(run: RunFolder) -> None:
    (run.path / "sweep.yaml").unlink()
    with pytest.raises(RunError, match=r"has no sweep\.yaml"):
        RunFolder.find(str(run.path))

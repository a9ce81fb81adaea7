import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayft.errors import CheckpointError
from rayft.training.checkpoint import (
    FILES,
    MANIFEST,
    MODEL,
    STATE,
    PackedCheckpoint,
    TrialState,
    finished_checkpoints,
    read_checkpoint,
)
from rayft.training.results import CurvePoint, EpochResult


def state_of(epoch: int) -> TrialState:
    generator = torch.Generator().manual_seed(epoch)
    result = EpochResult(epoch, {"loss": 1 / 3}, 0.1 + 0.2, (CurvePoint(7, 0.5, 1e-5),), 1.25, 80.0, 0.2)
    return TrialState(
        epoch=epoch,
        step=7 * epoch,
        micro_batch=4,
        history=(result,),
        model={"a": torch.randn(3, 5, generator=generator), "b": torch.randn(4, 6, generator=generator).T},
        optimizer={"a/exp_avg": torch.randn(3, 5, generator=generator), "a/step": torch.tensor(7.0)},
        precision="fp32",
    )


def write_checkpoint(folder: Path, state: TrialState) -> str:
    packed = PackedCheckpoint.of(state)
    packed.write(folder)
    return packed.digest


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    state = state_of(2)
    digest = write_checkpoint(tmp_path / "checkpoint-2", state)
    found = read_checkpoint(tmp_path / "checkpoint-2", digest)

    for kind in ("model", "optimizer"):
        expected, tensors = getattr(state, kind), getattr(found, kind)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert replace(found, model={}, optimizer={}) == replace(state, model={}, optimizer={})


def test_nothing_else_is_left_behind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-2", state_of(2))

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert {path.name for path in (tmp_path / "checkpoint-2").iterdir()} == {*FILES, MANIFEST}


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "first", state_of(1))

    assert write_checkpoint(tmp_path / "same", state_of(1)) == first
    assert write_checkpoint(tmp_path / "other", state_of(2)) != first


def test_an_epoch_that_is_trained_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    write_checkpoint(folder, state_of(1))
    (tmp_path / ".checkpoint-1.partial").mkdir()  # of a writer that was killed
    digest = write_checkpoint(folder, state_of(3))

    assert read_checkpoint(folder, digest).epoch == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
def test_each_damage_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    folder = tmp_path / "checkpoint-1"
    digest = write_checkpoint(folder, state_of(1))
    damage(folder / name)

    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder, digest)


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": {"model.safetensors": 3}}', "not json", "\udcff"])
def test_a_manifest_of_another_kind(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "checkpoint-1"
    write_checkpoint(folder, state_of(1))
    (folder / MANIFEST).write_text(content, errors="surrogateescape")

    with pytest.raises(CheckpointError, match=MANIFEST):
        read_checkpoint(folder)


def test_another_checkpoint_than_the_one_on_record(tmp_path: Path) -> None:
    digest = write_checkpoint(tmp_path / "one", state_of(1))
    write_checkpoint(tmp_path / "two", state_of(2))

    with pytest.raises(CheckpointError, match=f"{digest} is on record"):
        read_checkpoint(tmp_path / "two", digest)


def pickled(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def test_a_pickle_in_place_of_the_tensors_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayft.training.checkpoint.save", pickled)
    write_checkpoint(tmp_path / "checkpoint-1", state_of(1))

    with pytest.raises(CheckpointError, match=f"{MODEL} isn't a safetensors file"):
        read_checkpoint(tmp_path / "checkpoint-1")


def test_only_whole_checkpoints_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digests = {}
    for epoch in (1, 2, 9, 10, 11):
        digests[epoch] = write_checkpoint(tmp_path / f"checkpoint-{epoch}", state_of(epoch))
    flip_a_bit(tmp_path / "checkpoint-11" / STATE)
    (tmp_path / "checkpoint-10" / MANIFEST).unlink()
    (tmp_path / ".checkpoint-12.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()

    with caplog.at_level(logging.WARNING):
        assert finished_checkpoints(tmp_path) == {epoch: digests[epoch] for epoch in (1, 2, 9)}
    assert {Path(record.args[0]).name for record in caplog.records} == {"checkpoint-11", "checkpoint-10"}


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert finished_checkpoints(tmp_path) == {}
    assert finished_checkpoints(tmp_path / "missing") == {}

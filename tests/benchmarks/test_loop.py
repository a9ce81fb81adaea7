"""The floor has to be the same computation as the loop without a cache."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import workload
from benchmarks.arms.job import Job
from benchmarks.arms.loop import Tuner, eval_batches, train_batches
from benchmarks.arms.prefix_cache import CachedPrefix
from tests.conftest import NUM_BLOCKS


@pytest.fixture
def tuner(model_folder: Callable[[str], Path], tmp_path: Path) -> Tuner:
    files = workload.write_files(tmp_path, 24, 10, 6)
    job = Job(str(model_folder("bert")), files.train, files.validation, [], epochs=2, work=str(tmp_path))
    return Tuner(job)


@pytest.mark.parametrize("depth", range(NUM_BLOCKS + 1))
def test_cached_hidden_states_are_those_of_the_frozen_blocks(depth: int, tuner: Tuner, tmp_path: Path) -> None:
    tuner.model.eval()
    cached = CachedPrefix(tuner.model, tuner.splits, [depth] if depth else [], tmp_path)
    for rank in (0, 1):
        cached.fill(rank, 2, lambda: None)
    with torch.no_grad():
        for rows in tuner.splits.values():
            batch = torch.tensor([5, 1, 2])
            live, live_mask = tuner.prefix(rows, batch, depth)
            states, mask = cached(rows, batch, depth)
            _, real = rows.positions(batch)
            if depth == NUM_BLOCKS:
                torch.testing.assert_close(states[:, 0], live[:, 0])
                continue
            torch.testing.assert_close(states[real], live[real])
            assert (mask is None) == (live_mask is None)


def test_training_with_the_cache_gives_the_same_accuracies(tuner: Tuner, tmp_path: Path) -> None:
    config = {"learning_rate": 1e-2, "batch_size": 4, "freeze_depth": 1, "weight_decay": 0.01}
    seen: list[tuple[int, float]] = []
    live = tuner.train(config, lambda epoch, accuracy: seen.append((epoch, accuracy)))
    tuner.model.load_state_dict(tuner._pretrained)
    tuner.prefix = cached = CachedPrefix(tuner.model, tuner.splits, [1], tmp_path)
    cached.fill(0, 1, lambda: None)
    assert tuner.train(config) == live == [accuracy for _, accuracy in seen]
    assert len(live) == 2


def test_nothing_frozen_moves(tuner: Tuner) -> None:
    config = {"learning_rate": 1e-2, "batch_size": 4, "freeze_depth": 2, "weight_decay": 0.01}
    tuner.train(config, epochs=1)
    after = tuner.model.state_dict()
    moved = {name for name, before in tuner._pretrained.items() if not torch.equal(before, after[name])}
    assert {name for name in moved if ".layer." in name} >= {"bert.encoder.layer.2.output.dense.weight"}
    assert not any("embeddings" in name or ".layer.0." in name or ".layer.1." in name for name in moved)


def test_a_deadline_in_the_past_trains_nothing(tuner: Tuner) -> None:
    config = {"learning_rate": 1e-2, "batch_size": 4, "freeze_depth": 0, "weight_decay": 0.01}
    assert tuner.train(config, deadline=0.0) == []


def test_batches_hold_every_row_once() -> None:
    lengths = torch.randint(3, 40, (70,), generator=torch.Generator().manual_seed(0))
    for batches in (train_batches(lengths, 16, seed=1), list(eval_batches(lengths, 100))):
        assert sorted(torch.cat(batches).tolist()) == list(range(70))
    assert [len(batch) for batch in train_batches(lengths, 16, seed=1)] == [16, 16, 16, 16, 6]

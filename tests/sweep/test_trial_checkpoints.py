import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayft.config import Mode
from rayft.data.encoded import EncodedData
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.trial_checkpoints import TrialCheckpoints
from rayft.training.checkpoint import TrialState, finished_checkpoints, read_checkpoint
from rayft.training.loop import FineTuning
from tests.conftest import tiny_tokenizer
from tests.sweep.conftest import metrics
from tests.texts import encode_texts, text_splits
from tests.training.conftest import LABEL_NAMES, fine_tuning, hyperparameters, rows

TRIAL = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that share cores with other processes wait for each other at every product, however small it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedData:
    folder = tmp_path_factory.mktemp("encoded")
    splits = text_splits(rows(9, seed=1), rows(6, seed=2), label_names=LABEL_NAMES)
    encode_texts(splits, tiny_tokenizer(), 32, folder)
    return EncodedData.open(folder)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def hold(thread: ThreadPoolExecutor) -> Iterator[threading.Event]:
    """Keeps the thread from writing until it is set."""
    release = threading.Event()
    thread.submit(release.wait)
    yield release
    release.set()


def checkpoints_of(run: RunFolder, thread: ThreadPoolExecutor, mode: Mode = "max") -> TrialCheckpoints:
    return TrialCheckpoints(run, TRIAL, "accuracy", mode, thread)


def trial_on(data: EncodedData) -> FineTuning:
    return fine_tuning(data, hyperparameters(), epochs=6)


def train_epoch(tuning: FineTuning, accuracy: float) -> None:
    """A real epoch, after which validation finds what the test wants."""
    tuning.train_epoch()
    tuning.history[-1] = replace(tuning.history[-1], metrics=metrics(accuracy))


def wait_for(thread: ThreadPoolExecutor) -> None:
    """Until all is written that was to be."""
    thread.submit(lambda: None).result(timeout=10)


def assert_same_state(found: TrialState, expected: TrialState) -> None:
    assert replace(found, model={}, optimizer={}) == replace(expected, model={}, optimizer={})
    for kind in ("model", "optimizer"):
        one, other = getattr(found, kind), getattr(expected, kind)
        assert one.keys() == other.keys() and one
        assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.mark.parametrize(
    ("mode", "accuracies", "kept"),
    [
        ("max", [0.5, 0.6, 0.7], [{1}, {2}, {3}]),  # the last is the best
        ("max", [0.5, 0.7, 0.6, 0.4], [{1}, {2}, {2, 3}, {2, 4}]),
        ("max", [0.7, 0.6, 0.7, 0.8], [{1}, {1, 2}, {1, 3}, {4}]),  # of equals the earliest
        ("min", [0.5, 0.4, 0.7, 0.6], [{1}, {2}, {2, 3}, {2, 4}]),
    ],
)
def test_the_last_and_the_best_stay_and_others_go(
    run: RunFolder,
    data: EncodedData,
    thread: ThreadPoolExecutor,
    mode: Mode,
    accuracies: list[float],
    kept: list[set[int]],
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread, mode)
    for accuracy, expected in zip(accuracies, kept, strict=True):
        train_epoch(tuning, accuracy)
        checkpoints.save(tuning)
        assert checkpoints.digests.keys() == expected
        wait_for(thread)
        assert finished_checkpoints(run.trial(TRIAL)) == checkpoints.digests
        assert {path.name for path in run.trial(TRIAL).iterdir()} == {f"checkpoint-{epoch}" for epoch in expected}


def test_a_checkpoint_goes_on_where_the_trial_was(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    train_epoch(tuning, 0.5)
    checkpoints.save(tuning)
    wait_for(thread)
    resumed = trial_on(data)
    resumed.resume(run.checkpoint(TRIAL, 1))

    assert resumed.history == tuning.history
    assert resumed.train_epoch().curve == tuning.train_epoch().curve


def test_nothing_is_saved_before_the_first_epoch_nor_an_epoch_twice(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    checkpoints.save(tuning)
    wait_for(thread)
    assert checkpoints.digests == {} and not run.trial(TRIAL).exists()

    train_epoch(tuning, 0.5)
    checkpoints.save(tuning)
    wait_for(thread)
    first = dict(checkpoints.digests)
    written = run.checkpoint(TRIAL, 1).stat()
    checkpoints.save(tuning)
    wait_for(thread)
    assert checkpoints.digests == first
    assert run.checkpoint(TRIAL, 1).stat() == written


def test_finished_ones_are_found_on_start_and_unfinished_ones_are_not(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    for accuracy in (0.7, 0.6):
        train_epoch(tuning, accuracy)
        checkpoints.save(tuning)
    wait_for(thread)
    (run.trial(TRIAL) / ".checkpoint-3.partial").mkdir()  # its process was killed
    other = checkpoints_of(run, thread)
    assert other.digests == checkpoints.digests and other.digests.keys() == {1, 2}

    resumed = trial_on(data)
    resumed.resume(run.checkpoint(TRIAL, 2))
    other.save(resumed)  # is there already
    train_epoch(resumed, 0.5)
    other.save(resumed)
    wait_for(thread)
    assert other.digests.keys() == finished_checkpoints(run.trial(TRIAL)).keys() == {1, 3}


def test_training_on_does_not_change_what_is_written(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor, hold: threading.Event, tmp_path: Path
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    train_epoch(tuning, 0.5)
    before = tuning.pack()
    before.write(tmp_path / "before")
    checkpoints.save(tuning)
    assert checkpoints.digests == {1: before.digest}  # known at once
    assert finished_checkpoints(run.trial(TRIAL)) == {}
    train_epoch(tuning, 0.6)
    assert tuning.pack().digest != before.digest
    hold.set()
    wait_for(thread)

    found = read_checkpoint(run.checkpoint(TRIAL, 1), before.digest)
    assert_same_state(found, read_checkpoint(tmp_path / "before"))


def test_what_is_replaced_stays_until_the_new_one_is_complete(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    train_epoch(tuning, 0.5)
    checkpoints.save(tuning)
    wait_for(thread)
    release = threading.Event()
    thread.submit(release.wait)
    train_epoch(tuning, 0.6)
    checkpoints.save(tuning)
    assert checkpoints.digests.keys() == {2} and finished_checkpoints(run.trial(TRIAL)).keys() == {1}

    release.set()
    wait_for(thread)
    assert finished_checkpoints(run.trial(TRIAL)) == checkpoints.digests


def test_a_second_copy_waits_until_the_first_is_written(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor, hold: threading.Event
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    train_epoch(tuning, 0.5)
    checkpoints.save(tuning)
    train_epoch(tuning, 0.6)
    saving = threading.Thread(target=checkpoints.save, args=(tuning,))
    saving.start()
    saving.join(0.2)
    assert saving.is_alive() and checkpoints.digests.keys() == {1}

    hold.set()
    saving.join(10)
    wait_for(thread)
    assert not saving.is_alive()
    assert finished_checkpoints(run.trial(TRIAL)) == checkpoints.digests and checkpoints.digests.keys() == {2}


def test_a_write_that_fails_is_logged_and_raised_by_the_next_save(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "rayft.sweep.trial_checkpoints")
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    run.trial(TRIAL).parent.write_text("in the way")
    train_epoch(tuning, 0.5)
    checkpoints.save(tuning)
    wait_for(thread)
    (record,) = caplog.records
    assert "could not be written" in record.getMessage()
    assert record.exc_info is not None and isinstance(record.exc_info[1], OSError)

    train_epoch(tuning, 0.6)
    with pytest.raises(OSError, match="trials"):
        checkpoints.save(tuning)


def test_a_write_that_fails_takes_no_earlier_checkpoint_away(
    run: RunFolder, data: EncodedData, thread: ThreadPoolExecutor
) -> None:
    tuning, checkpoints = trial_on(data), checkpoints_of(run, thread)
    train_epoch(tuning, 0.5)
    checkpoints.save(tuning)
    wait_for(thread)
    (run.trial(TRIAL) / ".checkpoint-2.partial").write_text("in the way")
    train_epoch(tuning, 0.6)
    checkpoints.save(tuning)
    wait_for(thread)

    found = finished_checkpoints(run.trial(TRIAL))
    assert found.keys() == {1}
    assert read_checkpoint(run.checkpoint(TRIAL, 1), found[1]).epoch == 1

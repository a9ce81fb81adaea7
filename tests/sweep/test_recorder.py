import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayft.config import SweepConfig
from rayft.report.tensorboard import TrialEvents
from rayft.search_space import Params
from rayft.sweep.open_sweep import OpenSweep
from rayft.sweep.protocol import EpochDone, GroupLost, Interrupted, Outcome, TrialFailed
from rayft.sweep.recorder import Recorder
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.scheduler import make_scheduler
from rayft.sweep.searcher import StudySearcher
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord
from rayft.training.results import CurvePoint, EpochResult
from tests.sweep.conftest import OpenStudy, metrics, sweep

CONFIG = sweep(epochs=3, search={"sampler": "random", "trials": 20})


class Screen:
    """Notes what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def trial_started(self, number: int, params: Params) -> None:
        self.lines.append(f"{number} started")

    def epoch(self, number: int, result: EpochResult) -> None:
        self.lines.append(f"{number} epoch {result.epoch}: {result.metrics['accuracy']}")

    def trial_ended(self, record: TrialRecord) -> None:
        self.lines.append(f"{record.number} {record.state}")


class Sweep:
    """A recorder with all that it writes to, and Tune's calls."""

    def __init__(self, study: SweepStudy, path: Path, slots: int = 4, config: SweepConfig = CONFIG) -> None:
        self.study = study
        self.run = RunFolder(path)
        self.screen = Screen()
        self.searcher = StudySearcher(study, make_scheduler(config), config, slots)
        self.events = TrialEvents(path, config)
        opened = OpenSweep(config, self.run, study, (self.events, self.screen), to_run=20, note=print)
        self.recorder = Recorder(opened, self.searcher)

    def start(self) -> Any:
        config = self.searcher.suggest("tune-id")
        assert isinstance(config, dict)
        trial = SimpleNamespace(config=config, last_result=None, get_error=lambda: RuntimeError("actor died"))
        self.recorder.on_trial_start(0, [], trial)
        return trial

    def tell(self, trial: Any, outcome: Outcome) -> None:
        result = {"outcome": outcome}
        self.recorder.on_trial_result(0, [], trial, result)
        trial.last_result = result

    def epoch(self, trial: Any, epoch: int, value: float, saved: bool = True, further: tuple[float, ...] = ()) -> None:
        """One epoch, with the checkpoint that its worker has written."""
        number = trial.config["assignment"].trial
        if saved:
            self.run.checkpoint(number, epoch).mkdir(parents=True)
        curve = (CurvePoint(epoch, 0.1, 1e-4),)
        result = EpochResult(epoch, metrics(value), 0.1, curve, 1.0, samples_per_second=10.0, padding=0.0)
        self.tell(trial, EpochDone(result, (value, *further), f"{number}-{epoch}" if saved else None))

    def end(self, trial: Any) -> None:
        self.recorder.on_trial_complete(0, [], trial)

    def train(self, *values: float) -> None:
        """A whole trial."""
        trial = self.start()
        for epoch, value in enumerate(values, 1):
            self.epoch(trial, epoch, value)
        self.end(trial)

    def kept(self) -> list[str]:
        return sorted(str(path.relative_to(self.run.path)) for path in self.run.path.glob("trials/*/*checkpoint-*"))


@pytest.fixture
def make_sweep(open_study: OpenStudy, tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    made: list[Sweep] = []

    def make(slots: int = 4) -> Sweep:
        made.append(Sweep(open_study(CONFIG), tmp_path, slots))
        return made[-1]

    yield make
    for one in made:
        one.events.close()


MakeSweep = Callable[..., Sweep]


# --- the record


def test_an_epoch_is_on_record_before_asha_is_obeyed(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    trial = one.start()
    one.epoch(trial, 1, 0.5)
    record = one.study.record(0)
    assert (record.state, record.values, record.checkpoint, record.digest) == (
        "running",
        {1: 0.5},
        "trials/0/checkpoint-1",
        "0-1",
    )
    one.end(trial)  # ASHA's stop is a completion to Tune's callbacks
    assert one.study.record(0).state == "pruned"
    assert one.screen.lines == ["0 started", "0 epoch 1: 0.5", "0 pruned"]


def test_a_trial_that_trained_to_its_end_is_complete(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    one.train(0.5, 0.7, 0.6)
    record = one.study.record(0)
    assert (record.state, record.value, record.digest) == ("complete", 0.7, "0-2")


def test_a_failure_is_on_record_with_its_reason_and_in_the_log_with_its_traceback(
    make_sweep: MakeSweep, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("rayft"), "propagate", True)
    one = make_sweep()
    trial = one.start()
    one.epoch(trial, 1, 0.9)
    one.tell(trial, TrialFailed("diverged", "train loss is nan", "Traceback ..."))
    one.end(trial)

    record = one.study.record(0)
    assert (record.state, record.reason, record.values) == ("failed", "train loss is nan", {1: 0.9})
    assert "trial 0 failed (diverged): train loss is nan\nTraceback ..." in caplog.text
    assert one.kept() == []


def test_a_full_disk_is_no_trials_fault(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    trial = one.start()
    one.epoch(trial, 1, 0.9)
    one.tell(trial, TrialFailed("storage", "OSError: [Errno 28] No space left on device", "Traceback ..."))
    one.end(trial)

    assert one.study.record(0).state == "running"
    assert one.kept() == ["trials/0/checkpoint-1"]
    assert one.recorder.stopped_by is not None and "No space left on device" in one.recorder.stopped_by


def test_a_trial_that_lost_its_actor_goes_on_in_its_slot(make_sweep: MakeSweep) -> None:
    """Whatever the actor was doing: Tune itself gives up a trial that was only being given to its actor."""
    one = make_sweep()
    other, trial = one.start(), one.start()
    one.epoch(trial, 1, 0.5)
    one.epoch(other, 1, 0.5)
    one.end(other)
    one.recorder.on_trial_error(0, [], trial)

    again = one.start()
    assert (again.config["slot"], again.config["assignment"]) == (trial.config["slot"], trial.config["assignment"])
    assert again.config["reported"] == 1
    one.epoch(again, 2, 0.6)
    assert one.study.record(1).values == {1: 0.5, 2: 0.6}
    assert one.start().config["assignment"].trial == 2


def test_a_trial_that_loses_actor_after_actor_fails_and_is_no_fault_of_the_search(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    for _ in range(CONFIG.cluster.max_failures + 1):
        trial = one.start()
        assert trial.config["assignment"].trial == 0
        one.recorder.on_trial_error(0, [], trial)
    (frozen,) = one.study._study.get_trials()
    assert (one.study.record(0).state, frozen.state.name) == ("failed", "FAIL")
    assert one.start().config["assignment"].trial == 1


def test_an_interrupted_trial_stays_open(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    trial = one.start()
    one.epoch(trial, 1, 0.5)
    one.tell(trial, Interrupted())
    one.end(trial)

    assert one.study.record(0).state == "running"
    assert one.kept() == ["trials/0/checkpoint-1"]
    assert one.recorder.stopped_by is None


def test_a_trial_whose_group_is_lost_goes_on_in_another(make_sweep: MakeSweep) -> None:
    one = make_sweep(slots=2)
    trial = one.start()
    one.epoch(trial, 1, 0.5)
    one.tell(trial, GroupLost("the model can't be read"))
    one.end(trial)
    assert one.recorder.stopped_by is None

    again = one.start()
    assert again.config["assignment"] == trial.config["assignment"]
    assert again.config["slot"] != trial.config["slot"]
    assert again.config["reported"] == 1
    one.tell(again, GroupLost("the model can't be read"))
    one.end(again)
    assert one.recorder.stopped_by == "no worker group can be started: the model can't be read"
    assert one.study.record(0).state == "running"  # it can be resumed


def test_ended_trials_free_their_slot(make_sweep: MakeSweep) -> None:
    one = make_sweep(slots=1)
    one.train(0.5)
    failing = one.start()
    one.tell(failing, TrialFailed("error", "ValueError: x"))
    one.end(failing)
    lost = one.start()
    one.recorder.on_trial_error(0, [], lost)
    assert one.start().config["slot"] == 0


def test_a_record_that_cannot_be_written_stops_the_sweep_where_tune_would_go_on(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_sweep(slots=1)
    trial = one.start()

    def full(*given: Any, **named: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(one.study, "record_epoch", full)
    one.epoch(trial, 1, 0.5)
    assert one.recorder.stopped_by == "the record can't be written: OSError: no space left on device"
    monkeypatch.setattr(one.study, "finish", full)
    one.end(trial)
    assert one.searcher.suggest("next") is None  # the slot isn't given to a second trial


def test_events_are_written_as_epochs_come(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    one.train(0.5, 0.7)
    one.events.close()
    events = EventAccumulator(str(one.run.trial(0))).Reload()
    assert [round(event.value, 6) for event in events.Scalars("validation/accuracy")] == [0.5, 0.7]


def test_tune_pickles_nothing_of_it(make_sweep: MakeSweep) -> None:
    assert type(pickle.loads(pickle.dumps(make_sweep().recorder))) is object


# --- checkpoints


def test_leaders_keep_their_best_epochs_checkpoint_alone(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    one.train(0.5, 0.7, 0.6)
    assert one.kept() == ["trials/0/checkpoint-2"]
    for value in (0.6, 0.8):
        one.train(value)
    assert one.kept() == ["trials/0/checkpoint-2", "trials/1/checkpoint-1", "trials/2/checkpoint-1"]
    one.train(0.65)
    assert one.kept() == ["trials/0/checkpoint-2", "trials/2/checkpoint-1", "trials/3/checkpoint-1"]
    one.train(0.1)
    assert one.kept() == ["trials/0/checkpoint-2", "trials/2/checkpoint-1", "trials/3/checkpoint-1"]


def test_of_equal_trials_the_earlier_keep_theirs(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    for _ in range(5):
        one.train(0.5)
    assert one.kept() == [f"trials/{number}/checkpoint-1" for number in range(3)]


def test_running_trials_are_left_alone(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    running = one.start()
    for epoch in (1, 2):
        one.epoch(running, epoch, 0.1)
    for value in (0.5, 0.6, 0.7, 0.8):
        one.train(value)
    one.recorder.drop_checkpoints()

    assert one.kept()[:2] == ["trials/0/checkpoint-1", "trials/0/checkpoint-2"]
    one.end(running)
    assert one.kept() == [f"trials/{number}/checkpoint-1" for number in (2, 3, 4)]


def test_the_winner_is_kept_though_running_trials_led_before_they_failed(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    leading = [one.start() for _ in range(3)]
    for trial in leading:
        one.epoch(trial, 1, 0.9)
    one.train(0.6)  # the only one that will ever end well
    for trial in leading:
        one.tell(trial, TrialFailed("diverged", "loss is nan"))
        one.end(trial)

    assert one.kept() == ["trials/3/checkpoint-1"]
    assert one.study.record(3).checkpoint == "trials/3/checkpoint-1"


def test_the_winner_is_never_deleted(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    curves = [(0.5, 0.4), (0.45,), (0.7, 0.8, 0.75), (0.8,), (0.2, 0.3), (0.8, 0.1), (0.81,), (0.3,), (0.81, 0.81)]
    for curve in curves:
        one.train(*curve)
        best = max(one.study.records(), key=lambda record: (record.value, -record.number))
        assert best.checkpoint in one.kept()
        assert len(one.kept()) <= 3
    assert one.kept() == ["trials/2/checkpoint-2", "trials/6/checkpoint-1", "trials/8/checkpoint-1"]


def test_what_a_resumed_sweep_finds_is_cleared_too(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    for value in (0.5, 0.6, 0.7):
        one.train(value)
    late = one.run.checkpoint(1, 2)  # written as the driver was killed
    late.mkdir()
    (one.run.trial(1) / "checkpoint-old").mkdir()
    again = make_sweep()
    again.recorder.drop_checkpoints()
    assert again.kept() == [f"trials/{number}/checkpoint-1" for number in range(3)]


def test_a_trials_end_looks_at_no_more_trials_the_more_there_are(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_sweep(slots=1)
    for value in range(12):
        one.train(value / 20)
    looked: list[int] = []
    real = RunFolder.trial

    def trial(run: RunFolder, number: int) -> Path:
        looked.append(number)
        return real(run, number)

    monkeypatch.setattr(RunFolder, "trial", trial)
    monkeypatch.setattr(one.study, "records", lambda: pytest.fail("reads every trial"))
    one.train(0.56)
    assert set(looked) == {9, 10, 11, 12}
    assert one.kept() == [f"trials/{number}/checkpoint-1" for number in (10, 11, 12)]


def test_leaders_of_an_earlier_run_are_ranked_with_the_trials_of_this_one(make_sweep: MakeSweep) -> None:
    one = make_sweep()
    for value in (0.5, 0.6, 0.7):
        one.train(value)
    again = make_sweep()
    for value in (0.4, 0.65):
        again.train(value)
    assert again.kept() == [f"trials/{number}/checkpoint-1" for number in (1, 2, 4)]


def test_a_leader_that_only_lacked_its_end_is_kept(make_sweep: MakeSweep) -> None:
    """The searcher ends it, which nobody tells the recorder."""
    one = make_sweep()
    for value in (0.5, 0.6, 0.7):
        one.train(value)
    whole = one.start()
    for epoch, value in enumerate((0.8, 0.9, 0.85), 1):
        one.epoch(whole, epoch, value)  # the driver is killed before it records the end
    again = make_sweep()
    again.train(0.4)
    again.train(0.65)
    assert again.study.record(3).state == "complete"
    assert "trials/3/checkpoint-2" in again.kept()
    again.recorder.drop_checkpoints()
    assert again.kept() == ["trials/2/checkpoint-1", "trials/3/checkpoint-2", "trials/5/checkpoint-1"]


def test_the_front_of_several_objectives_keeps_its_checkpoints(open_study: OpenStudy, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"search": CONFIG.search.model_copy(update={"metric": ["accuracy", "loss"]})})
    one = Sweep(open_study(config), tmp_path, config=config)
    # By accuracy 0, 1 and 2 lead; 3 and 4 are worse in it and better in the other, and 5 is worse in both.
    for accuracy, loss in ((0.9, 9.0), (0.8, 8.0), (0.7, 7.0), (0.6, 6.0), (0.5, 5.0), (0.4, 6.5)):
        trial = one.start()
        one.epoch(trial, 1, accuracy, further=(loss,))
        one.end(trial)
    assert one.kept() == [f"trials/{number}/checkpoint-1" for number in range(5)]
    trial = one.start()
    one.epoch(trial, 1, 0.61, further=(4.0,))  # which beats 3 and 4 in both
    one.end(trial)
    assert one.kept() == [f"trials/{number}/checkpoint-1" for number in (0, 1, 2, 6)]
    one.events.close()

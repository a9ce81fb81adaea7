import io
import threading

import pytest
from rich.console import Console

from rayft.config import SweepConfig
from rayft.config_tasks import TASK_RULES
from rayft.report.progress import Progress
from rayft.report.tables import output_console
from rayft.sweep.trial_record import TrialRecord
from rayft.training.results import EpochResult

METRICS = TASK_RULES["text-classification"].metrics


def ended(number: int, state: str, value: float | None, reason: str | None = None) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=state,  # type: ignore[arg-type]
        params={"strategy": "full"},
        value=value,
        best_epoch=1,
        epochs=1,
        reason=reason,
    )


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def plain(config: SweepConfig, text: io.StringIO) -> Progress:
    return Progress(config, output_console(text))


def result(epoch: int, value: float) -> EpochResult:
    metrics: dict[str, float] = dict.fromkeys(METRICS, value)
    return EpochResult(epoch, metrics, 0.5, (), 1.0, 10.0, 0.0)


def view(progress: Progress) -> list[str]:
    """The live view's rows as text."""
    text = io.StringIO()
    Console(file=text, width=120).print(progress)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_without_a_terminal_each_event_is_one_plain_line(plain: Progress, text: io.StringIO) -> None:
    with plain as progress:
        progress.started(6, [])
        progress.trial_started(0, {"strategy": "full", "batch_size": 16})
        progress.epoch(0, result(1, 0.71234))
        progress.trial_ended(ended(0, "pruned", 0.71234))
    lines = text.getvalue().splitlines()
    assert lines[:3] == [
        "6 trials",
        "trial 0 started: strategy=full batch_size=16",
        "trial 0 epoch 1: macro_f1 0.7123",
    ]
    assert lines[3].startswith(
        "trial 0 pruned after 1 epoch, macro_f1 0.7123; 1 pruned, 5 to go; "
        "best macro_f1 0.7123, trial 0, strategy=full; "
    )
    assert len(lines) == 4
    assert "\x1b" not in text.getvalue()


def test_a_failure_says_why(plain: Progress, text: io.StringIO) -> None:
    plain.started(2, [])
    plain.trial_started(0, {})
    plain.trial_ended(ended(0, "failed", None, "out of memory at [1]"))
    assert "trial 0 failed after 1 epoch (out of memory at [1])" in text.getvalue().splitlines()
    assert view(plain)[1:3] == ["trials 1 failed, 1 to go", "best none yet"]


def test_view_counts_states_and_shows_running_trials(plain: Progress) -> None:
    plain.started(6, [ended(0, "complete", 0.6), ended(1, "pruned", 0.5)])
    plain.trial_started(2, {"strategy": "partial"})
    plain.trial_started(3, {"strategy": "full"})
    plain.epoch(2, result(1, 0.55))
    rows = view(plain)
    assert rows[1:] == [
        "trials 1 complete, 1 pruned, 2 running, 2 to go",
        "best macro_f1 0.6000, trial 0, strategy=full",
        "running trial 2 epoch 1/4 0.5500 strategy=partial",
        "trial 3 epoch 0/4 - strategy=full",
    ]


def test_best_follows_running_trials_and_forgets_those_that_fail(plain: Progress) -> None:
    plain.started(6, [ended(0, "complete", 0.6)])
    plain.trial_started(1, {"strategy": "partial"})
    plain.epoch(1, result(1, 0.7))
    plain.epoch(1, result(2, 0.65))
    plain.trial_started(1, {"strategy": "partial"})  # goes on after the loss of a worker
    assert view(plain)[2] == "best macro_f1 0.7000, trial 1, strategy=partial"
    plain.trial_ended(ended(1, "failed", 0.7, "train loss is nan"))
    assert view(plain)[2] == "best macro_f1 0.6000, trial 0, strategy=full"


def test_of_equal_trials_the_earlier_is_shown_as_the_best(plain: Progress) -> None:
    plain.started(6, [ended(2, "complete", 0.6), ended(1, "pruned", 0.6), ended(3, "complete", None)])
    plain.trial_started(0, {"strategy": "partial"})
    assert view(plain)[2] == "best macro_f1 0.6000, trial 1, strategy=full"
    plain.epoch(0, result(1, 0.6))
    assert view(plain)[2] == "best macro_f1 0.6000, trial 0, strategy=partial"


def test_less_is_better_where_the_metric_is_a_loss(config: SweepConfig, text: io.StringIO) -> None:
    search = config.search.model_copy(update={"metric": "loss"})
    progress = Progress(config.model_copy(update={"search": search}), output_console(text))
    progress.started(2, [ended(0, "complete", 0.6), ended(1, "complete", 0.5)])
    assert view(progress)[2] == "best loss 0.5000, trial 1, strategy=full"


def test_many_running_trials_leave_room_for_the_rest(plain: Progress) -> None:
    plain.started(100, [])
    for number in range(30):
        plain.trial_started(number, {})
    rows = view(plain)
    assert len(rows) == 3 + 8 + 1
    assert rows[-1] == "and 22 more"


def test_rate_and_time_left_come_from_this_run_alone(plain: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("rayft.report.progress.time.monotonic", lambda: now)
    plain.started(6, [ended(0, "complete", 0.6)])
    now = 1010.0
    assert view(plain)[0] == "sweep 10s gone"
    plain.trial_started(1, {})
    plain.trial_started(2, {})
    now = 1060.0
    plain.trial_ended(ended(1, "complete", 0.6))
    plain.trial_ended(ended(2, "complete", 0.6))
    assert view(plain)[0] == "sweep 1m00s gone, about 1m30s left, 2.0 trials a minute"


def test_the_time_limit_bounds_the_time_left(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("rayft.report.progress.time.monotonic", lambda: now)
    search = config.search.model_copy(update={"time_limit": 90.0})
    progress = Progress(config.model_copy(update={"search": search}), output_console(io.StringIO()))
    progress.started(6, [])
    now = 1060.0
    progress.trial_started(0, {})
    progress.trial_ended(ended(0, "complete", 0.6))
    assert view(progress)[0] == "sweep 1m00s gone, about 30s left, 1.0 trials a minute"


def test_live_view_leaves_a_clean_terminal_and_keeps_failures_and_notes(config: SweepConfig) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with Progress(config, console) as progress:
        progress.started(6, [])
        progress.trial_started(0, {"strategy": "full"})
        progress.epoch(0, result(1, 0.5))
        progress.note("2 rows were dropped")
        progress.trial_ended(ended(0, "failed", None, "out of memory"))
    shown = text.getvalue()
    assert "2 rows were dropped" in shown
    assert "trial 0 failed after 1 epoch (out of memory)" in shown
    assert "trial 0 epoch 1: " not in shown  # the view says it
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    progress.stop()


@pytest.mark.timeout(60)
def test_events_from_many_threads_neither_lose_counts_nor_lock_up(config: SweepConfig) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(config, console) as progress:
        progress.started(400, [])

        def drive(first: int) -> None:
            for number in range(first, first + 50):
                progress.trial_started(number, {"strategy": "full"})
                progress.epoch(number, result(1, number / 1000))
                progress.trial_ended(ended(number, "failed" if number % 10 == 0 else "complete", number / 1000))

        threads = [threading.Thread(target=drive, args=(50 * index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert view(progress)[1:] == [
            "trials 360 complete, 40 failed, 0 to go",
            "best macro_f1 0.3990, trial 399, strategy=full",
        ]

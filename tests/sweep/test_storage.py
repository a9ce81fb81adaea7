import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from rayft.errors import ConfigError
from rayft.sweep.storage import SweepStorage
from rayft.sweep.study import SweepStudy
from tests.sweep.conftest import OpenStudy, metrics, quality, sweep

STARTS: list[dict[str, Any]] = [{"strategy": "partial", "freeze_depth": 2}, {"strategy": "full"}]
CONFIG = sweep(search={"start_with": STARTS})


class Watch:
    """Notes the statements and the commits of a study's engine."""

    def __init__(self, study: SweepStudy) -> None:
        self.statements: list[str] = []
        self.commits = 0
        engine = study._storage._engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", self._on_statement)
        sqlalchemy.event.listen(engine, "commit", self._on_commit)

    def _on_statement(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.statements.append(statement)

    def _on_commit(self, connection: Any) -> None:
        self.commits += 1

    @contextmanager
    def event(self) -> Iterator[list[str]]:
        """The statements of one event, which is one transaction and reads nothing."""
        statements, commits = len(self.statements), self.commits
        seen: list[str] = []
        yield seen
        seen += self.statements[statements:]
        assert self.commits == commits + 1
        assert not [statement for statement in seen if statement.startswith("SELECT")]


def started(open_study: OpenStudy, name: str = "study.db") -> SweepStudy:
    study = open_study(CONFIG, name)
    study.enqueue_start_with()
    return study


def events(study: SweepStudy) -> list[Callable[[], object]]:
    """One trial, as what happens to it."""
    number = study._started
    ends: list[Callable[[], object]] = [
        lambda: study.finish(number),
        lambda: study.finish(number, reason="stopped"),
        lambda: study.fail(number, "diverged", "loss is nan"),
        lambda: study.fail(number, "infrastructure", "a machine was lost"),
    ]

    def epoch(epoch: int, digest: str | None = None) -> Callable[[], object]:
        return lambda: study.record_epoch(number, epoch, metrics(quality(study.record(number).params)), 1.0, digest)

    return [study.ask, epoch(1), *([epoch(1, "digest"), epoch(2)] if number % 2 else []), ends[number % len(ends)]]


def contents(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """All of each trial but its row in the database, with parameters in their order."""
    return [
        {**vars(trial), "_trial_id": None, "order": list(trial.params), "constraints": trial.constraints}
        for trial in trials
    ]


def test_the_database_holds_what_memory_holds_for_every_reader(
    open_study: OpenStudy, optuna_trials: Callable[[], list[FrozenTrial]]
) -> None:
    study = started(open_study)
    for _ in range(14):
        for event in events(study):
            event()
            memory = contents(study._storage.trials())
            assert contents(optuna_trials()) == memory  # as optuna-dashboard reads it
    assert contents(open_study(CONFIG)._storage.trials()) == memory
    assert {trial["state"].name for trial in memory} == {"COMPLETE", "PRUNED", "FAIL"}


def test_each_event_is_one_transaction_that_reads_nothing_however_many_trials_there_are(open_study: OpenStudy) -> None:
    study = started(open_study)
    watch = Watch(study)
    most: dict[int, int] = {}
    for trial in range(300):
        for event in events(study):
            with watch.event() as statements:
                event()
            most[trial // 100] = max(most.get(trial // 100, 0), len(statements))
    assert max(most.values()) <= 12
    assert most[2] <= most[0]


def test_reading_asks_the_database_nothing(open_study: OpenStudy) -> None:
    study = started(open_study)
    for event in events(study):
        event()
    watch = Watch(study)
    study.record(0)
    study.records()
    assert (watch.statements, watch.commits) == ([], 0)


@pytest.mark.parametrize("lost", range(5))
def test_a_killed_driver_leaves_whole_events(open_study: OpenStudy, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """The database refuses a statement in the middle of an event, whichever it is."""
    study = started(open_study)
    for _ in range(2):
        for event in events(study):
            event()
    trial = events(study)
    for event in trial[:1]:
        event()
    before = contents(open_study(CONFIG)._storage.trials())
    left = iter([True] * lost)

    def refuse(*given: Any) -> None:
        if not next(left, False):
            raise _Killed

    sqlalchemy.event.listen(study._storage._engine, "before_cursor_execute", refuse)
    with pytest.raises(_Killed):
        study.fail(2, "diverged", "loss is nan")
    assert contents(open_study(CONFIG)._storage.trials()) == before


class _Killed(BaseException):
    """The driver dies here."""


_DRIVER = """
import os, signal, sys
from rayft.sweep.study import SweepStudy
from tests.sweep.conftest import metrics, sweep

study = SweepStudy(sweep(), sys.argv[1])
for end in range(2):
    number, _ = study.ask()
    study.record_epoch(number, 1, metrics(0.5), 1.0, "digest")
    if end == 0:
        study.finish(number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_outlives_a_killed_process_in_one_file(open_study: OpenStudy, tmp_path: Path) -> None:
    open_study(sweep())
    url = f"sqlite:///{tmp_path / 'study.db'}"
    assert subprocess.run([sys.executable, "-c", _DRIVER, url], check=False).returncode == -signal.SIGKILL

    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]  # no write-ahead log that a copy would lack
    records = open_study(sweep()).records()
    assert [(record.state, record.digest) for record in records] == [("pruned", "digest"), ("running", "digest")]


def test_nothing_is_written_after_a_write_that_failed(open_study: OpenStudy, tmp_path: Path) -> None:
    """The record would lack the epoch, and hold the end that came after it."""
    study = started(open_study)
    study.ask()
    with sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'study.db'}").begin() as other:
        other.execute(sqlalchemy.text("ALTER TABLE trial_user_attributes RENAME TO away"))
    with pytest.raises(SQLAlchemyError):
        study.record_epoch(0, 1, metrics(0.5), 1.0)
    with sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'study.db'}").begin() as other:
        other.execute(sqlalchemy.text("ALTER TABLE away RENAME TO trial_user_attributes"))
    with pytest.raises(StorageInternalError, match="an earlier write to the study failed"):
        study.finish(0)

    again = started(open_study)
    assert (again.record(0).state, again.record(0).epochs) == ("running", 0)
    again.record_epoch(0, 1, metrics(0.5), 1.0)
    assert again.finish(0).epochs == 1


def test_what_is_refused_before_it_changes_anything_leaves_the_study_writable(open_study: OpenStudy) -> None:
    study = started(open_study)
    study.ask()
    study.finish(0)
    with pytest.raises(ValueError, match="Cannot tell a PRUNED trial"):
        study.finish(0)
    assert study.ask()[0] == 1


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    """rayft writes none, but the study may hold trials of another program."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.load_study(study_name="name", storage=SweepStorage(url, "name", ["minimize"]))
    for value in (math.inf, -math.inf, math.nan):
        trial = study.ask()
        trial.report(value, step=0)
        state = optuna.trial.TrialState.FAIL if math.isnan(value) else None
        study.tell(trial, None if math.isnan(value) else value, state=state)
    read = optuna.load_study(study_name="name", storage=url).get_trials()
    assert [trial.values for trial in read] == [[math.inf], [-math.inf], None]
    assert str([trial.intermediate_values[0] for trial in read]) == "[inf, -inf, nan]"


def test_studies_of_one_database_keep_apart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    one, two = (SweepStudy(CONFIG, url, name) for name in ("one", "two"))
    for study in (one, two, two, one, two):
        study.ask()
    assert [len(SweepStudy(CONFIG, url, name).records()) for name in ("one", "two")] == [2, 3]
    one.finish(1)
    assert [record.state for record in SweepStudy(CONFIG, url, "one").records()] == ["running", "pruned"]
    assert {record.state for record in SweepStudy(CONFIG, url, "two").records()} == {"running"}


def test_a_database_that_can_t_be_opened_is_the_users_error() -> None:
    for url in ("no-url", "nosuch://host/name"):
        with pytest.raises(ConfigError, match=r"search\.study: can't be opened"):
            SweepStorage(url, "name", ["maximize"])

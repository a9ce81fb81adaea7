import io
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayft import commands
from rayft.commands import export_trial, new_sweep, resume_sweep
from rayft.config import SweepConfig
from rayft.data.encoded import MANIFEST
from rayft.errors import Fault, ModelError, RunError, SweepFailedError
from rayft.export import model_folder
from rayft.report.progress import Progress
from rayft.sweep import lease, mirror
from rayft.sweep.lease import LEASE
from rayft.sweep.mirror import mirrored, publish_model
from rayft.sweep.remote_folder import RemoteFolder
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import STUDY_FILE, SweepStudy
from rayft.training.results import EpochResult
from tests.s3_server import BUCKET, S3Server, s3_server
from tests.sweep.conftest import metrics, sweep

EPOCH = EpochResult(1, metrics(0.5), train_loss=1.0, curve=(), seconds=1.0, samples_per_second=1.0, padding=0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`machine(name)`: from here on runs are found as that machine would find them."""

    def move(name: str) -> None:
        monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / name))

    move("one")
    return move


@pytest.fixture
def far(tmp_path: Path) -> str:
    return f"file://{tmp_path}/far"


@pytest.fixture
def run(far: str, machine: Callable[[str], None]) -> RunFolder:
    return RunFolder.create(far, "run", sweep())


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read(run: RunFolder, path: str) -> bytes | None:
    return RemoteFolder(run.address).read(path)


def database(path: Path, rows: int, text: str) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table notes (text)")
        connection.executemany("insert into notes values (?)", [(text,)] * rows)
    return path


def notes(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        return connection.execute("select text, count(*) from notes group by text").fetchall()


@pytest.mark.parametrize("kind", ["s3", "file"])
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_process_that_slept_past_its_lease_changes_nothing_of_its_successors(
    kind: str,
    has_ended: bool,
    server: S3Server,
    far: str,
    machine: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 3600.0)  # it sleeps
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 3600.0)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    run = RunFolder.create(f"s3://{BUCKET}/{tmp_path.name}" if kind == "s3" else far, "run", sweep())
    database(run.path / STUDY_FILE, 1, "of the first")
    successor = ExitStack()
    with (
        pytest.raises(SweepFailedError, match=r"/run was taken over by .*process.* while this") as failed,
        mirrored(run) as (watcher,),
    ):
        wait_until(lambda: watcher.epoch(0, EPOCH) or read(run, STUDY_FILE))
        machine("two")
        monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
        other = RunFolder.find(run.address)
        successor.enter_context(mirrored(other))
        with closing(sqlite3.connect(other.path / STUDY_FILE)) as connection, connection:
            connection.execute("update notes set text = 'of the second'")
        assert other.remote is not None
        other.remote.upload(other.path / STUDY_FILE, STUDY_FILE)
        if has_ended:
            successor.close()
        pushed, left = read(run, STUDY_FILE), read(run, LEASE)

        database(run.path / "more.db", 2, "of the first").replace(run.path / STUDY_FILE)
        for change in (run.publish, run.discard):
            with pytest.raises(SweepFailedError, match="was taken over"):
                change("environment.json")
        with pytest.raises(SweepFailedError, match="was taken over"):  # which is how the sweep hears of it
            watcher.epoch(0, EPOCH)
    assert "can't be written" not in str(failed.value)
    assert read(run, STUDY_FILE) == pushed
    assert read(run, "environment.json") is not None
    if has_ended:
        assert left is None and read(run, LEASE) is None
    else:
        wait_until(lambda: read(run, LEASE) != left)  # its holder goes on
        successor.close()
    with mirrored(other):  # and nothing keeps the next one out
        pass


def test_the_holder_notices_by_itself_that_the_lease_is_anothers(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    anothers = json.dumps({"id": "another", "host": "elsewhere", "boot": 1, "pid": 7, "count": 3}).encode()

    def is_told(watcher: Any) -> bool:
        try:
            watcher.epoch(0, EPOCH)
        except SweepFailedError:
            return True
        return False

    with (
        pytest.raises(SweepFailedError, match="was taken over by process 7 on elsewhere"),
        mirrored(run) as (watcher,),
    ):
        assert not is_told(watcher)
        # On a file system a renewal that has begun may still land on it.
        wait_until(lambda: RemoteFolder(run.address).write(LEASE, anothers) or is_told(watcher))
        RemoteFolder(run.address).write(LEASE, anothers)
    assert read(run, LEASE) == anothers


def test_a_lease_that_was_written_in_part_is_still_its_holders(run: RunFolder) -> None:
    with mirrored(run):
        RemoteFolder(run.address).write(LEASE, b"")
        run.publish("environment.json")
    assert read(run, LEASE) is None


def test_of_two_that_take_a_lease_at_once_one_is_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    anothers = json.dumps({"id": "another", "host": "elsewhere", "boot": 1, "pid": 7, "count": 1}).encode()
    write = RemoteFolder.write

    def write_before_another(self: RemoteFolder, path: str, content: bytes) -> None:
        write(self, path, content)
        write(self, path, anothers)

    monkeypatch.setattr(RemoteFolder, "write", write_before_another)
    with pytest.raises(RunError, match="is in use by process 7 on elsewhere"), mirrored(run):
        pass
    assert read(run, LEASE) == anothers


def test_a_push_that_takes_long_does_not_cost_the_lease(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    begun, answered = threading.Event(), threading.Event()

    def publish(self: RunFolder, path: str) -> None:
        begun.set()
        assert answered.wait(60)

    monkeypatch.setattr(RunFolder, "publish", publish)
    with mirrored(run) as (watcher,):
        watcher.epoch(0, EPOCH)
        assert begun.wait(60)
        for _ in range(3):
            before = read(run, LEASE)
            wait_until(lambda before=before: read(run, LEASE) not in (before, b""))
        answered.set()


def test_a_study_that_cannot_be_read_is_pushed_once_it_can(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.05)
    tried = threading.Event()
    snapshot = mirror.snapshot

    def watched(path: Path) -> bytes:
        try:
            return snapshot(path)
        except sqlite3.Error:
            tried.set()
            raise

    monkeypatch.setattr(mirror, "snapshot", watched)
    with mirrored(run):
        (run.path / STUDY_FILE).write_bytes(b"no database" * 1000)
        assert tried.wait(60)
        database(run.path / "good.db", 1, "good").replace(run.path / STUDY_FILE)
        wait_until(lambda: read(run, STUDY_FILE))
    with pytest.raises(SweepFailedError, match=r"can't be written: .*database.*; all is in "), mirrored(run):
        (run.path / STUDY_FILE).write_bytes(b"no database" * 1000)


def test_a_newer_study_is_not_rolled_back_by_what_lies_beside_the_old_one(run: RunFolder, tmp_path: Path) -> None:
    old = database(tmp_path / "old.db", 20_000, "old")
    with closing(sqlite3.connect(old)) as connection:  # one that is killed in the middle of a transaction
        connection.execute("pragma cache_size = 1")
        connection.execute("update notes set text = 'half'")
        for rest in ("", "-journal"):
            shutil.copy(f"{old}{rest}", run.path / f"{STUDY_FILE}{rest}")
    for rest in ("-wal", "-shm"):
        (run.path / f"{STUDY_FILE}{rest}").write_bytes(b"of the old one")
    RemoteFolder(run.address).upload(database(tmp_path / "new.db", 20_001, "new"), STUDY_FILE)
    with mirrored(run):
        assert sorted(path.name for path in run.path.glob(f"{STUDY_FILE}*")) == [STUDY_FILE]
        assert notes(run.path / STUDY_FILE) == [("new", 20_001)]


def finished_run(run: RunFolder, tables: Path) -> None:
    """One complete trial with a checkpoint, and its export, which remote storage lacks."""
    shutil.copy(tables, run.path / STUDY_FILE)
    config = run.config()
    study = SweepStudy.of_run(run, config)
    number, _ = study.ask()
    study.record_epoch(number, 1, metrics(0.5), 1.0, "digest")
    assert study.finish(number).state == "complete"
    for manifest in (run.checkpoint(number, 1) / "manifest.json", run.encoded / MANIFEST):
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text("{}")
    write_model(run.best)


def write_model(folder: Path) -> dict[str, Any]:
    record = {"trial": 0, "checkpoint_digest": "digest", "final": None, "interval": None, "front": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / model_folder.RECORD).write_text(json.dumps(record))
    return record


def shown(config: SweepConfig) -> Progress:
    return Progress(config, Console(file=io.StringIO()))


@pytest.mark.parametrize("there", [{}, {"old.safetensors": b"old", model_folder.RECORD: b'{"trial": 1}'}])
def test_a_winner_that_never_reached_remote_storage_does_when_the_sweep_is_resumed(
    there: dict[str, bytes], far: str, machine: Callable[[str], None], tables: Path
) -> None:
    config = sweep(epochs=1, search={"trials": 1})
    run = RunFolder.create(far, "run", config)
    finished_run(run, tables)
    for name, content in there.items():
        RemoteFolder(run.address).write(f"best/{name}", content)
    resume_sweep(run, None, None, shown(config))
    assert RemoteFolder(run.address).names("best") == ["model.safetensors", model_folder.RECORD]
    assert read(run, f"best/{model_folder.RECORD}") == (run.best / model_folder.RECORD).read_bytes()


def test_a_model_that_is_there_is_not_copied_again(run: RunFolder) -> None:
    write_model(run.best)
    publish_model(run, "best")
    assert run.remote is not None

    def forbid() -> None:
        raise AssertionError

    run.remote.before_change = forbid
    publish_model(run, "best")
    with pytest.raises(AssertionError):
        (run.best / model_folder.RECORD).write_text("{}")
        publish_model(run, "best")


@pytest.mark.parametrize(("number", "folder"), [(None, "best"), (0, "best"), (1, "export-1")])
def test_an_export_is_in_remote_storage_unless_it_was_to_be_elsewhere(
    number: int | None,
    folder: str,
    far: str,
    machine: Callable[[str], None],
    tables: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = sweep(epochs=1, search={"trials": 2})
    run = RunFolder.create(far, "run", config)
    finished_run(run, tables)
    study = SweepStudy.of_run(run, config)
    study.ask()
    study.record_epoch(1, 1, metrics(0.4), 1.0)
    study.finish(1)

    def export_model(config: SweepConfig, run: Path, trial: object, to: Path, *_: object, **__: object) -> object:
        return write_model(to)

    monkeypatch.setattr(model_folder, "export_model", export_model)
    export_trial(run, number, tmp_path / "elsewhere")
    assert not {"best", "export-1", "elsewhere"} & set(RemoteFolder(run.address).names())
    export_trial(run, number, None)
    assert RemoteFolder(run.address).names(folder) == ["model.safetensors", model_folder.RECORD]


@pytest.fixture
def small_sweep(far: str, machine: Callable[[str], None], tmp_path: Path) -> SweepConfig:
    (tmp_path / "train.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 20)
    return sweep(storage=far, data={"train": str(tmp_path / "train.csv")})


def test_a_run_that_another_machine_made_at_the_same_time_is_left_to_it(
    small_sweep: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    create = RunFolder.create
    made: list[RunFolder] = []
    with ExitStack() as anothers:

        def create_as_another_does(*given: Any) -> RunFolder:
            made.append(create(*given))
            anothers.enter_context(lease.Lease(RemoteFolder(made[0].address)))
            return made[0]

        monkeypatch.setattr(RunFolder, "create", create_as_another_does)
        with pytest.raises(RunError, match="is in use by process"):
            new_sweep(small_sweep, "run", None, shown(small_sweep))
        assert {"sweep.yaml", "environment.json", LEASE} <= set(RemoteFolder(made[0].address).names())
        assert not made[0].path.exists()


def test_of_a_run_that_cannot_begin_nothing_is_left(
    small_sweep: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError([Fault("the sweep file", "can't be", "model")])

    monkeypatch.setattr(commands, "_run", refuse)
    with pytest.raises(ModelError):
        new_sweep(small_sweep, "run", None, shown(small_sweep))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "train.csv"]

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from pyarrow.fs import FileInfo, FileType

from rayft.export.model_folder import RECORD
from rayft.sweep.remote_folder import LAST_OF_MODEL, RemoteFolder
from tests.s3_server import BUCKET, SECRET, S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["s3", "file", "memory"])
def remote(
    request: pytest.FixtureRequest, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemoteFolder:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    place = f"{request.param}-{tmp_path.name}"
    addresses = {"s3": f"s3://{BUCKET}/{place}", "file": f"file://{tmp_path}/far", "memory": f"memory://{place}"}
    return RemoteFolder(addresses[request.param], patience=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "here"
    (made / "below").mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    (made / "below" / "weights").write_bytes(bytes(range(256)) * 100)
    return made


def test_a_folder_comes_back_as_it_went(remote: RemoteFolder, folder: Path, tmp_path: Path) -> None:
    remote.upload(folder, "trials/0/checkpoint-1")
    assert remote.names("trials/0") == ["checkpoint-1"]
    assert remote.download("trials/0/checkpoint-1", tmp_path / "back")
    found = {path.relative_to(tmp_path / "back"): path.read_bytes() for path in (tmp_path / "back").rglob("*.*")}
    assert found == {Path("manifest.json"): b"{}"}
    assert (tmp_path / "back" / "below" / "weights").read_bytes() == (folder / "below" / "weights").read_bytes()
    assert remote.sizes("trials") == [
        ("trials/0/checkpoint-1/below/weights", 25600),
        ("trials/0/checkpoint-1/manifest.json", 2),
    ]


def test_what_was_there_is_replaced(remote: RemoteFolder, folder: Path, tmp_path: Path) -> None:
    remote.upload(folder, "data")
    old = tmp_path / "back"
    old.mkdir()
    (old / "stale").touch()
    assert remote.download("data", old)
    assert sorted(path.name for path in old.iterdir()) == ["below", "manifest.json"]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_what_is_not_there_is_none(remote: RemoteFolder, tmp_path: Path) -> None:
    assert remote.names("nowhere") == []
    assert remote.read("nowhere") is None
    assert not remote.download("nowhere", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    remote.delete("nowhere")


def test_a_file_is_written_replaced_read_and_deleted(remote: RemoteFolder, tmp_path: Path) -> None:
    remote.write("a/file", b"1")
    remote.write("a/file", b"two")
    assert remote.read("a/file") == b"two"
    assert remote.download("a/file", tmp_path / "deep" / "file")
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"
    remote.delete("a/file")
    assert remote.read("a/file") is None


def test_a_folder_is_deleted_with_all_below_it_and_nothing_else(remote: RemoteFolder, folder: Path) -> None:
    remote.upload(folder, "trials/1")
    remote.upload(folder, "trials/10")
    remote.delete("trials/1")
    assert remote.names("trials/1") == []
    assert len(remote.sizes("trials/10")) == 2


def test_a_name_that_leads_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteFolder(f"file://{tmp_path}/far", patience=1)
    remote.write("escaped", b"out")
    listed = FileInfo(f"{tmp_path}/far/best/../../escaped", FileType.File)  # as a store may, whose names are any text
    monkeypatch.setattr(remote, "_files_below", lambda path: [listed])
    with pytest.raises(PermissionError, match="leads out of"):
        remote.download("best", tmp_path / "deep" / "in" / "best")
    assert not list(tmp_path.rglob("deep/**/escaped"))


def test_a_key_that_leads_out_is_refused_by_a_store_too(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    remote = RemoteFolder(f"s3://{BUCKET}/leads/out/run", patience=1)
    store = boto3.client("s3", endpoint_url=server.endpoint)
    for key in ("leads/out/run/trials/../../../events.x", "leads/events.x"):  # clients ask for the one by the other
        store.put_object(Bucket=BUCKET, Key=key, Body=b"out")
    to = tmp_path / "views" / "storage" / "run"
    ((path, _),) = remote.sizes("trials")
    for leave in (
        lambda: remote.download(path, to / path),
        lambda: remote.download("trials", to / "trials"),
        lambda: remote.write("trials/../../../events.y", b"out"),
    ):
        with pytest.raises(PermissionError, match="leads out of"):
            leave()
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]
    assert store.list_objects_v2(Bucket=BUCKET, Prefix="leads/")["KeyCount"] == 2


def test_a_model_folder_has_its_record_only_once_it_is_whole(tmp_path: Path) -> None:
    assert LAST_OF_MODEL == RECORD
    model = tmp_path / "best"
    model.mkdir()
    for name in ("config.json", RECORD, "vocab.txt"):
        (model / name).write_text(name)
    remote = RemoteFolder(f"file://{tmp_path}/far", patience=1)
    for changes in range(3):
        allowed = iter(range(changes))

        def end(allowed: Iterator[int] = allowed) -> None:
            if next(allowed, None) is None:
                raise KeyboardInterrupt

        remote.before_change = end
        with pytest.raises(KeyboardInterrupt):
            remote.upload(model, f"best-{changes}")
        found = remote.names(f"best-{changes}")
        assert len(found) == changes and RECORD not in found


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="must hold no credentials") as caught:
        RemoteFolder("s3://me:hunter2@bucket/prefix")
    assert "hunter2" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_an_error_at_once(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match=r"NO_SUCH_BUCKET|does not exist") as caught:
        RemoteFolder("s3://no-such-bucket/prefix", patience=10_000).write("file", b"1")
    assert SECRET not in str(caught.value)


def test_a_store_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        remote = RemoteFolder(f"s3://{BUCKET}/away", patience=120)
        os.kill(server.process.pid, signal.SIGSTOP)
        threading.Timer(6, os.kill, (server.process.pid, signal.SIGCONT)).start()
        remote.write("file", b"1")
        assert remote.read("file") == b"1"

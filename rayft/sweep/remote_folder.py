"""A folder on an object store, or on any other file system that pyarrow or fsspec has an address for."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import urlsplit

from rayft.config import NO_CREDENTIALS, holds_credentials

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

PATIENCE = 120.0
"""Seconds for which a store that doesn't answer is asked again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
PERMANENT = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "PermissionDenied")
"""What a store says, within an OSError, of what will be no different later."""
LAST = "manifest.json"
"""The file of a folder that is uploaded last: without it the folder is unfinished."""
LAST_OF_MODEL = "rayft.json"
"""The same of a model folder."""

Given = TypeVar("Given")


def is_remote(address: str) -> bool:
    """Whether an address is one of a store and no path."""
    return "://" in address


class RemoteFolder:
    """Reads and writes files below an address. Paths are relative to it, with slashes.

    Credentials and endpoints come from the environment, as the store's own tools take them.

    Args:
        address: Such as `s3://bucket/prefix`.
        patience: For how long a store that doesn't answer is asked again, in seconds.

    Attributes:
        before_change: Called before each attempt to change something; what it raises keeps that from happening.

    Raises:
        ValueError: The address isn't one that can be used; says why.
        OSError: The store can't be reached.
    """

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        self.address = address.rstrip("/")
        self.before_change: Callable[[], None] = _allow
        self._patience = patience
        self._files, self._root = _open(self.address)

    def child(self, name: str) -> Self:
        """A folder within this one."""
        return type(self)(f"{self.address}/{name}", self._patience)

    def for_pyarrow(self, path: str) -> "tuple[str, FileSystem]":
        """A folder as those take it who know pyarrow's file systems."""
        return self._at(path), self._files

    def names(self, path: str = "") -> list[str]:
        """What lies directly in a folder; nothing if there is none."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._at(path), allow_not_found=True)
        return sorted(info.base_name for info in self._asked(lambda: self._files.get_file_info(selector)))

    def sizes(self, path: str) -> list[tuple[str, int]]:
        """Every file below a folder with its size in bytes."""
        return [(info.path.removeprefix(self._root).lstrip("/"), info.size) for info in self._files_below(path)]

    def read(self, path: str) -> bytes | None:
        """A whole file, or None if there is none."""

        def content() -> bytes | None:
            if not self._files.get_file_info(self._at(path)).is_file:
                return None
            with self._files.open_input_file(self._at(path)) as file:
                return bytes(file.read())

        return self._asked(content)

    def write(self, path: str, content: bytes) -> None:
        """Writes or replaces a file, whole or not at all where the store can do that."""

        def put() -> None:
            self.before_change()
            self._make_parent(path)
            with self._files.open_output_stream(self._at(path)) as file:
                file.write(content)

        self._asked(put)

    def upload(self, local: Path, path: str) -> None:
        """Copies a file, or a folder with all below it, here; other files of that folder stay."""
        files = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else [local]
        for file in sorted(files, key=lambda file: file.name in (LAST, LAST_OF_MODEL)):
            below = file.relative_to(local).as_posix() if local.is_dir() else ""
            self._copy_in(file, f"{path}/{below}".rstrip("/"))

    def download(self, path: str, local: Path) -> bool:
        """Copies a file, or a folder with all below it, to `local`, replacing it; returns whether there was one."""
        info = self._asked(lambda: self._files.get_file_info(self._at(path)))
        partial = local.with_name(f".{local.name}.{os.getpid()}.partial")
        local.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        if info.is_file:
            self._copy_out(path, partial)
        elif not self._download_folder(path, partial):
            return False
        if partial.is_dir():
            _remove(local)
        try:
            partial.replace(local)
        except OSError:
            if not local.is_dir():
                raise
            _remove(partial)  # another worker of the node was faster
        return True

    def delete(self, path: str) -> None:
        """Deletes a file, or a folder with all below it, if it is there."""
        from pyarrow.fs import FileType

        def delete() -> None:
            self.before_change()
            kind = self._files.get_file_info(self._at(path)).type
            if kind == FileType.File:
                self._files.delete_file(self._at(path))
            elif kind == FileType.Directory:
                self._files.delete_dir(self._at(path))

        self._asked(delete)

    def _files_below(self, path: str) -> "list[FileInfo]":
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._at(path), recursive=True, allow_not_found=True)
        return [info for info in self._asked(lambda: self._files.get_file_info(selector)) if info.is_file]

    def _download_folder(self, path: str, local: Path) -> bool:
        found = self._files_below(path)
        for info in found:
            below = info.path.removeprefix(self._at(path)).lstrip("/")
            self._copy_out(f"{path}/{below}", local / below)
        return bool(found)

    def _copy_in(self, local: Path, path: str) -> None:
        def copy() -> None:
            self.before_change()
            self._make_parent(path)
            with local.open("rb") as source, self._files.open_output_stream(self._at(path)) as file:
                shutil.copyfileobj(source, file, 1 << 22)

        self._asked(copy)

    def _copy_out(self, path: str, local: Path) -> None:
        remote = self._at(path)  # refuses what leads out before anything is made

        def copy() -> None:
            local.parent.mkdir(parents=True, exist_ok=True)
            with self._files.open_input_file(remote) as source, local.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 22)

        self._asked(copy)

    def _make_parent(self, path: str) -> None:
        if self._files.type_name not in ("s3", "gcs", "abfs"):  # a bucket has no folders
            self._files.create_dir(self._at(path).rpartition("/")[0], recursive=True)

    def _at(self, path: str) -> str:
        if ".." in path.split("/"):  # a store takes any name; file systems, and clients of stores, would go up
            raise PermissionError(f"{path} leads out of {self.address}")
        return f"{self._root}/{path}".rstrip("/")

    def _asked(self, ask: Callable[[], Given]) -> Given:
        """Asks until there is an answer, patience ends, or the answer can't change."""
        deadline, pause = time.monotonic() + self._patience, FIRST_PAUSE
        while True:
            try:
                return ask()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                permanent = any(word in str(error) for word in PERMANENT)
                if permanent or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _allow() -> None:
    """What happens before a change to a folder that nobody guards."""


def _open(address: str) -> "tuple[FileSystem, str]":
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    parts = urlsplit(address)
    if holds_credentials(address):  # they would be in sweep.yaml, in logs and in messages
        raise ValueError(NO_CREDENTIALS)
    if parts.scheme == "s3" and not parts.query:
        return _s3(parts.netloc), f"{parts.netloc}{parts.path}".rstrip("/")
    try:
        files, root = FileSystem.from_uri(address)
    except pa.ArrowInvalid:
        import fsspec

        try:
            spec, root = fsspec.core.url_to_fs(address)
        except ImportError as error:
            raise ValueError(f"needs a package that isn't installed: {error}") from None
        files = PyFileSystem(FSSpecHandler(spec))
    return files, root.rstrip("/")


def _s3(bucket: str) -> "FileSystem":
    """S3 by its tools' own variables. An address alone would have pyarrow ask AWS for a bucket of another service."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else resolve_s3_region(bucket)
    retry = AwsStandardS3RetryStrategy(max_attempts=2)
    return S3FileSystem(endpoint_override=endpoint, region=region, retry_strategy=retry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from rayft.sweep import ray_environment
from rayft.sweep.ray_environment import ALLOCATOR, PATIENCE, SETTINGS, prepare, protect_token

CLUSTER = "10.0.0.1:6379"
NAMES = {*SETTINGS, *PATIENCE, *ALLOCATOR, "RAY_AUTH_MODE"}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a user who has set nothing, and has no token."""
    monkeypatch.setattr(ray_environment, "TOKEN", tmp_path / "auth_token")
    with patch.dict(os.environ):
        for name in NAMES:
            os.environ.pop(name, None)
        yield


def what_is_set() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_a_ray_of_this_machines_own_gets_the_allocators_settings_too() -> None:
    prepare(None)
    assert what_is_set() == SETTINGS | ALLOCATOR


@pytest.mark.parametrize("address", ["auto", CLUSTER])
def test_a_cluster_that_is_joined_gets_no_allocator_settings(address: str) -> None:
    prepare(address)
    assert what_is_set() == SETTINGS | PATIENCE


@pytest.mark.parametrize("address", [None, CLUSTER])
@pytest.mark.parametrize("name", sorted(SETTINGS | PATIENCE | ALLOCATOR))
def test_what_the_user_has_set_stays(address: str | None, name: str) -> None:
    os.environ[name] = "the user's"
    prepare(address)
    assert os.environ[name] == "the user's"


def test_a_value_that_the_user_has_set_to_nothing_stays_as_well() -> None:
    for name in ALLOCATOR:
        os.environ[name] = ""
    prepare(None)
    assert what_is_set() == SETTINGS | dict.fromkeys(ALLOCATOR, "")


def test_a_token_is_used_for_clusters_that_others_have_started(tmp_path: Path) -> None:
    (tmp_path / "auth_token").write_text("secret")
    prepare(None)
    assert "RAY_AUTH_MODE" not in what_is_set()
    prepare(CLUSTER)
    assert what_is_set()["RAY_AUTH_MODE"] == "token"


def test_groups_wait_for_a_clusters_nodes_to_be_replaced() -> None:
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    prepare(None)
    assert name not in what_is_set()
    prepare(CLUSTER)
    assert float(what_is_set()[name]) >= 180


def test_the_users_own_way_of_authentication_stays(tmp_path: Path) -> None:
    (tmp_path / "auth_token").write_text("secret")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    prepare(CLUSTER)
    assert what_is_set()["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o660, 0o600), (0o600, 0o600), (0o400, 0o400)])
def test_a_token_is_for_its_user_alone(tmp_path: Path, before: int, after: int) -> None:
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(before)
    protect_token()
    assert token.stat().st_mode & 0o777 == after


def test_settings_come_before_ray() -> None:
    """Ray reads some of them when it is imported."""
    code = "import sys, rayft.sweep.ray_environment; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MAPPED_BLOCKS = """
import ctypes

class Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks".split()] + [("rest", ctypes.c_int * 6)]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.mallinfo.restype = Statistics
before = libc.mallinfo().hblks
assert libc.malloc(1 << 20) and libc.malloc(100 << 20)
print(libc.mallinfo().hblks - before)
"""
"""Prints how many of two large blocks, of 1 and 100 MB, are mapped by themselves and unmapped when they are freed."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator's settings are glibc's")
def test_the_allocator_understands_its_settings() -> None:
    """glibc passes over what it can't take without a word."""

    def mapped(settings: dict[str, str]) -> int:
        command = [sys.executable, "-c", MAPPED_BLOCKS]
        return int(subprocess.run(command, env=os.environ | settings, check=True, capture_output=True).stdout)

    assert mapped({}) == 2
    assert mapped(ALLOCATOR) == 0

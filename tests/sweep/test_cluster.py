import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from rayft.config import ClusterConfig
from rayft.errors import ClusterError
from rayft.sweep import ray_environment
from rayft.sweep.cluster import Placement, connected, plan

LAPTOP = [{"CPU": 8.0, "memory": 1e10}]
ONE_GPU = [{"CPU": 16.0, "GPU": 1.0}]
THREE_NODES = [{"CPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 4.0}]


def groups(nodes: list[dict[str, float]], trials: int = 100, **cluster: Any) -> int:
    return plan(nodes, ClusterConfig(**cluster), trials).groups


@pytest.mark.parametrize(
    ("nodes", "cluster", "expected"),
    [
        (LAPTOP, {}, Placement(groups=8, workers=1, cpus=1, gpus=0.0)),
        (LAPTOP, {"cpus_per_worker": 3}, Placement(2, 1, 3, 0.0)),
        (LAPTOP, {"cpus_per_worker": 2, "workers_per_trial": 3}, Placement(1, 3, 2, 0.0)),
        (LAPTOP, {"concurrent_trials": 3}, Placement(3, 1, 1, 0.0)),
        (LAPTOP, {"concurrent_trials": 8}, Placement(8, 1, 1, 0.0)),
        (ONE_GPU, {}, Placement(1, 1, 1, 1.0)),  # auto takes a whole GPU
        (ONE_GPU, {"gpus_per_worker": 0}, Placement(16, 1, 1, 0.0)),
        (THREE_NODES, {}, Placement(7, 1, 1, 1.0)),  # 4 GPUs, and 3 CPUs for 4 GPUs; nothing where there is no GPU
        (THREE_NODES, {"gpus_per_worker": 0}, Placement(39, 1, 1, 0.0)),
        (THREE_NODES, {"gpus_per_worker": 2, "cpus_per_worker": 2}, Placement(3, 1, 2, 2.0)),
        (THREE_NODES, {"workers_per_trial": 3}, Placement(2, 3, 1, 1.0)),  # a group may span nodes
        ([{"CPU": 0.5}, {"CPU": 1.5}], {}, Placement(1, 1, 1, 0.0)),  # no worker spans nodes
    ],
)
def test_groups_fill_the_cluster(nodes: list[dict[str, float]], cluster: dict[str, Any], expected: Placement) -> None:
    assert plan(nodes, ClusterConfig(**cluster), trials=100) == expected


@pytest.mark.parametrize(
    ("share", "per_gpu"), [(0.5, 2), (0.3, 3), (1 / 3, 3), (0.333, 3), (0.25, 4), (0.1, 10), (0.6, 1), (0.07, 14)]
)
def test_fractions_share_a_gpu_and_never_span_two(share: float, per_gpu: int) -> None:
    assert groups(ONE_GPU, gpus_per_worker=share) == per_gpu
    assert groups([{"CPU": 64.0, "GPU": 4.0}], gpus_per_worker=share) == 4 * per_gpu


def test_cpus_limit_fractions_too() -> None:
    assert groups([{"CPU": 3.0, "GPU": 1.0}], gpus_per_worker=0.1) == 3


def test_no_more_groups_than_trials() -> None:
    assert groups(LAPTOP, trials=2) == 2
    assert groups(LAPTOP, trials=2, concurrent_trials=5) == 2


@pytest.mark.parametrize(
    ("nodes", "cluster", "key", "numbers"),
    [
        (
            LAPTOP,
            {"workers_per_trial": 5, "cpus_per_worker": 2},
            "workers_per_trial",
            ["5 workers of 2 CPUs and 0 GPUs", "1 nodes with 8 CPUs and 0 GPUs"],
        ),
        (LAPTOP, {"gpus_per_worker": 1}, "workers_per_trial", ["1 workers of 1 CPUs and 1 GPUs", "0 GPUs"]),
        (LAPTOP, {"gpus_per_worker": 0.5}, "workers_per_trial", ["0.5 GPUs"]),
        (THREE_NODES, {"gpus_per_worker": 8}, "workers_per_trial", ["8 GPUs", "3 nodes with 39 CPUs and 8 GPUs"]),
        ([{"CPU": 2.0}] * 4, {"cpus_per_worker": 4}, "workers_per_trial", ["4 nodes with 8 CPUs"]),
        ([], {}, "workers_per_trial", ["0 nodes with 0 CPUs"]),
        (LAPTOP, {"concurrent_trials": 9}, "concurrent_trials", ["must be <= 8", "8 CPUs", "got 9"]),
        (
            THREE_NODES,
            {"concurrent_trials": 4, "workers_per_trial": 2},
            "concurrent_trials",
            ["must be <= 3", "2 workers of 1 CPUs and 1 GPUs each", "got 4"],
        ),
        (ONE_GPU, {"gpus_per_worker": 0.5, "workers_per_trial": 2}, "gpus_per_worker", ["2 workers", "got 0.5"]),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(
    nodes: list[dict[str, float]], cluster: dict[str, Any], key: str, numbers: list[str]
) -> None:
    with pytest.raises(ClusterError) as caught:
        plan(nodes, ClusterConfig(**cluster), trials=4)
    (fault,) = caught.value.faults
    assert fault.key == f"cluster.{key}"
    assert [number for number in numbers if number not in fault.rule] == []


def test_ray_client_addresses_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"ray:// .* but got 'ray://head:10001'"), connected("ray://head:10001"):
        pass


class FakeRay:
    """Does what `ray.init` does to the process, without a cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.given: dict[str, Any] = {}
        self.is_up = False
        self._error = error
        monkeypatch.setattr(ray, "init", self._init)
        monkeypatch.setattr(ray, "shutdown", self._shutdown)

    def _init(self, **given: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # "This method overwrites sigterm handler of the driver"
        self.thread = threading.current_thread()
        if self._error:
            raise self._error
        self.given, self.is_up = given, True

    def _shutdown(self) -> None:
        self.is_up = False


def test_sigterm_stays_with_the_sweep_where_rays_init_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rayft.sweep.interruption import Interruption

    monkeypatch.setenv("HOME", str(tmp_path))
    fake = FakeRay(monkeypatch)
    with Interruption() as interruption:
        with connected(None):
            assert fake.is_up
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
    assert not fake.is_up


def test_the_thread_that_started_ray_lives_as_long_as_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's processes ask the kernel to end with their parent, which to Linux is the thread that started them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fake, seen = FakeRay(monkeypatch), []
    with connected(None, meanwhile=lambda: seen.append(threading.current_thread())):
        assert fake.thread.is_alive()
    assert seen == [threading.main_thread()]
    assert not fake.thread.is_alive()


def test_a_cluster_that_does_not_answer_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, ConnectionError("ray is not there\nand more"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 'auto': ray is not there$"):
        connected("auto").__enter__()
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_address_where_nothing_listens_is_refused_before_ray_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        connected("127.0.0.1:1").__enter__()
    assert not fake.is_up


def test_ray_is_ended_with_the_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fake = FakeRay(monkeypatch)
    with pytest.raises(ZeroDivisionError), connected(None):
        _ = 1 / 0
    assert not fake.is_up


def test_this_machine_is_never_taken_for_a_cluster_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an address Ray would join what /tmp/ray/ray_current_cluster names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fake = FakeRay(monkeypatch)
    with connected(None):
        assert (fake.given["address"], fake.given["include_dashboard"]) == ("local", False)
    with connected("auto"):
        assert fake.given["address"] == "auto"
        assert "num_cpus" not in fake.given  # Ray refuses it for a cluster that is up


def test_rays_token_is_for_its_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setattr(ray_environment, "TOKEN", token)
    FakeRay(monkeypatch)
    with connected(None):
        assert token.stat().st_mode & 0o777 == 0o600

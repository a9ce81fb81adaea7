"""Warm worker groups: one `TorchTrainer.fit()` per trial that runs side by side, each alive for the whole sweep."""

import contextlib
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchConfig

from rayft import imports
from rayft.sweep.cluster import Placement
from rayft.sweep.lean_trainer import LeanTorchTrainer
from rayft.sweep.protocol import GroupSpec

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

logger = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""How long groups get to end by themselves, which frees their placement groups."""


class WorkerGroups:
    """Starts the groups, keeps them alive and ends them.

    Every group's `fit` runs in a thread of the driver, so that groups depend on no trial's actor, and come up while the
    driver still encodes data.

    Args:
        exchange: Handle of the `Exchange` actor.
        spec: What every group needs to know.
        placement: How many groups, and of what.
        max_failures: How often Ray Train starts a group's workers again.
        scratch: A folder for Ray's own files, which all nodes see.
        filesystem: What it is a folder of; the local one if None.
    """

    def __init__(
        self,
        exchange: Any,
        spec: GroupSpec,
        placement: Placement,
        max_failures: int,
        scratch: str,
        filesystem: "FileSystem | None",
    ) -> None:
        self._exchange = exchange
        self._spec = spec
        self._placement = placement
        self._max_failures = max_failures
        self._scratch, self._filesystem = scratch, filesystem
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._keep_alive, args=(slot,), name=f"group-{slot}", daemon=True)
            for slot in range(placement.groups)
        ]

    def start(self) -> None:
        """Returns at once; the groups come up in the background."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float) -> bool:
        """Asks the groups to end; returns whether all did within `patience` seconds."""
        self._stopping = True
        deadline = time.monotonic() + patience
        with contextlib.suppress(RayError):  # the exchange is gone, which ends the groups as well
            ray.get(self._exchange.close.remote())
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _keep_alive(self, slot: int) -> None:
        restart = True
        starts = itertools.count(1)
        while restart:
            reason = self._fit(slot, f"group-{slot}-{next(starts)}")
            if self._stopping:  # Ray may be shut down by now, and would end the process that still talks to it
                return
            try:
                restart = ray.get(self._exchange.group_ended.remote(slot, reason))
            except RayError:  # the exchange is gone, and the sweep with it
                restart = False

    def _fit(self, slot: int, name: str) -> str:
        """One life of a group; returns what ended it."""
        try:
            self._trainer(slot, name).fit()
        except Exception as error:  # whatever it is, a trial may be waiting for this group and has to be told
            if not self._stopping:
                logger.warning("worker group %d ended", slot, exc_info=error)
            return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return "the group ended by itself"

    def _trainer(self, slot: int, name: str) -> LeanTorchTrainer:
        place = self._placement
        resources = {"CPU": place.cpus, **({"GPU": place.gpus} if place.gpus else {})}
        return LeanTorchTrainer(
            _train_loop,
            train_loop_config={"exchange": self._exchange, "slot": slot, "spec": self._spec},
            torch_config=TorchConfig(backend="nccl" if place.gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=place.workers, use_gpu=place.gpus > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=self._scratch,
                storage_filesystem=self._filesystem,
                # Both finite: Ray would repeat for ever a start that can't succeed. A `fit` that ends after its workers
                # had come up is started again, see `Exchange.group_ended`.
                failure_config=ray.train.FailureConfig(
                    max_failures=self._max_failures, controller_failure_limit=self._max_failures
                ),
            ),
        )


def _train_loop(config: dict[str, Any]) -> None:
    # Not at the top: it imports transformers, which takes seconds, and a driver that starts groups doesn't need it yet.
    with imports.swiftly():
        from rayft.sweep.worker import worker_loop

    worker_loop(config)

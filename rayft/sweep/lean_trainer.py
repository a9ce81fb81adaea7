"""A TorchTrainer that starts its workers and nothing else.

Ray starts six processes for a group of one worker. Each imports Ray Train, which on two cores is half of a small
sweep's start. What they do is here done in the thread that calls `fit`, or left out:

- The controller, a loop that mostly waits. Without the driver it has no use, and it ends with it.
- An actor for Ray Data, and a detached one that removes the placement groups of controllers that died; Ray removes them
  with their driver anyway.
- An actor where the workers of a group meet to report a checkpoint. rayft's report to the exchange.
- The autoscaling coordinator. A pending placement group is demand enough for Ray's autoscaler.

Overridden are hooks that Ray doesn't promise to keep; `tests/sweep/test_lean_trainer.py` holds that they are there.
"""

import asyncio
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group

NEEDLESS_CALLBACKS = frozenset({"DatasetsCallback", "PlacementGroupCleanerCallback"})


class LeanTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """See above; it takes a TorchTrainer's arguments, and trains on the same kind of workers."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ not in NEEDLESS_CALLBACKS]

    def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
        controller = _Controller(**{**parts, "scaling_policy": _FixedSize(self.scaling_config)})
        asyncio.run(controller.run())
        return controller.get_result()


class _NoBarrier:
    """In place of the handle of the actor where workers meet."""

    @classmethod
    def options(cls, **_: Any) -> type["_NoBarrier"]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> "_NoBarrier":
        return cls()


# Ray has no hook for this one.
worker_group.SynchronizationActor = _NoBarrier
state._shutdown_sync_actor = lambda barrier: None


class _WorkerGroup(WorkerGroup):  # type: ignore[misc]
    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: dict[str, Any]) -> dict[str, Any]:
        # Ray's own adds variables that only a controller reads, and that keep the workers out of the processes which
        # Ray has ready.
        return dict(custom_runtime_env)

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: _NoBarrier, train_context_args: dict[str, list[Any]]
    ) -> None:
        # Ray's own gives the workers the handle of the controller's actor, to ask it for checkpoints: rayft's workers
        # don't, and there is no such actor.
        started = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[index] for name, values in train_context_args.items()},
            )
            for index, worker in enumerate(workers)
        ]
        ray.get(started)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup


class _FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        """Asks no coordinator for anything."""

    def _maybe_send_resource_request(self) -> None:
        pass

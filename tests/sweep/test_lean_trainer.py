"""Ray promises none of the hooks that the lean trainer overrides: these tests say at once what a new Ray has changed.

That it trains is for `tests/integration` to show.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rayft.sweep.lean_trainer import (
    NEEDLESS_CALLBACKS,
    LeanTorchTrainer,
    _Controller,
    _FixedSize,
    _WorkerGroup,
)

OVERRIDDEN = [
    (LeanTorchTrainer, TorchTrainer),
    (_WorkerGroup, WorkerGroup),
    (_Controller, TrainController),
    (_FixedSize, FixedScalingPolicy),
]


def hooks_of(overriding: type) -> list[str]:
    return [name for name in vars(overriding) if not name.startswith(("__", "_abc_"))]


HOOKS = [(ours, rays, name) for ours, rays in OVERRIDDEN for name in hooks_of(ours)]


def source(function: Callable[..., Any]) -> str:
    return inspect.getsource(inspect.unwrap(function))


def callbacks_of(trainer: type[TorchTrainer]) -> list[str]:
    made = trainer(print, scaling_config=ray.train.ScalingConfig(num_workers=1))
    return [type(one).__name__ for one in made._create_default_callbacks()]


def test_all_that_is_overridden_is_listed() -> None:
    assert {(ours.__name__, name) for ours, _, name in HOOKS} == {
        ("LeanTorchTrainer", "_create_default_callbacks"),
        ("LeanTorchTrainer", "_initialize_and_run_controller"),
        ("_WorkerGroup", "_get_worker_runtime_env"),
        ("_WorkerGroup", "_init_train_context_on_workers"),
        ("_Controller", "worker_group_cls"),
        ("_FixedSize", "after_controller_start"),
        ("_FixedSize", "_maybe_send_resource_request"),
    }


@pytest.mark.parametrize(("ours", "rays", "name"), HOOKS, ids=[name for _, _, name in HOOKS])
def test_ray_has_the_hook_and_calls_it_as_we_expect(ours: type, rays: type, name: str) -> None:
    theirs = inspect.getattr_static(rays, name)
    own = vars(ours)[name]
    if isinstance(own, type):
        assert issubclass(own, theirs)
        return
    assert type(own) is type(theirs)  # a plain method, or a static one
    assert inspect.iscoroutinefunction(getattr(ours, name)) == inspect.iscoroutinefunction(getattr(rays, name))

    def parameters(owner: type) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(getattr(owner, name)).parameters.values()
        # What takes any keywords may call them as it likes.
        return [("" if p.kind is p.VAR_KEYWORD else p.name, p.kind, p.default) for p in found]

    assert parameters(ours) == parameters(rays)


@pytest.mark.parametrize(
    ("caller", "call"),
    [
        (DataParallelTrainer.fit, "self._initialize_and_run_controller("),
        (DataParallelTrainer.fit, "scaling_policy="),
        (DataParallelTrainer.fit, "callbacks=self._create_default_callbacks()"),
        (TrainController, "self.worker_group_cls.create("),
        (WorkerGroup, "self._get_worker_runtime_env("),
        (WorkerGroup, "self._init_train_context_on_workers("),
        (FixedScalingPolicy, "self._maybe_send_resource_request()"),
    ],
)
def test_ray_still_goes_through_the_hook(caller: Callable[..., Any], call: str) -> None:
    """A hook that is there and that nothing calls any more would be overridden in vain."""
    assert call in source(caller)


def test_the_controller_can_be_made_and_run_as_we_do() -> None:
    given = inspect.signature(TrainController.__init__).parameters
    passed = {
        "train_fn_ref",
        "scaling_policy",
        "failure_policy",
        "train_run_context",
        "callbacks",
        "validation_config",
    }
    assert passed == given.keys() - {"self"}
    assert inspect.iscoroutinefunction(TrainController.run)
    assert not inspect.iscoroutinefunction(TrainController.get_result)
    for method in (TrainController.run, TrainController.get_result):
        assert list(inspect.signature(method).parameters) == ["self"]


def test_workers_take_the_context_that_we_give_them() -> None:
    parameters = inspect.signature(RayTrainWorker.init_train_context).parameters
    ours = {
        "train_run_context",
        "distributed_context",
        "synchronization_actor",
        "storage_context",
        "worker_callbacks",
        "controller_actor",
    }
    required = {name for name, p in parameters.items() if p.default is p.empty} - {"self"}
    assert required == ours
    # Ray's own version gives the same, but for the controller.
    rays = source(WorkerGroup._init_train_context_on_workers)
    assert [name for name in ours if f"{name}=" not in rays] == []
    for used in ("_train_run_context", "_storage_context", "_worker_callbacks_to_propagate"):
        assert f"self.{used}" in rays
    assert callable(WorkerGroup._decorate_worker_log_file_paths)


def test_workers_get_no_environment_of_rays_own() -> None:
    given = {"env_vars": {"A": "1"}}
    found = _WorkerGroup._get_worker_runtime_env(given)
    assert found == given and found is not given
    assert WorkerGroup._get_worker_runtime_env({})["env_vars"] is not None  # what it is overridden for


def test_needless_callbacks_are_left_out_and_nothing_else() -> None:
    rays, ours = callbacks_of(TorchTrainer), callbacks_of(LeanTorchTrainer)
    assert set(rays) >= NEEDLESS_CALLBACKS
    assert ours == [name for name in rays if name not in NEEDLESS_CALLBACKS]
    assert "BackendSetupCallback" in ours  # without it there is no torch.distributed
    assert not ray.is_initialized()


def test_the_policy_asks_no_coordinator() -> None:
    scaling = ray.train.ScalingConfig(num_workers=2)
    policy = _FixedSize(scaling)
    policy.after_controller_start(None)
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision.num_workers == 2
    asyncio.run(policy.before_controller_shutdown())  # there is nothing to cancel
    policy.before_controller_abort()
    assert policy._coordinator_client is None
    assert "TrainAutoscalingCoordinatorClient(" in source(ScalingPolicy.after_controller_start)
    assert not ray.is_initialized()

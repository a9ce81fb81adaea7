"""Stops a program at a chosen place, so that what is killed there is killed there and nowhere near it.

Python imports a module of this name at the start of every process that finds it, Ray's workers among them.

RAYFT_FAULT is `MODULE:NAME:WHEN:CALL:DO:FLAG`: at the CALL-th call of a function or method, before or after it by WHEN,
the first process that comes there makes the file FLAG, with its id in it, and then sleeps. That is for `hold`; with
`metrics` as DO the function is one whose metrics are made strange. RAYFT_COUNT names a file that gets a line for every
epoch that is trained.
"""

import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

HOLD_SECONDS = 600


class Changes:
    """Finds some modules as Python would, and changes functions of theirs once they are loaded."""

    def __init__(self) -> None:
        self._wraps: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {}

    def add(self, module: str, name: str, wrap: Callable[[Any], Any]) -> None:
        self._wraps.setdefault(module, []).append((name, wrap))

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._wraps:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            for place, wrap in self._wraps[name]:
                *owners, last = place.split(".")
                owner: Any = module
                for part in owners:
                    owner = getattr(owner, part)
                setattr(owner, last, wrap(getattr(owner, last)))

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def fault(when: str, call: int, flag: str) -> Callable[[Any], Any]:
    calls = 0

    def strike() -> None:
        try:
            os.close(os.open(f"{flag}.taken", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        with open(f"{flag}.new", "w") as file:  # noqa: PTH123, nothing may be imported here that a program may not
            file.write(str(os.getpid()))
        os.replace(f"{flag}.new", flag)  # noqa: PTH105
        time.sleep(HOLD_SECONDS)

    def wrap(function: Any) -> Any:
        def stopping(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if when == "before" and calls == call:
                strike()
            result = function(*args, **kwargs)
            if when == "after" and calls == call:
                strike()
            return result

        return stopping

    return wrap


def counting(path: str) -> Callable[[Any], Any]:
    def wrap(train_epoch: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = train_epoch(*args, **kwargs)
            with open(path, "a") as file:  # noqa: PTH123
                file.write(f"{result.epoch}\n")
            return result

        return counted

    return wrap


def strange_metrics(compute: Any) -> Any:
    """Each call's accuracy is another one of what a metric may be but should not."""
    calls = 0

    def strange(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        import numpy as np

        values = [np.nan, np.inf, -np.inf, np.float32(0.0), np.float64("nan"), "missing", None, "high"]
        metrics = compute(*args, **kwargs)
        if calls < len(values):
            metrics["accuracy"] = values[calls]
            if metrics["accuracy"] == "missing":
                del metrics["accuracy"]
        calls += 1
        return metrics

    return strange


changes = Changes()
if described := os.environ.get("RAYFT_FAULT"):
    module, name, when, call, do, flag = described.split(":")
    changes.add(module, name, strange_metrics if do == "metrics" else fault(when, int(call), flag))
if counted := os.environ.get("RAYFT_COUNT"):
    changes.add("rayft.training.loop", "FineTuning.train_epoch", counting(counted))
sys.meta_path.insert(0, changes)

"""Each trial as a run in MLflow and in Weights & Biases, which find their server and keys in the environment.

Ray's own callbacks for both take Tune's configuration of a trial for its parameters, and rayft's holds no more than the
assignment that a worker group gets; hence two watchers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from rayft.config import LoggerName, SweepConfig
from rayft.errors import ConfigError, Fault
from rayft.report.loggers.aside import Aside
from rayft.report.loggers.base import RunLogger, SweepFacts
from rayft.report.loggers.mlflow_runs import MlflowRuns
from rayft.report.loggers.wandb_runs import WandbRuns
from rayft.sweep.run_folder import RunFolder

LOGGERS: Mapping[LoggerName, Callable[[SweepFacts], RunLogger]] = {"mlflow": MlflowRuns, "wandb": WandbRuns}


@contextmanager
def trial_loggers(run: RunFolder, config: SweepConfig, note: Callable[[str], None]) -> Iterator[tuple[Aside, ...]]:
    """A watcher for each of `logging`, closed after the block.

    Args:
        run: The run folder.
        config: Its sweep.
        note: Shows the user something that they should read.
    """
    with ExitStack() as stack:
        watchers = []
        for name in config.logging:
            make = LOGGERS[name]
            watchers.append(Aside(name, lambda make=make: make(SweepFacts.of(run, config)), note))  # type: ignore[misc]
            stack.callback(watchers[-1].close)
        yield tuple(watchers)


def check_installed(config: SweepConfig, where: str) -> None:
    """Sees to it that there is a package for each of `logging`.

    Args:
        config: The sweep.
        where: The file that a fault is in.

    Raises:
        ConfigError: There isn't.
    """
    missing = [name for name in config.logging if not _is_installed(name)]
    if missing:
        rules = [f"{name} isn't installed; pip install 'rayft[{name}]'" for name in missing]
        raise ConfigError([Fault(where, rule, "logging") for rule in rules])


def _is_installed(package: str) -> bool:
    # Each leaves a folder of its own name where it runs, and Python takes a folder for a package without a file.
    spec = find_spec(package)
    return spec is not None and spec.origin is not None

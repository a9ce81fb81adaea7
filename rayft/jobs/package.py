"""What a job is sent with: the sweep, the local files that it names, rayft itself, and the packages that it takes."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import rayft
from rayft.config import LoggerName, SweepConfig
from rayft.config_paths import with_absolute_paths, with_models
from rayft.config_space import as_list
from rayft.data.load import HUB, resolve_source
from rayft.errors import SWEEP_FILE, Fault, RunError
from rayft.sweep.remote_folder import is_remote
from rayft.sweep_file import dump_sweep

Environment = Literal["install", "cluster"]
"""Whether Ray installs the pinned packages on each node, or takes what the nodes have."""

LIMIT_BYTES = 95_000_000
"""Ray's job server takes no upload above 100 MiB. The rest is for the sweep file, and for what the zip file adds."""
LOGGER_PACKAGES: dict[LoggerName, str] = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
PINNED = (
    "accelerate",
    "datasets",
    "filelock",
    "huggingface_hub",
    "jinja2",
    "optuna",
    "peft",
    "pillow",
    "plotly",
    "psutil",
    "pydantic",
    "pyyaml",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "seqeval",
    "tensorboard",
    "tokenizers",
    "transformers",
    "typer",
    "xxhash",
)
"""What a job gets in this machine's versions. Ray, torch and what they are built against are the cluster's own."""
STOP_SECONDS = 60
"""How long a job that is stopped gets to end its trials' epochs."""


@dataclass(frozen=True)
class Package:
    """A folder to be sent.

    Attributes:
        folder: The job's working directory.
        bytes: How much lies in it.
        files: What lies in it, relative to it, with its size in bytes.
        needs: What the sweep's loggers need beside what every sweep does.
    """

    folder: Path
    bytes: int
    files: dict[str, int]
    needs: tuple[str, ...] = ()


@contextmanager
def packed(config: SweepConfig, storage: str, with_files: bool) -> Iterator[Package]:
    """A temporary folder with the sweep and the local files that it names.

    Args:
        config: The sweep.
        storage: Where the cluster is to write the run.
        with_files: Whether data and model are copied too; the cluster must see them at their paths otherwise.

    Raises:
        UserError: A file isn't there, or all together are too large.
    """
    with TemporaryDirectory(prefix="rayft-job-") as name:
        folder = Path(name)
        sent = with_absolute_paths(config).model_copy(update={"storage": storage})
        if with_files:
            sent = _with_files(sent, folder)
        (folder / "sweep.yaml").write_text(dump_sweep(sent), encoding="utf-8")
        files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
        needs = tuple(LOGGER_PACKAGES[name] for name in config.logging)
        yield Package(folder, sum(files.values()), files, needs)


def runtime_env(package: Package, environment: Environment) -> dict[str, Any]:
    """Ray's description of what a job needs. It can be read by all who see the job, so no secret may be in it."""
    env: dict[str, Any] = {
        "working_dir": str(package.folder),
        "py_modules": [str(Path(rayft.__file__).parent)],
        "excludes": ["__pycache__"],
        "env_vars": {
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        },
    }
    if environment == "install":
        pinned = [f"{name}=={version(name)}" for name in (*PINNED, *package.needs) if _is_installed(name)]
        unknown = [name for name in package.needs if not _is_installed(name)]  # the laptop may do without
        env["pip"] = {"packages": pinned + unknown}
    return env


def entrypoint(*arguments: str) -> str:
    """The command line of a job. The shell that Ray starts it with becomes it, so that a stop's signal comes once."""
    return shlex.join(["exec", "python", "-m", "rayft.jobs.run", *arguments])


def cluster_storage(storage: str) -> str:
    """Where a job writes its run: a relative folder would be one of the job's own, which Ray deletes."""
    return storage if is_remote(storage) or storage.startswith(("/", "~")) else f"~/{storage}"


def _with_files(config: SweepConfig, folder: Path) -> SweepConfig:
    """The sweep as a job in `folder` sees it, with all local files copied there."""
    total = _Budget()
    sources = {
        split: _copied(getattr(config.data, split), split, folder, total)
        for split in ("train", "validation", "test", "unlabeled")
        if getattr(config.data, split) is not None
    }
    sent: dict[str, str] = {}
    for model in config.models:
        if Path(model).is_dir():
            total.add(Path(model), "model")
            sent[model] = "model" if len(config.models) == 1 else f"model-{len(sent)}"
            _copy(Path(model), folder / sent[model])
    return with_models(config.model_copy(update={"data": config.data.model_copy(update=sources)}), sent)


class _Budget:
    """Adds up what is to be sent."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, path: Path, key: str) -> None:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        self._bytes += sum(file.stat().st_size for file in files)
        if self._bytes > LIMIT_BYTES:
            size, limit = self._bytes / 1e6, LIMIT_BYTES / 1e6
            rule = f"with {path} there are {size:.0f} MB to send, and a job takes at most {limit:.0f} MB"
            way_out = "put it on the Hub, or into a folder that all nodes see and submit from there with --no-files"
            raise RunError([Fault(SWEEP_FILE, f"{rule}; {way_out}", key)])


def _copied(source: Any, split: str, folder: Path, total: _Budget) -> Any:
    """A split's source as the job sees it, whose files are copied below `folder`."""
    if isinstance(source, float):  # a fraction of train
        return source
    names, faults = resolve_source(source, f"data.{split}")
    if faults:
        raise RunError(faults)
    sent = []
    for index, name in enumerate(names):
        if name.startswith(HUB):
            sent.append(name)
            continue
        path = Path(name).expanduser()
        total.add(path, f"data.{split}")
        place = Path("data") / split / f"{index}-{path.name}"
        _copy(path, folder / place)
        sent.append(str(place))
    return sent if isinstance(source, list) or len(as_list(source)) != len(sent) else sent[0]


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to)
    else:
        shutil.copy(path, to)


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True

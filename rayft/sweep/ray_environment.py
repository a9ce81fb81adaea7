"""Ray's settings that have to be in the environment before Ray is imported. So this module doesn't import it."""

import os
import platform
import stat
from pathlib import Path

TOKEN = Path.home() / ".ray" / "auth_token"


def _glibc() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.libc_ver()[1].split(".") if part.isdecimal())


SETTINGS = {
    # Train's controller sleeps this long between looks at its workers, at start-up too.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # It watches for the notices of spot nodes, at the price of one more process for each group.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Its logs and metrics are set up in the driver, where its controllers run.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Nothing reads Tune's own files, and each costs time in every epoch.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A trial that failed has no metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Signals and the screen are the sweep's own.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""The processes that Ray starts inherit them."""


PATIENCE = {
    # How long a group waits for its workers' nodes; a spot instance is replaced within minutes, and not within 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
}
"""For clusters, whose nodes come and go."""

ALLOCATOR = {
    # Older ones ignore a higher threshold than 32 MB, and then map all above 128 KB.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30 if _glibc() >= (2, 36) else 1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Has glibc keep what a training step frees for the next one, which else is mapped anew, zeroed, page by page.

On CPUs that is 2 to 15 % of a step. On a cluster that others have started it is up to them.
"""


def prepare(address: str | None) -> None:
    """Sets what the user hasn't set.

    Args:
        address: The cluster that is going to be joined, or None for one of this process's own.
    """
    for name, value in (SETTINGS | (PATIENCE if address else ALLOCATOR)).items():
        os.environ.setdefault(name, value)
    if address is not None:
        use_token()


def use_token() -> None:
    """Has Ray use the token that there is, which it does by itself only for a cluster that it starts."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or TOKEN.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def protect_token() -> None:
    """Ray makes its token readable by every user of the machine; it lets whoever has it run code."""
    if TOKEN.exists() and TOKEN.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        TOKEN.chmod(stat.S_IRUSR | stat.S_IWUSR)

"""What the shell offers for a half-typed word. Light, since it runs at each press of Tab."""

from pathlib import Path

import typer

from rayft.config import STRATEGIES

STATES = ("complete", "pruned", "failed", "running")
"""Of a trial, as the study has them."""
_RUN_FILES = ("study.db", "sweep.yaml")


def run_folders(incomplete: str) -> list[str]:
    """Folders that hold a run, at what is typed or one level below it, such as those under runs/."""
    found = []
    for typed in _beginning_with(incomplete):
        within = [typed] if _is_run(typed) else _beginning_with(f"{typed}/") if _path(typed).is_dir() else []
        found += [one for one in within if _is_run(one)]
    return found


def sweep_files(incomplete: str) -> list[str]:
    """YAML files, at what is typed or one level below it; those of runs are written by rayft."""
    found = []
    for typed in _beginning_with(incomplete):
        within = _beginning_with(f"{typed}/") if _path(typed).is_dir() and not _is_run(typed) else [typed]
        found += [one for one in within if one.endswith((".yaml", ".yml")) and _path(one).is_file()]
    return found


def trial_numbers(ctx: typer.Context, incomplete: str) -> list[str]:
    """The trials of the run that was named before."""
    names = [one.rpartition("/")[2] for one in _beginning_with(f"{ctx.params.get('run')}/trials/{incomplete}")]
    return sorted((name for name in names if name.isdecimal()), key=int)


def states(incomplete: str) -> list[str]:
    """States of trials."""
    return [state for state in STATES if state.startswith(incomplete)]


def strategies(incomplete: str) -> list[str]:
    """Fine-tuning strategies."""
    return [strategy for strategy in STRATEGIES if strategy.startswith(incomplete)]


def _beginning_with(typed: str) -> list[str]:
    """Files and folders as they would be typed on; hidden ones only if a dot is typed."""
    folder, slash, start = typed.rpartition("/")
    try:
        names = sorted(entry.name for entry in _path(folder + slash).iterdir())
    except (OSError, RuntimeError, ValueError):  # it isn't there, can't be read, or is no path at all
        return []
    return [folder + slash + n for n in names if n.startswith(start) and (start or not n.startswith("."))]


def _is_run(typed: str) -> bool:
    return any((_path(typed) / name).is_file() for name in _RUN_FILES)


def _path(typed: str) -> Path:
    return Path(typed).expanduser()

"""Where this machine keeps what can be had again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder below $RAYFT_CACHE, else $XDG_CACHE_HOME/rayft, else ~/.cache/rayft; not made here."""
    if own := os.environ.get("RAYFT_CACHE"):
        return Path(own).expanduser() / name
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rayft" / name

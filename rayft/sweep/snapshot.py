"""A copy of a database that others may be writing."""

import sqlite3
from contextlib import closing
from pathlib import Path


def snapshot(database: Path) -> bytes:
    """A consistent copy of an SQLite file that others may be writing."""
    copy = database.with_name(f".{database.name}.snapshot")
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    content = copy.read_bytes()
    copy.unlink()
    return content

"""Importing large packages."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_importing = 0
_was_on = True


@contextmanager
def swiftly() -> Iterator[None]:
    """Leaves the garbage collector off in the block, and what is there after it out of later collections.

    torch and transformers make millions of objects that all stay. The collector goes through them again and again
    while they are imported, which is a fifth of the time that this takes. Threads may overlap.
    """
    global _importing, _was_on
    with _lock:
        if not _importing:
            _was_on = gc.isenabled()
        _importing += 1
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _importing -= 1
            if not _importing:
                gc.freeze()
                if _was_on:
                    gc.enable()

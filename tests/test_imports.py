import gc
import threading
from collections.abc import Iterator

import pytest

from rayft import imports


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """On before each test, and after it as if nothing had been."""
    assert gc.isenabled()
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


def test_the_collector_is_off_within_and_on_after() -> None:
    with imports.swiftly():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_was_made_within_is_left_out_of_later_collections() -> None:
    assert gc.get_freeze_count() == 0
    with imports.swiftly():
        made: list[list[int]] = [[] for _ in range(1000)]
        assert gc.get_freeze_count() == 0
    assert gc.get_freeze_count() > len(made)
    assert not any(one is made for one in gc.get_objects())


def test_only_the_outermost_block_switches_it_on() -> None:
    with imports.swiftly():
        with imports.swiftly():
            assert not gc.isenabled()
        assert not gc.isenabled() and gc.get_freeze_count() == 0
    assert gc.isenabled() and gc.get_freeze_count() > 0


def test_an_exception_switches_it_on_too() -> None:
    with pytest.raises(ImportError, match="no such module"), imports.swiftly():
        raise ImportError("no such module")
    assert gc.isenabled()
    with pytest.raises(ImportError), imports.swiftly(), imports.swiftly():
        raise ImportError
    assert gc.isenabled()
    with imports.swiftly():
        assert not gc.isenabled()  # nothing was miscounted


def test_the_last_of_overlapping_threads_switches_it_on() -> None:
    inside, leave = threading.Event(), threading.Event()

    def importing() -> None:
        with imports.swiftly():
            inside.set()
            assert leave.wait(10)

    other = threading.Thread(target=importing)
    with imports.swiftly():
        other.start()
        assert inside.wait(10)
    assert not gc.isenabled()  # this thread is done and the other is not
    leave.set()
    other.join(10)
    assert not other.is_alive() and gc.isenabled()


def test_a_thread_that_fails_takes_nothing_from_the_others() -> None:
    def failing() -> None:
        with pytest.raises(ImportError), imports.swiftly():
            raise ImportError

    other = threading.Thread(target=failing)
    with imports.swiftly():
        other.start()
        other.join(10)
        assert not other.is_alive() and not gc.isenabled()
    assert gc.isenabled()

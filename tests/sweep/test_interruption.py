import os
import signal

import pytest

from rayft.sweep.interruption import SIGNALS, Interruption


def test_nothing_is_requested_before_a_signal() -> None:
    with Interruption() as interruption:
        assert not interruption.requested


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_ends(first: signal.Signals, second: signal.Signals) -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), first)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


def test_handlers_are_put_back_however_it_ends() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="x"), Interruption():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        raise ValueError("x")
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_it_can_be_used_again() -> None:
    for _ in range(2):
        with Interruption() as interruption:
            assert not interruption.requested
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.requested

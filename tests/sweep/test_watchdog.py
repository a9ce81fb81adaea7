import subprocess
import sys
import threading

from rayft.sweep.watchdog import stacks

STALLED = """
import sys, time
from rayft.pulse import Pulse
from rayft.sweep.watchdog import Watchdog

def stands_here():
    time.sleep(600)

with Watchdog(Pulse(), 0.2).watching(lambda stacks: print(stacks, flush=True)):
    stands_here()
"""


def test_a_process_that_stands_still_ends_and_says_where_it_stood() -> None:
    done = subprocess.run([sys.executable, "-c", STALLED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "in stands_here" in done.stdout


def test_a_report_that_fails_ends_the_process_as_well() -> None:
    script = STALLED.replace("lambda stacks: print(stacks, flush=True)", "lambda stacks: 1 / 0")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120).returncode == 1


WAITS = """
import time
from rayft.pulse import Pulse
from rayft.sweep.watchdog import Watchdog

pulse = Pulse()
watchdog = Watchdog(pulse, 3.0)
with watchdog.watching(lambda stacks: print(stacks, flush=True)):
    for _ in range(40):
        pulse.beat()
        time.sleep(0.1)
time.sleep(4)
print("done")
"""


def test_a_pulse_that_goes_on_and_a_wait_between_blocks_are_no_standstill() -> None:
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_stacks_show_every_thread() -> None:
    release = threading.Event()

    def waits_for_release() -> None:
        release.wait(60)

    thread = threading.Thread(target=waits_for_release)
    thread.start()
    found = stacks()
    release.set()
    thread.join()
    assert "waits_for_release" in found
    assert "test_stacks_show_every_thread" in found

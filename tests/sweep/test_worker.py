import errno

import pytest

from rayft.errors import CheckpointError
from rayft.sweep.worker import describe, has_leaked
from tests.training.conftest import ALONE

GB = 10**9


@pytest.mark.parametrize(
    ("held", "available", "expected"),
    [
        (7 * GB, 5 * GB, True),  # it has more than doubled, and the node has less than a tenth left
        (7 * GB, 50 * GB, False),  # it has grown, and there is room: the allocator keeps it for the next trial
        (4 * GB, 5 * GB, False),  # the node is full of something else
        (3 * GB, 90 * GB, False),
        (6 * GB, 5 * GB, False),  # twice is not more than twice
        (6 * GB + 1, 5 * GB, True),
        (7 * GB, 10 * GB, False),  # a tenth is not less than a tenth
        (7 * GB, 10 * GB - 1, True),
        (2 * GB, 0, False),  # it has shrunk
    ],
)
def test_a_worker_has_leaked_if_it_has_grown_and_its_node_is_short_of_memory(
    held: int, available: int, expected: bool
) -> None:
    assert has_leaked(first=3 * GB, held=held, available=available, total=100 * GB) is expected


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "storage", "OSError: [Errno 28] No space left on device"),
        (PermissionError(errno.EACCES, "Access Denied"), "storage", "PermissionError: [Errno 13] Access Denied"),
        (CheckpointError("it is damaged"), "error", "CheckpointError: it is damaged"),
        (ZeroDivisionError("division by zero"), "error", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_no_trial_can_help_is_told_from_what_one_can(error: Exception, kind: str, reason: str) -> None:
    failure = describe(error, ALONE)
    assert (failure.kind, failure.reason, failure.restarts) == (kind, reason, False)

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from rayft.config import Hyperparameters, Mode
from rayft.sweep.exchange import LEADERS, Exchange
from rayft.sweep.protocol import Assignment, Command, EpochDone, GroupLost, Interrupted, Outcome, TrialFailed
from rayft.training.results import EpochResult
from tests.sweep.conftest import metrics

T = TypeVar("T")


def exchange_of(
    slots: int = 1,
    world_size: int = 1,
    max_failures: int = 1,
    mode: Mode = "max",
    best: dict[int, tuple[int, float]] | None = None,
) -> Exchange:
    points = {trial: (epoch, (value,)) for trial, (epoch, value) in (best or {}).items()}
    return Exchange(slots, world_size, max_failures, (mode,), points, [*points])


def assignment(trial: int) -> Assignment:
    return Assignment(trial, "model", Hyperparameters())


def done(epoch: int, digest: str | None = None) -> EpochDone:
    result = EpochResult(epoch, metrics(0.5), 0.1, (), seconds=1.0, samples_per_second=10.0, padding=0.0)
    return EpochDone(result, (0.5,), digest)


def scenario(story: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs a coroutine as a test; a call that never returns fails it."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(story(), 20))

    run.__name__ = story.__name__
    return run


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def ask(exchange: Exchange, trial: int, reported: int, slot: int = 0) -> "asyncio.Task[Outcome]":
    """A trial that waits for the epoch after `reported`."""
    task = asyncio.create_task(exchange.next_epoch(slot, assignment(trial), reported))
    await settle()
    return task


async def fetch(exchange: Exchange, rank: int = 0, slot: int = 0) -> Command:
    """What a worker has to do, which must be there already."""
    command = await now(exchange.next_command(slot, rank))
    assert command is not None
    return command


async def now(call: Awaitable[T]) -> T:
    return await asyncio.wait_for(call, 0.05)


async def is_idle(exchange: Exchange, rank: int = 0, slot: int = 0) -> bool:
    """Whether a worker that asks for a command has to wait."""
    try:
        await now(exchange.next_command(slot, rank))
    except TimeoutError:
        return True
    return False


# --- the way of an epoch


@scenario
async def test_a_trial_goes_epoch_by_epoch() -> None:
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    for reported in range(3):
        waiting = await ask(exchange, 7, reported)
        assert await fetch(exchange) == Command(assignment(7), reported)
        await exchange.report(0, 7, done(reported + 1))
        assert await now(waiting) == done(reported + 1)
        assert await is_idle(exchange)  # nothing is trained that ASHA may have stopped


@scenario
async def test_slots_do_not_meet() -> None:
    exchange = exchange_of(slots=2)
    for slot in (0, 1):
        await exchange.join(slot, 0, f"group {slot}")
    waiting = [await ask(exchange, trial, 0, slot) for slot, trial in enumerate((4, 5))]
    assert [(await fetch(exchange, slot=slot)).assignment.trial for slot in (0, 1)] == [4, 5]
    await exchange.report(1, 5, done(1))

    assert await now(waiting[1]) == done(1)
    assert not waiting[0].done()


@scenario
async def test_a_repeated_call_is_harmless() -> None:
    """Tune starts a trial's actor again after a crash, and the new one asks for the same epoch."""
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    await ask(exchange, 7, 0)
    again = await ask(exchange, 7, 0)
    assert [await fetch(exchange), await fetch(exchange)] == [Command(assignment(7), 0)] * 2
    await exchange.report(0, 7, done(1))
    assert await now(again) == done(1)

    following = await ask(exchange, 7, 1)
    await exchange.report(0, 7, done(1))  # the answer to the repetition
    await settle()
    assert not following.done()
    assert await fetch(exchange) == Command(assignment(7), 1)
    await exchange.report(0, 7, done(2))
    assert await now(following) == done(2)


@scenario
async def test_another_trials_late_answers_do_not_count() -> None:
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    waiting = await ask(exchange, 8, 0)
    await exchange.report(0, 7, done(1))
    await exchange.fail(0, 7, TrialFailed("error", "of the trial before"), "first")
    await settle()

    assert not waiting.done()
    assert await fetch(exchange) == Command(assignment(8), 0)


# --- groups


@scenario
async def test_commands_wait_until_all_ranks_have_joined() -> None:
    exchange = exchange_of(world_size=3)
    await ask(exchange, 7, 0)
    for rank in (2, 0):
        await exchange.join(0, rank, "first")
        assert await is_idle(exchange, rank)
    await exchange.join(0, 1, "first")

    assert [(await fetch(exchange, rank)).reported for rank in range(3)] == [0, 0, 0]


@scenario
async def test_a_restarted_group_gets_the_trial_again() -> None:
    exchange = exchange_of(world_size=2)
    for rank in (0, 1):
        await exchange.join(0, rank, "first")
    waiting = await ask(exchange, 7, 3)
    for rank in (0, 1):
        await fetch(exchange, rank)
    for rank in (1, 0):  # a worker was killed; Ray starts both anew
        await exchange.join(0, rank, "second")

    assert [await fetch(exchange, rank) for rank in (0, 1)] == [Command(assignment(7), 3)] * 2
    assert await is_idle(exchange)
    await exchange.report(0, 7, done(4))
    assert await now(waiting) == done(4)


@scenario
async def test_ranks_of_two_generations_make_no_group() -> None:
    exchange = exchange_of(world_size=2)
    await ask(exchange, 7, 0)
    await exchange.join(0, 0, "first")
    await exchange.join(0, 1, "second")
    assert await is_idle(exchange, rank=1)
    await exchange.join(0, 0, "second")
    assert await fetch(exchange, 0) == await fetch(exchange, 1) == Command(assignment(7), 0)


@scenario
async def test_a_dead_workers_pending_call_takes_no_command_away() -> None:
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    dead = asyncio.create_task(exchange.next_command(0, 0))  # killed while it waited: nobody reads the answer
    await settle()
    await exchange.join(0, 0, "second")
    await ask(exchange, 7, 0)

    assert await fetch(exchange) == Command(assignment(7), 0)
    assert not dead.done()
    dead.cancel()


@scenario
async def test_losses_beyond_max_failures_end_the_trial_and_not_the_group() -> None:
    exchange = exchange_of(max_failures=2)
    await exchange.join(0, 0, "start 0")
    waiting = await ask(exchange, 7, 0)
    for start in (1, 2):
        await exchange.join(0, 0, f"start {start}")
        assert not waiting.done()
    await exchange.join(0, 0, "start 3")
    outcome = await now(waiting)
    assert isinstance(outcome, TrialFailed)
    assert (outcome.kind, outcome.reason) == (
        "infrastructure",
        "a worker was lost 3 times on this trial (cluster.max_failures is 2)",
    )
    assert await is_idle(exchange)  # the failed trial isn't handed out again

    following = await ask(exchange, 8, 0)
    assert (await fetch(exchange)).assignment.trial == 8
    await exchange.join(0, 0, "start 4")  # counted for trial 8 alone
    assert (await fetch(exchange)).assignment.trial == 8
    await exchange.report(0, 8, done(1))
    assert await now(following) == done(1)


@scenario
async def test_losses_add_up_over_a_trials_epochs() -> None:
    exchange = exchange_of(max_failures=1)
    await exchange.join(0, 0, "start 0")
    for reported in (0, 1):
        waiting = await ask(exchange, 7, reported)
        await exchange.join(0, 0, f"start {reported + 1}")
        if reported == 0:
            await exchange.report(0, 7, done(1))
            assert isinstance(await now(waiting), EpochDone)
    assert isinstance(await now(waiting), TrialFailed)


@scenario
async def test_a_group_that_starts_anew_between_two_epochs_costs_no_trial_anything() -> None:
    exchange = exchange_of(max_failures=0)
    await exchange.join(0, 0, "first")
    await exchange.join(0, 0, "second")
    waiting = await ask(exchange, 7, 0)
    assert await fetch(exchange) == Command(assignment(7), 0)
    assert not waiting.done()


@scenario
async def test_a_group_that_worked_is_started_again_and_one_that_never_came_up_is_lost() -> None:
    exchange = exchange_of(world_size=2, max_failures=2)
    for rank in (0, 1):
        await exchange.join(0, rank, "first")
    waiting = await ask(exchange, 7, 1)
    await exchange.ready(0)

    assert await exchange.group_ended(0, "CUDA error")
    assert not waiting.done()
    for rank in (0, 1):
        await exchange.join(0, rank, "second")
    assert await fetch(exchange) == Command(assignment(7), 1)
    await exchange.ready(0)
    assert await exchange.group_ended(0, "CUDA error")
    await exchange.join(0, 0, "third")  # the other worker never comes up
    assert not await exchange.group_ended(0, "no space left on device")
    assert await now(waiting) == GroupLost("no space left on device")
    assert await now(exchange.next_epoch(0, assignment(8), 0)) == GroupLost("no space left on device")


@scenario
async def test_a_group_whose_workers_come_up_and_can_not_load_the_model_is_lost() -> None:
    exchange = exchange_of(max_failures=2)
    waiting = await ask(exchange, 7, 0)
    await exchange.join(0, 0, "first")
    assert not await exchange.group_ended(0, "no such file")
    assert await now(waiting) == GroupLost("no such file")


@scenario
async def test_a_failure_that_ends_the_workers_is_nobodys_loss() -> None:
    exchange = exchange_of(world_size=2, max_failures=0)
    for rank in (0, 1):
        await exchange.join(0, rank, "first")
    waiting = await ask(exchange, 7, 0)
    await exchange.fail(0, 7, TrialFailed("error", "rank 0", restarts=True), "first")
    assert await now(waiting) == TrialFailed("error", "rank 0", restarts=True)

    following = await ask(exchange, 8, 0)  # before the workers are up again
    await exchange.join(0, 0, "second")
    await exchange.fail(0, 7, TrialFailed("error", "rank 1, late", restarts=True), "first")
    await exchange.join(0, 1, "second")
    assert [(await fetch(exchange, rank)).assignment.trial for rank in (0, 1)] == [8, 8]
    assert not following.done()
    await exchange.report(0, 8, done(1))
    assert await now(following) == done(1)


@scenario
async def test_workers_that_start_anew_before_a_trial_are_nobodys_loss_and_it_goes_to_their_next_start() -> None:
    exchange = exchange_of(world_size=2, max_failures=0)
    for rank in (0, 1):
        await exchange.join(0, rank, "first")
    await exchange.ready(0)
    waiting = await ask(exchange, 7, 0)
    assert [await fetch(exchange, rank) for rank in (0, 1)] == [Command(assignment(7), 0)] * 2
    for _ in range(2):  # both found that one of them leaks
        await exchange.recycle(0, "first")
    assert await exchange.group_ended(0, "the group ended by itself")
    assert not waiting.done()

    await exchange.join(0, 1, "second")
    assert await is_idle(exchange, rank=1)  # the other one isn't up yet
    await exchange.join(0, 0, "second")
    assert [await fetch(exchange, rank) for rank in (0, 1)] == [Command(assignment(7), 0)] * 2
    assert await is_idle(exchange) and not waiting.done()
    await exchange.report(0, 7, done(1))
    assert await now(waiting) == done(1)


@scenario
async def test_a_late_word_of_the_old_workers_does_not_end_the_new_ones() -> None:
    exchange = exchange_of(world_size=2, max_failures=0)
    for rank in (0, 1):
        await exchange.join(0, rank, "first")
    waiting = await ask(exchange, 7, 0)
    await exchange.recycle(0, "first")
    for rank in (0, 1):
        await exchange.join(0, rank, "second")
    await exchange.recycle(0, "first")

    assert [await fetch(exchange, rank) for rank in (0, 1)] == [Command(assignment(7), 0)] * 2
    assert not waiting.done()


@scenario
async def test_losses_count_again_once_recycled_workers_are_up() -> None:
    exchange = exchange_of(max_failures=1)
    await exchange.join(0, 0, "first")
    waiting = await ask(exchange, 7, 0)
    await exchange.recycle(0, "first")
    await exchange.join(0, 0, "second")
    await exchange.join(0, 0, "third")  # the second start was lost, the first one wasn't
    await settle()
    assert not waiting.done()
    await exchange.join(0, 0, "fourth")
    assert isinstance(await now(waiting), TrialFailed)


@scenario
async def test_a_failure_of_the_trial_alone_leaves_the_workers_where_they_are() -> None:
    exchange = exchange_of(max_failures=0)
    await exchange.join(0, 0, "first")
    waiting = await ask(exchange, 7, 0)
    await fetch(exchange)
    await exchange.fail(0, 7, TrialFailed("diverged", "loss is nan"), "first")
    assert await now(waiting) == TrialFailed("diverged", "loss is nan")

    await ask(exchange, 8, 0)
    assert await fetch(exchange) == Command(assignment(8), 0)


@scenario
async def test_a_trial_that_asks_while_no_group_is_up_waits_for_the_next_one() -> None:
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    await exchange.ready(0)
    assert await exchange.group_ended(0, "gone")
    await ask(exchange, 8, 0)
    await exchange.join(0, 0, "second")
    assert await fetch(exchange) == Command(assignment(8), 0)


@scenario
async def test_a_lost_group_says_so_to_its_own_trials_only() -> None:
    exchange = exchange_of(slots=2)
    await exchange.join(1, 0, "other")
    waiting = [await ask(exchange, trial, 0, slot) for slot, trial in enumerate((4, 5))]
    await exchange.lose(0, "the model can't be read")

    assert await now(waiting[0]) == GroupLost("the model can't be read")
    assert not waiting[1].done()
    assert not await exchange.group_ended(0, "the group ended by itself")


@scenario
async def test_closing_ends_every_wait_and_every_idle_worker() -> None:
    exchange = exchange_of(slots=3)
    for slot in (0, 1):
        await exchange.join(slot, 0, f"group {slot}")
    waiting = [await ask(exchange, trial, 0, slot) for slot, trial in ((0, 4), (2, 6))]
    await fetch(exchange)
    idle = asyncio.create_task(exchange.next_command(1, 0))
    await settle()
    await exchange.close()

    assert [await now(task) for task in waiting] == [Interrupted(), Interrupted()]
    assert await now(idle) is None
    await exchange.report(0, 4, done(1))  # the worker that was in mid-epoch
    assert await now(exchange.next_command(0, 0)) is None
    assert await now(exchange.next_epoch(0, assignment(4), 1)) == Interrupted()
    assert not await exchange.group_ended(0, "the group ended by itself")


# --- memory


@scenario
async def test_a_trial_goes_on_with_smaller_micro_batches_and_is_not_charged_for_the_restart() -> None:
    exchange = exchange_of(world_size=2, max_failures=1)
    for rank in (0, 1):
        await exchange.join(0, rank, "start 0")
    waiting = await ask(exchange, 7, 0)
    for start, micro_batch in enumerate((8, 4, 2)):
        for rank in (0, 1):
            await fetch(exchange, rank)
        await exchange.shrink(0, 7, micro_batch, f"start {start}")
        await exchange.join(0, 1, f"start {start + 1}")
        await exchange.shrink(0, 7, micro_batch, f"start {start}")  # the other rank says so too, however late
        await exchange.join(0, 0, f"start {start + 1}")
        assert not waiting.done()
    assert await fetch(exchange) == await fetch(exchange, 1) == Command(assignment(7), 0, micro_batch=2)
    await exchange.report(0, 7, done(1))
    assert await now(waiting) == done(1)
    waiting = await ask(exchange, 7, 1)
    assert await fetch(exchange) == Command(assignment(7), 1, micro_batch=2)  # for the rest of the trial

    await exchange.join(0, 0, "start 4")  # a real loss, and then one more than is allowed
    assert not waiting.done()
    await exchange.join(0, 0, "start 5")
    assert isinstance(await now(waiting), TrialFailed)
    await exchange.join(0, 1, "start 5")
    await ask(exchange, 8, 0)
    assert await fetch(exchange) == Command(assignment(8), 0)  # the next trial starts with whole batches


@scenario
async def test_the_digest_comes_with_its_epoch() -> None:
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    waiting = await ask(exchange, 7, 0)
    await exchange.report(0, 7, done(1, digest="ab"))
    assert await now(waiting) == done(1, digest="ab")


# --- what is worth a checkpoint at once


async def saves(exchange: Exchange, reports: list[tuple[int, int, float]]) -> list[bool]:
    """The decision on each (trial, epoch, value)."""
    return [await exchange.is_leading(trial, epoch, (value,)) for trial, epoch, value in reports]


@pytest.mark.parametrize(
    ("mode", "reports", "expected"),
    [
        # The first three lead; a fourth has to beat one of them.
        ("max", [(0, 1, 0.5), (1, 1, 0.6), (2, 1, 0.7), (3, 1, 0.4), (4, 1, 0.55)], [True, True, True, False, True]),
        ("min", [(0, 1, 0.5), (1, 1, 0.4), (2, 1, 0.3), (3, 1, 0.6), (4, 1, 0.45)], [True, True, True, False, True]),
        # A trial competes with its own best epoch, and a tie with it is no new best.
        ("max", [(0, 1, 0.5), (0, 2, 0.4), (0, 3, 0.5), (0, 4, 0.6)], [True, False, False, True]),
        ("min", [(0, 1, 0.5), (0, 2, 0.6), (0, 3, 0.5), (0, 4, 0.4)], [True, False, False, True]),
        # Of equal trials the earlier number leads, whichever reports first: both are saved.
        ("max", [(5, 1, 0.5), (6, 1, 0.5), (7, 1, 0.5), (2, 1, 0.5)], [True] * 4),
        ("max", [(1, 1, 0.7), (2, 1, 0.7), (3, 1, 0.7), (4, 1, 0.6), (4, 2, 0.7)], [True] * 3 + [False, True]),
    ],
)
def test_leaders_best_epochs_are_saved(mode: Mode, reports: list[tuple[int, int, float]], expected: list[bool]) -> None:
    assert LEADERS == 3
    assert asyncio.run(saves(exchange_of(mode=mode), reports)) == expected


def test_a_resumed_sweep_knows_its_leaders() -> None:
    exchange = exchange_of(best={0: (1, 0.9), 1: (4, 0.8), 2: (1, 0.7)})
    assert asyncio.run(saves(exchange, [(3, 1, 0.6), (2, 2, 0.7), (2, 3, 0.75), (4, 1, 0.76)])) == [
        False,
        False,
        True,
        True,
    ]


@scenario
async def test_failed_trials_lead_nobody() -> None:
    exchange = exchange_of()
    assert await saves(exchange, [(trial, 1, 0.9) for trial in range(3)]) == [True] * 3
    assert await saves(exchange, [(3, 1, 0.5)]) == [False]
    for trial in range(3):
        await exchange.fail(0, trial, TrialFailed("diverged", "loss is nan"), "first")
    assert await saves(exchange, [(4, 1, 0.6)]) == [True]


@scenario
async def test_an_epoch_that_is_trained_again_leads_again() -> None:
    """Its workers died after they had asked, perhaps before they had saved it."""
    exchange = exchange_of()
    assert await saves(exchange, [(0, 1, 0.5), (0, 2, 0.6), (0, 2, 0.6), (0, 3, 0.6)]) == [True, True, True, False]


@pytest.mark.parametrize(
    ("ended", "expected"), [([0, 1, 2, 3], [False, True]), ([0, 1, 2], [True, True]), ([], [True, True])]
)
def test_what_no_ended_trial_dominates_is_saved_however_many_lead(ended: list[int], expected: list[bool]) -> None:
    """What dominates it now may be dominated by its own next epoch, or fail."""
    best = {0: (1, (0.9, 9.0)), 1: (1, (0.8, 8.0)), 2: (1, (0.7, 7.0)), 3: (1, (0.6, 6.0))}
    exchange = Exchange(2, 1, 3, ("max", "min"), best, ended)

    async def story() -> list[bool]:
        return [await exchange.is_leading(trial, 1, point) for trial, point in ((4, (0.5, 6.0)), (5, (0.5, 5.0)))]

    assert asyncio.run(story()) == expected


@scenario
async def test_a_trial_is_over_once_its_slot_has_another() -> None:
    exchange = Exchange(1, 1, 3, ("max", "min"), {}, [])
    for trial, point in ((0, (0.9, 9.0)), (1, (0.8, 8.0)), (2, (0.7, 7.0)), (3, (0.6, 6.0))):
        await ask(exchange, trial, 0)
        assert await exchange.is_leading(trial, 1, point)
    assert await exchange.is_leading(4, 1, (0.5, 6.5)), "trial 3 may go on"
    await ask(exchange, 5, 0)
    assert not await exchange.is_leading(4, 1, (0.5, 6.5))


@scenario
async def test_between_two_stages_no_trial_gets_an_epoch() -> None:
    exchange = exchange_of()
    await exchange.join(0, 0, "first")
    waiting = await ask(exchange, 7, 0)
    assert await fetch(exchange) == Command(assignment(7), 0)
    await exchange.end_stage()
    assert await now(waiting) == Interrupted()
    assert await now(exchange.next_epoch(0, assignment(8), 0)) == Interrupted()
    await exchange.begin_stage()
    waiting = await ask(exchange, 8, 0)
    await exchange.report(0, 7, done(1))  # of the epoch that was under way
    assert not waiting.done()
    assert await fetch(exchange) == Command(assignment(8), 0)
    await exchange.report(0, 8, done(1))
    assert await now(waiting) == done(1)

"""The one place where trials and worker groups meet: an actor with a slot for each group.

A trial asks for its next epoch and waits; the group's workers fetch the command, train, and report. The exchange knows
which worker died on whose trial, hands the trial out again, and knows which epochs are worth a checkpoint.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from rayft.config import Mode
from rayft.sweep.protocol import Assignment, Command, EpochDone, GroupLost, Interrupted, Outcome, TrialFailed
from rayft.sweep.ranking import Point, dominates, is_better

LEADERS = 3
"""How many trials keep the checkpoint of their best epoch, besides those of the Pareto front."""


@dataclass
class _Slot:
    """One worker group and the trial that it is on.

    Attributes:
        generation: Names the group's current start; None before the first and while a restart is expected.
        queues: The commands for each rank that has joined.
        command: The last command.
        waiting: The answer that the trial waits for.
        losses: How often a worker was lost on the current trial.
        worked: Whether a worker was ready to train since `fit` was last started.
        lost: Why the group can't be started.
    """

    generation: str | None = None
    queues: dict[int, asyncio.Queue[Command | None]] = field(default_factory=dict)
    command: Command | None = None
    waiting: "asyncio.Future[Outcome] | None" = None
    losses: int = 0
    worked: bool = False
    lost: str | None = None

    @property
    def is_waiting(self) -> bool:
        return self.waiting is not None and not self.waiting.done()

    def is_on(self, trial: int) -> bool:
        return self.command is not None and self.command.assignment.trial == trial

    def resolve(self, outcome: Outcome) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(outcome)

    def expect_restart(self, generation: str) -> None:
        """The workers of a start are about to end, which is then nobody's loss."""
        if self.generation == generation:
            self.generation, self.queues = None, {}


class Exchange:
    """Runs as a Ray actor; its methods are coroutines on one event loop, so they need no locks.

    Args:
        slots: The number of worker groups.
        world_size: Workers per group.
        max_failures: How often one trial is handed out again after a worker was lost.
        modes: For each objective, whether less or more of it is better.
        best: Each earlier trial's best epoch and its point, when a sweep is resumed.
        ended: Which of these are over.
    """

    def __init__(
        self,
        slots: int,
        world_size: int,
        max_failures: int,
        modes: Sequence[Mode],
        best: dict[int, tuple[int, Point]],
        ended: Collection[int],
    ) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._world_size = world_size
        self._max_failures = max_failures
        self._modes = modes
        self._best = dict(best)
        self._ended = set(ended)
        self._closed = False
        self._between_stages = False

    # --- for the trials

    async def next_epoch(self, slot: int, assignment: Assignment, reported: int) -> Outcome:
        """Waits for the epoch after `reported` of a trial; repeating a call is harmless."""
        here = self._slots[slot]
        here.resolve(Interrupted())  # whoever waits there has been replaced
        if here.command is not None and not here.is_on(assignment.trial):
            self._ended.add(here.command.assignment.trial)
        if here.lost is not None:
            return GroupLost(here.lost)
        if self._closed or self._between_stages:
            return Interrupted()
        if here.command is not None and here.is_on(assignment.trial):
            here.command = replace(here.command, reported=reported)
        else:
            here.command, here.losses = Command(assignment, reported), 0
        here.waiting = asyncio.get_running_loop().create_future()
        self._dispatch(here)
        return await here.waiting

    # --- for the workers

    async def join(self, slot: int, rank: int, generation: str) -> None:
        """A worker is ready. `generation` is new each time the group was started."""
        here = self._slots[slot]
        if here.generation != generation:
            if here.generation is not None and here.is_waiting:
                self._count_loss(here)
            here.generation, here.queues = generation, {}
        here.queues[rank] = asyncio.Queue()
        if len(here.queues) == self._world_size:
            self._dispatch(here)

    async def ready(self, slot: int) -> None:
        """A worker has loaded model and data, so that what ends it from now on may be over after a new start."""
        self._slots[slot].worked = True

    async def next_command(self, slot: int, rank: int) -> Command | None:
        """Waits for something to do; None ends the worker."""
        if self._closed:
            return None
        return await self._slots[slot].queues[rank].get()

    async def is_leading(self, trial: int, epoch: int, point: Point) -> bool:
        """Takes in an epoch's values; returns whether it needs a checkpoint before it is reported.

        It does where it is its trial's best, and no more than two trials have a better one, or none dominates it.
        """
        known, mode = self._best.get(trial), self._modes[0]
        if known is not None and known[0] != epoch and not is_better(point[0], known[1][0], mode):
            return False
        self._best[trial] = (epoch, point)
        others = [best for number, (_, best) in self._best.items() if number != trial]
        if sum(is_better(other[0], point[0], mode) for other in others) < LEADERS:
            return True
        if len(self._modes) == 1:
            return False
        # What a running trial has may be dominated by its next best epoch in less, or be lost when it fails.
        ended = [best for number, (_, best) in self._best.items() if number in self._ended and number != trial]
        return not any(dominates(other, point, self._modes) for other in ended)

    async def report(self, slot: int, trial: int, done: EpochDone) -> None:
        """Takes in an epoch."""
        here = self._slots[slot]
        # A command that was sent twice is answered twice; only the epoch that is waited for counts.
        if here.command is not None and here.is_on(trial) and done.result.epoch == here.command.reported + 1:
            here.resolve(done)

    async def fail(self, slot: int, trial: int, failure: TrialFailed, generation: str) -> None:
        """Takes in a failure that is the trial's own."""
        here = self._slots[slot]
        self._best.pop(trial, None)  # a failed trial leads nobody
        if failure.restarts:
            here.expect_restart(generation)
        if here.is_on(trial):
            here.resolve(failure)

    async def shrink(self, slot: int, trial: int, micro_batch: int, generation: str) -> None:
        """The workers ran out of memory and start anew: the trial goes on with smaller micro-batches."""
        here = self._slots[slot]
        here.expect_restart(generation)
        if here.command is not None and here.is_on(trial):
            here.command = replace(here.command, micro_batch=micro_batch)

    async def recycle(self, slot: int, generation: str) -> None:
        """The workers end before they have begun a trial, to start anew."""
        self._slots[slot].expect_restart(generation)

    async def lose(self, slot: int, reason: str) -> None:
        """The group can't work: trials that ask for it are told so."""
        self._slots[slot].lost = reason
        self._slots[slot].resolve(GroupLost(reason))

    # --- for the driver

    async def group_ended(self, slot: int, reason: str) -> bool:
        """A group's `fit` ended; returns whether to start it again, which a group that never worked is not."""
        here = self._slots[slot]
        here.queues = {}
        if self._closed or here.lost is not None:
            return False
        if here.worked:
            here.worked = False
            return True
        await self.lose(slot, reason)
        return False

    async def end_stage(self) -> None:
        """Ends every wait. Workers end the epoch that they are in, and have nothing to do until the next stage."""
        self._between_stages = True
        for slot in self._slots:
            slot.resolve(Interrupted())

    async def begin_stage(self) -> None:
        """Trials may ask for epochs again."""
        self._between_stages = False

    async def close(self) -> None:
        """Ends every wait and every worker that is between two epochs."""
        self._closed = True
        for slot in self._slots:
            slot.resolve(Interrupted())
            for queue in slot.queues.values():
                queue.put_nowait(None)

    # ---

    def _dispatch(self, here: _Slot) -> None:
        if here.is_waiting and len(here.queues) == self._world_size:
            for queue in here.queues.values():
                queue.put_nowait(here.command)

    def _count_loss(self, here: _Slot) -> None:
        here.losses += 1
        if here.losses > self._max_failures:
            limit = f"cluster.max_failures is {self._max_failures}"
            here.resolve(
                TrialFailed("infrastructure", f"a worker was lost {here.losses} times on this trial ({limit})")
            )

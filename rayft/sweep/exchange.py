"""The one place where trials and worker groups meet: an actor with a slot for each group.

A trial asks for its next epoch and waits; the group's workers fetch the command, train, and report. The exchange knows
which worker died on whose trial, hands the trial out again, and knows which epochs are worth a checkpoint.
"""

import asyncio
from dataclasses import dataclass, field

from rayft.config import Mode
from rayft.sweep.protocol import (
    Assignment,
    Command,
    Commit,
    EpochDone,
    GroupLost,
    Interrupted,
    Outcome,
    TrialFailed,
)
from rayft.sweep.study import is_better
from rayft.training.results import EpochResult

LEADERS = 3
"""How many trials keep the checkpoint of their best epoch."""


@dataclass
class _Slot:
    """One worker group and the trial that it is on."""

    generation: str | None = None
    queues: dict[int, asyncio.Queue[Command | None]] = field(default_factory=dict)
    waiting: "asyncio.Future[Outcome] | None" = None
    command: Command | None = None
    losses: int = 0
    progressed: bool = False
    lost: str | None = None

    @property
    def is_waiting(self) -> bool:
        return self.waiting is not None and not self.waiting.done()

    def resolve(self, outcome: Outcome) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(outcome)


class Exchange:
    """Runs as a Ray actor; its methods are coroutines on one event loop, so they need no locks.

    Args:
        slots: The number of worker groups.
        world_size: Workers per group.
        max_failures: How often one trial is handed out again after a worker was lost.
        metric: The search metric.
        mode: Whether less or more of it is better.
        best: Each earlier trial's best value, when a sweep is resumed.
    """

    def __init__(
        self, slots: int, world_size: int, max_failures: int, metric: str, mode: Mode, best: dict[int, float]
    ) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._world_size = world_size
        self._max_failures = max_failures
        self._metric = metric
        self._mode = mode
        self._best = dict(best)
        self._commits: list[Commit] = []
        self._closed = False

    # --- for the trials

    async def next_epoch(self, slot: int, assignment: Assignment, reported: int) -> Outcome:
        """Waits for the epoch after `reported` of a trial; repeating a call is harmless."""
        here = self._slots[slot]
        if here.lost is not None:
            return GroupLost(here.lost)
        if self._closed:
            return Interrupted()
        if here.command is None or here.command.assignment.trial != assignment.trial:
            here.losses = 0
            here.command = Command(assignment, reported)
        else:
            here.command = Command(assignment, reported, here.command.micro_batch)
        here.waiting = asyncio.get_running_loop().create_future()
        self._dispatch(here)
        return await here.waiting

    # --- for the workers

    async def join(self, slot: int, rank: int, generation: str) -> None:
        """A worker is ready. `generation` is new each time the group was started."""
        here = self._slots[slot]
        if here.generation != generation:
            restarted = here.generation is not None
            here.generation = generation
            here.queues = {}
            if restarted and here.is_waiting:
                self._count_loss(here)
        here.queues[rank] = asyncio.Queue()
        if len(here.queues) == self._world_size:
            self._dispatch(here)

    async def next_command(self, slot: int, rank: int) -> Command | None:
        """Waits for something to do; None ends the worker."""
        if self._closed:
            return None
        return await self._slots[slot].queues[rank].get()

    async def report(self, slot: int, trial: int, result: EpochResult) -> bool:
        """Takes in an epoch; returns whether to save a checkpoint of it at once."""
        here = self._slots[slot]
        here.progressed = True
        wanted = here.command
        # A command that was sent twice is answered twice; only the epoch that is waited for counts.
        if wanted is not None and wanted.assignment.trial == trial and result.epoch == wanted.reported + 1:
            here.resolve(EpochDone(result, self._take_commits()))
        return self._is_leading(trial, result.metrics[self._metric])

    async def fail(self, slot: int, trial: int, failure: TrialFailed) -> None:
        """Takes in a failure that is the trial's own."""
        here = self._slots[slot]
        here.progressed = True
        if here.command is not None and here.command.assignment.trial == trial:
            here.resolve(TrialFailed(failure.kind, failure.reason, failure.detail, self._take_commits()))

    async def shrink(self, slot: int, trial: int, micro_batch: int) -> None:
        """The workers ran out of memory and start anew: the trial goes on with smaller micro-batches."""
        here = self._slots[slot]
        if here.command is not None and here.command.assignment.trial == trial:
            here.command = Command(here.command.assignment, here.command.reported, micro_batch)
            here.losses -= 1  # the restart that follows is no machine's fault

    async def lose(self, slot: int, reason: str) -> None:
        """The group can't work: trials that ask for it are told so."""
        self._slots[slot].lost = reason
        self._slots[slot].resolve(GroupLost(reason))

    async def committed(self, commit: Commit) -> None:
        """A checkpoint is complete on disk."""
        self._commits.append(commit)

    # --- for the driver

    async def group_ended(self, slot: int, reason: str) -> bool:
        """A group's `fit` ended; returns whether to start it again, which a group that never worked is not."""
        here = self._slots[slot]
        here.queues = {}
        if self._closed or here.lost is not None:
            return False
        if here.progressed:
            here.progressed = False
            return True
        await self.lose(slot, reason)
        return False

    async def close(self) -> None:
        """Ends every wait and every worker that is between two epochs."""
        self._closed = True
        for slot in self._slots:
            slot.resolve(Interrupted())
            for queue in slot.queues.values():
                queue.put_nowait(None)

    async def take_commits(self) -> tuple[Commit, ...]:
        """The commits that no message has carried yet."""
        return self._take_commits()

    # ---

    def _dispatch(self, here: _Slot) -> None:
        if here.is_waiting and here.command is not None and len(here.queues) == self._world_size:
            for queue in here.queues.values():
                queue.put_nowait(here.command)

    def _count_loss(self, here: _Slot) -> None:
        here.losses += 1
        if here.losses > self._max_failures:
            reason = (
                f"a worker was lost {here.losses} times on this trial (cluster.max_failures is {self._max_failures})"
            )
            here.resolve(TrialFailed("infrastructure", reason, commits=self._take_commits()))

    def _is_leading(self, trial: int, value: float) -> bool:
        known = self._best.get(trial)
        if known is not None and not is_better(value, known, self._mode):
            return False
        self._best[trial] = value
        ahead = sum(is_better(other, value, self._mode) for number, other in self._best.items() if number != trial)
        return ahead < LEADERS

    def _take_commits(self) -> tuple[Commit, ...]:
        commits, self._commits = tuple(self._commits), []
        return commits

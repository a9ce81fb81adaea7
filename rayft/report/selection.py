"""Which trials of a run are listed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayft.config import SweepConfig
from rayft.report.tables import ranked
from rayft.search_space import resolve
from rayft.sweep.ranking import search_front
from rayft.sweep.trial_record import TrialRecord


@dataclass(frozen=True)
class Selection:
    """What the user wants to see.

    Attributes:
        states: Of trials; all if there are none.
        strategies: Likewise.
        front: Whether only those that no other trial beats in all objectives.
        top: How many of those, the best; all if None.
    """

    states: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    front: bool = False
    top: int | None = None

    def of(self, records: Sequence[TrialRecord], config: SweepConfig) -> list[TrialRecord]:
        """The trials that are wanted, the best first."""
        on_front = front_of(records, config) if self.front else frozenset()
        wanted = [
            record
            for record in ranked(records, config.modes)
            if (not self.states or record.state in self.states)
            and (not self.strategies or strategy_of(record, config) in self.strategies)
            and (not self.front or record.number in on_front)
        ]
        return wanted[: self.top]

    def nothing(self, records: Sequence[TrialRecord], config: SweepConfig) -> str:
        """Says that no trial is wanted, and what there is."""
        if not records:
            return "no trial has started"
        wanted = [f"is {' or '.join(self.states)}"] if self.states else []
        wanted += [f"has strategy {' or '.join(self.strategies)}"] if self.strategies else []
        wanted += ["is one that no other beats in all of search.metric"] if self.front else []
        asked = " and ".join(wanted)
        states = _counts(record.state for record in records)
        strategies = _counts(strategy_of(record, config) for record in records)
        return f"no trial {asked}; the run has {states}; by strategy {strategies}"


def front_of(records: Sequence[TrialRecord], config: SweepConfig) -> frozenset[int]:
    """The numbers of the search's trials that no other one beats in all objectives; of one, the best one's."""
    return frozenset(record.number for record in search_front(records, config.modes))


def strategy_of(record: TrialRecord, config: SweepConfig) -> str:
    """A trial's strategy, searched or fixed."""
    return resolve(config, record.params).strategy


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())

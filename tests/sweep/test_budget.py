from typing import Any

import pytest

from rayft.config import SearchConfig
from rayft.errors import ClusterError
from rayft.sweep import budget
from rayft.sweep.budget import EXPORT_SECONDS, STAGE_SECONDS, Clock, Limit, export_seconds, final_seconds, first_limit
from rayft.sweep.cluster import Placement
from rayft.sweep.trial_record import TrialRecord
from tests.sweep.test_final import SEARCH, TWICE, finals, searched, sweep

TWO_BY_TWO = Placement(groups=2, workers=2, cpus=4, gpus=0.5)


@pytest.mark.parametrize(
    ("search", "limit"),
    [
        ({}, None),
        ({"time_limit": 90.0}, Limit("search.time_limit", 90.0)),
        ({"core_hours": 4.0}, Limit("search.core_hours", 900.0)),
        ({"gpu_hours": 4.0}, Limit("search.gpu_hours", 7200.0)),
        ({"time_limit": 901.0, "core_hours": 4.0}, Limit("search.core_hours", 900.0)),
        ({"time_limit": 899.0, "core_hours": 4.0, "gpu_hours": 1.0}, Limit("search.time_limit", 899.0)),
    ],
)
def test_the_first_limit_to_be_reached_counts(search: dict[str, Any], limit: Limit | None) -> None:
    assert first_limit(SearchConfig.model_validate(search), TWO_BY_TWO) == limit


def test_gpu_hours_without_a_gpu_are_refused() -> None:
    without = Placement(groups=1, workers=1, cpus=1, gpus=0)
    with pytest.raises(ClusterError, match=r"search\.gpu_hours: the sweep uses no GPU"):
        first_limit(SearchConfig(gpu_hours=1.0), without)


# --- what is set aside for the last stage and the export


def test_the_export_takes_a_process_and_the_longest_epoch() -> None:
    assert export_seconds([]) == 0.0
    assert export_seconds([searched(0, None)]) == 0.0
    assert export_seconds([searched(0, 0.8, seconds=8.0), searched(1, 0.7, seconds=20.0)]) == EXPORT_SECONDS + 5.0


def test_the_last_stage_takes_its_runs_side_by_side() -> None:
    # Two leaders and the default, twice each, in 8 s a run.
    assert final_seconds(sweep(TWICE), SEARCH, groups=2) == STAGE_SECONDS + 2.0 + 3 * 8.0
    assert final_seconds(sweep(TWICE), SEARCH, groups=100) == STAGE_SECONDS + 2.0 + 8.0
    assert final_seconds(sweep(None), SEARCH, groups=2) == 0.0
    assert final_seconds(sweep("auto"), SEARCH, groups=2) == 0.0, "it would take too much of the search's time"
    begun = [*SEARCH, *finals({1: (0.9, 0.7), 2: (0.8,)})]
    assert final_seconds(sweep(TWICE), begun, groups=1) == STAGE_SECONDS + 2.0 + 3 * 8.0
    assert final_seconds(sweep(TWICE), [], groups=1) == 0.0


class Time:
    """A clock that stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("key", "final", "search_ends", "final_ends"),
    [
        ("search.time_limit", None, 100 - EXPORT_SECONDS - 2, 100 - EXPORT_SECONDS - 2),
        ("search.time_limit", TWICE, 100 - EXPORT_SECONDS - 2 - 24 - STAGE_SECONDS - 2, 100 - EXPORT_SECONDS - 2),
        ("search.core_hours", TWICE, 100 - 24 - STAGE_SECONDS - 2, 100),
    ],
)
def test_each_stage_leaves_time_for_what_comes_after_it(
    key: str, final: Any, search_ends: float, final_ends: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_time = Time(monkeypatch)
    clock = Clock(sweep(final), Limit(key, 100.0), 2, lambda: SEARCH, began=1000.0)
    for role, ends in (("search", search_ends), ("final", final_ends)):
        clock_time.now = 1000.0 + ends - 0.1
        assert not clock.is_up(role)  # type: ignore[arg-type]
        clock_time.now = 1000.0 + ends + 0.1
        assert clock.is_up(role)  # type: ignore[arg-type]


def test_without_a_value_yet_the_limit_itself_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_time = Time(monkeypatch)
    records: list[TrialRecord] = [searched(0, None, state="running")]
    clock = Clock(sweep(TWICE), Limit("search.time_limit", 5.0), 2, lambda: records, began=1000.0)
    clock_time.now = 1004.9
    assert not clock.is_up("search")
    records.append(searched(1, 0.5))
    clock_time.now = 1006.0
    assert clock.is_up("search")
    assert not Clock(sweep(TWICE), None, 2, lambda: records, began=0.0).is_up("search")


def test_what_is_set_aside_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_time, looks = Time(monkeypatch), []

    def records() -> list[TrialRecord]:
        looks.append(clock_time.now)
        return SEARCH

    clock = Clock(sweep(TWICE), Limit("search.time_limit", 100.0), 2, records, began=1000.0)
    for tenth in range(25):
        clock_time.now = 1000.0 + tenth / 10
        clock.is_up("search")
    assert looks == [1000.0, 1001.0, 1002.0]

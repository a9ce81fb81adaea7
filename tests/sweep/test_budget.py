from typing import Any

import pytest

from rayft.config import SearchConfig
from rayft.errors import ClusterError
from rayft.sweep.budget import Limit, first_limit
from rayft.sweep.cluster import Placement

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

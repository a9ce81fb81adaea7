"""A sweep's rows, and its configuration as these turn out to need it."""

from rayft.config import SweepConfig
from rayft.data.splits import Splits, load_splits
from rayft.sweep_file import with_task
from rayft.tasks import get_task


def read_data(config: SweepConfig) -> tuple[SweepConfig, Splits]:
    """Reads, checks and splits the rows.

    Returns:
        The configuration, with the task that the data turned out to be for; and the splits.

    Raises:
        UserError: With everything that is wrong with them.
    """
    splits = load_splits(config.data, config.search.seed, get_task(config.task))
    return with_task(config, splits.task), splits

"""What the parts of a running sweep share."""

from dataclasses import dataclass

from rayft.config import SweepConfig
from rayft.report.progress import Progress
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import SweepStudy


@dataclass(frozen=True)
class OpenSweep:
    """A sweep that this process works on.

    Attributes:
        config: Its configuration.
        run: Its run folder.
        study: Its record.
        progress: Shown what happens.
        to_run: Trials that are still to run.
    """

    config: SweepConfig
    run: RunFolder
    study: SweepStudy
    progress: Progress
    to_run: int

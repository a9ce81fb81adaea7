"""A trial's checkpoints, written while it trains on."""

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from filelock import FileLock

from rayft.config import Mode
from rayft.sweep.ranking import best_epoch
from rayft.sweep.run_folder import RunFolder, checkpoint_path
from rayft.training.checkpoint import PackedCheckpoint, finished_checkpoints
from rayft.training.loop import FineTuning

logger = logging.getLogger(__name__)


class TrialCheckpoints:
    """Keeps the last and the best of one trial's saved epochs.

    Saving waits for the copy in memory, whose digest is known at once. A thread writes it to disk; what it replaces is
    deleted after that, so that there is a complete one at any time.

    Args:
        run: The run folder.
        trial: The trial's number.
        metric: What makes an epoch the best one.
        mode: Whether less or more of it is better.
        thread: Of one worker, so that writes come one after another.

    Attributes:
        digests: The digest of each checkpoint that is there or being written, by epoch.
    """

    def __init__(self, run: RunFolder, trial: int, metric: str, mode: Mode, thread: ThreadPoolExecutor) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        with FileLock(run.path / ".checkpoints.lock"):  # one worker of a node after the other
            for path in run.checkpoints(trial):
                run.obtain(path)  # another node may have written it
        self.digests = finished_checkpoints(run.trial(trial))
        self._run, self._trial, self._metric, self._mode = run, trial, metric, mode
        self._thread = thread
        self._writing: Future[None] | None = None

    def save(self, tuning: FineTuning) -> None:
        """Takes a checkpoint of the last epoch, unless there is one.

        Raises:
            OSError: The checkpoint before this one could not be written.
        """
        if tuning.epoch == 0 or tuning.epoch in self.digests:
            return
        self.wait()  # at most one copy in memory
        packed = tuning.pack()
        self.digests[tuning.epoch] = packed.digest
        values = {result.epoch: result.metrics[self._metric] for result in tuning.history}
        needless = self.digests.keys() - {tuning.epoch, best_epoch(values, self._mode)}
        for epoch in needless:
            del self.digests[epoch]
        self._writing = self._thread.submit(self._write, packed, tuning.epoch, needless)
        self._writing.add_done_callback(_log_failure)

    def wait(self) -> None:
        """Returns once all that was taken is on disk.

        Raises:
            OSError: The last one could not be written.
        """
        if self._writing:
            self._writing.result()

    def leave(self) -> None:
        """The trial is over here: this node's copies go, if remote storage has them."""
        if self._run.remote is not None:
            with suppress(OSError):  # that failed the trial already
                self.wait()
            for folder in self._run.trial(self._trial).glob("checkpoint-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, packed: PackedCheckpoint, epoch: int, needless: set[int]) -> None:
        packed.write(self._run.checkpoint(self._trial, epoch))
        self._run.publish(checkpoint_path(self._trial, epoch))
        for replaced in needless:
            self._run.discard(checkpoint_path(self._trial, replaced))


def _log_failure(writing: "Future[None]") -> None:
    if error := writing.exception():  # of a trial's last checkpoint nobody else would hear
        logger.error("a checkpoint could not be written", exc_info=error)

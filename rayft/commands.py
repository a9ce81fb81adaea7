"""What the commands do: a sweep from its configuration to the exported winner, and how one that was cut off goes on."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from rayft.config import SweepConfig, Value
from rayft.config_paths import with_absolute_paths
from rayft.config_tasks import LATENCY
from rayft.data.encoded import MANIFEST
from rayft.data.splits import Splits, load_splits
from rayft.errors import SWEEP_FILE, Fault, RayftError, RunError, SweepFailedError, UserError
from rayft.export.record import RECORD, front_record
from rayft.export.verify import Verifier
from rayft.report.loggers import check_installed, trial_loggers
from rayft.report.progress import Progress
from rayft.report.tensorboard import TrialEvents
from rayft.sweep.final import decide, plan
from rayft.sweep.mirror import mirrored, publish_model
from rayft.sweep.open_sweep import OpenSweep, Watcher
from rayft.sweep.ranking import ranking
from rayft.sweep.read_data import read_data
from rayft.sweep.run_folder import RunFolder, first_line
from rayft.sweep.search import search
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord
from rayft.tasks import get_task
from rayft.training.results import EpochResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A sweep that came to its end.

    Attributes:
        run: Its folder.
        config: Its configuration.
        records: All trials.
        best: What `best/rayft.json` holds.
    """

    run: RunFolder
    config: SweepConfig
    records: list[TrialRecord]
    best: dict[str, Any]


def new_sweep(config: SweepConfig, name: str, address: str | None, progress: Progress) -> Finished:
    """Runs a whole sweep in a new run folder.

    Raises:
        UserError: Data, model or cluster don't fit the sweep; nothing is left behind.
        SweepFailedError: No trial gave a model.
        InterruptedSweep: It was interrupted and can be resumed.
    """
    began = time.monotonic()
    check_installed(config, SWEEP_FILE)
    config, splits = read_data(with_absolute_paths(config))
    for note in (*config.notes, *splits.notes):
        progress.note(note)
    run = RunFolder.create(config.storage, name, config)
    progress.note(f"run folder {run.address}")
    with run.lock():
        is_ours = False  # another machine may have made a remote run of the same name at the same time
        try:
            with mirrored(run) as watchers:
                is_ours = True
                return _run(config, run, address, progress, watchers, splits, began)
        except UserError:
            if not is_ours:
                shutil.rmtree(run.path, ignore_errors=True)
            elif not _has_trials(run, config):
                run.discard("")
            raise


def resume_sweep(run: RunFolder, trials: int | None, address: str | None, progress: Progress) -> Finished:
    """Goes on with a sweep that was cut off, or extends one that is done.

    Args:
        run: The run folder.
        trials: The new number of trials, all counted; what it was if None.
        address: As for a new sweep.
        progress: As for a new sweep.

    Raises:
        RunError: The run is in use, or has more trials already.
    """
    began = time.monotonic()
    with run.lock(), mirrored(run) as watchers:
        config = run.config()
        check_installed(config, run.address)
        if trials is not None:
            started = sum(record.role == "search" for record in SweepStudy.of_run(run, config).records())
            if trials < started:
                rule = f"must be >= {started}, the trials that the run has already, but got {trials}"
                raise RunError([Fault(run.address, rule, "--trials")])
            config = config.model_copy(update={"search": config.search.model_copy(update={"trials": trials})})
            run.write_config(config)
        # A driver that was killed before it had encoded the data starts from the user's files again.
        encoded = run.obtain("encoded") and all(
            (run.path / config.encoded_folder(model) / MANIFEST).exists() for model in config.models
        )
        splits = None if encoded else load_splits(config.data, config.search.seed, get_task(config.task))
        return _run(config, run, address, progress, watchers, splits, began)


def find_winner(config: SweepConfig, run: RunFolder, study: SweepStudy) -> TrialRecord:
    """What the last stage decided for, or without one the best trial, of those whose checkpoint still exists.

    Raises:
        SweepFailedError: There is none.
    """
    records = study.records()
    decision = decide(config, records)
    decided = [] if decision is None else [study.record(decision.run)]
    searched = [record for record in records if record.role == "search"]
    for trial in (*decided, *ranking(searched, config.modes)):
        if trial.checkpoint is not None and run.obtain(trial.checkpoint):
            return trial
    raise SweepFailedError(_why_nothing_won(records))


def export_trial(run: RunFolder, number: int | None, to: Path | None) -> tuple[dict[str, Any], Path]:
    """Exports one trial of a run that no sweep is working on.

    Args:
        run: The run folder.
        number: The trial; the winner if None.
        to: The model folder; if None `best/` for the winner, and `export-NUMBER/` for others.

    Returns:
        What `rayft.json` holds, and the model folder.

    Raises:
        RunError: There is no such trial, or it has no checkpoint.
        SweepFailedError: No trial has one.
    """
    from rayft.export.model_folder import export_model

    with run.lock(), mirrored(run):
        config = run.config()
        study = SweepStudy.of_run(run, config)
        records = study.records()
        if number is not None and number not in range(len(records)):
            rule = f"must be one of 0 to {len(records) - 1}, but got {number}" if records else "no trial has started"
            raise RunError([Fault(run.address, rule, "--trial")])
        winner = find_winner(config, run, study)
        trial = winner if number is None else records[number]
        is_winner = trial.number == winner.number  # the test split is for the winner only
        if trial.checkpoint is not None:
            run.obtain(trial.checkpoint)
        run.obtain("encoded")
        folder = to or (run.best if is_winner else run.path / f"export-{trial.number}")
        with Verifier() as verifier:
            decision = decide(config, records) if is_winner else None
            front = front_record(config, records)
            exported = export_model(
                config,
                run.path,
                trial,
                folder.resolve(),
                verifier,
                score_test=is_winner,
                decision=decision,
                front=front,
            )
        if to is None:
            publish_model(run, folder.name)
        return exported, folder


class _LastTrial:
    """A watcher that gets the verification ready when the last trial begins: a core may soon have nothing to do."""

    def __init__(self, number: int, verifier: Verifier) -> None:
        self._number, self._verifier = number, verifier

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        if number == self._number:
            self._verifier.start()

    def epoch(self, number: int, result: EpochResult) -> None:
        """See `Watcher`."""

    def trial_ended(self, record: TrialRecord) -> None:
        """See `Watcher`."""


def _export_winner(
    config: SweepConfig, run: RunFolder, study: SweepStudy, progress: Progress, verifier: Verifier
) -> dict[str, Any]:
    """Exports the winner to `best/`, unless it lies there already; remote storage may lack it even then."""
    from rayft.export.model_folder import export_model

    winner, front = find_winner(config, run, study), front_record(config, study.records())
    record = run.best / RECORD
    if record.exists():
        best: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        is_whole = {"final", "interval"} <= best.keys() and (front is None or best.get("front") == front)
        if is_whole and (best["trial"], best["checkpoint_digest"]) == (winner.number, winner.digest):
            publish_model(run, run.best.name)
            return best
    progress.note(f"exporting trial {winner.number} and verifying it in a clean process")
    run.obtain("encoded")
    decision = decide(config, study.records())
    if decision is not None:
        for sentence in decision.in_words(config.metric):
            progress.note(sentence)
    exported = export_model(
        config, run.path, winner, run.best, verifier, score_test=True, decision=decision, front=front
    )
    publish_model(run, run.best.name)
    return exported


def _run(
    config: SweepConfig,
    run: RunFolder,
    address: str | None,
    progress: Progress,
    others: tuple[Watcher, ...],
    splits: Splits | None,
    began: float,
) -> Finished:
    handler = _log_to(run.log)
    try:
        study = SweepStudy.of_run(run, config)
        study.enqueue_start_with()
        records = study.records()
        done = [record for record in records if record.role == "search" and record.state != "running"]
        progress.started(config.search.trials, done)
        to_run = config.search.trials - len(done)
        last_runs = len(plan(config, records)) + sum(r.role == "final" and r.state == "running" for r in records)
        with Verifier() as verifier:
            if to_run > 0 or last_runs:
                with (
                    TrialEvents(run.path, config, lambda number: study.record(number).role) as events,
                    trial_loggers(run, config, progress.note) as loggers,
                ):
                    last = _LastTrial(config.search.trials - 1, verifier)
                    watchers: tuple[Watcher, ...] = (events, progress, last, *loggers, *others)
                    to_run = max(to_run, last_runs)
                    sweep = OpenSweep(config, run, study, watchers, to_run, progress.note, began)
                    search(sweep, address, splits, _timing(config, run, progress))
            progress.stop()
            best = _export_winner(config, run, study, progress, verifier)
            _report(config, run, study, progress)
            return Finished(run, config, study.records(), best)
    except RayftError as error:
        logger.error("%s", error)
        raise
    except (OSError, SQLAlchemyError, StorageInternalError) as error:
        logger.exception("the sweep failed")
        raise SweepFailedError(f"{error}; see {run.log}, and go on with: rayft resume {run.address}") from None
    finally:
        progress.stop()
        logging.getLogger("rayft").removeHandler(handler)
        handler.close()


def _timing(config: SweepConfig, run: RunFolder, progress: Progress) -> Callable[[], None] | None:
    """What is to be measured while nothing else runs, if anything."""
    if LATENCY not in config.objectives:
        return None
    from rayft.export.latency import measure_latencies

    return lambda: measure_latencies(config, run, progress.note)


def _report(config: SweepConfig, run: RunFolder, study: SweepStudy, progress: Progress) -> None:
    """Writes the report. The sweep is done and its model proved, so whatever is wrong here must not make it fail."""
    try:
        from rayft.report.html.write import REPORT, write_report

        write_report(run.path, run.path.name, config, study)
        run.publish(REPORT)
    except Exception as error:
        logger.exception("the report failed")
        reason = f"{type(error).__name__}: {first_line(error)}"
        progress.note(f"there is no report ({reason}); try again with: rayft report {run.address}")
    else:
        progress.note(f"report {run.address}/{REPORT}")


def _has_trials(run: RunFolder, config: SweepConfig) -> bool:
    try:
        return bool(SweepStudy.of_run(run, config).records())
    except UserError:  # there is no study, which may be what was wrong
        return False


def _why_nothing_won(records: list[TrialRecord]) -> str:
    failed = [record for record in records if record.state == "failed"]
    if failed and len(failed) == len(records):
        return f"all {len(failed)} trials failed; the first: trial {failed[0].number}: {failed[0].reason}"
    if not any(record.values for record in records):
        return "no trial finished an epoch"
    return "no trial has a checkpoint"


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full shows where results are written; logging would print a traceback for each line."""


def _log_to(path: Path) -> logging.Handler:
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("rayft")
    package.setLevel(logging.INFO)
    package.propagate = False  # the screen is the progress view's
    package.addHandler(handler)
    return handler

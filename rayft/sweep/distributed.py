"""The trials on the cluster: exchange, worker groups and Tune, put together."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future

import ray
from ray import tune
from ray.actor import ActorHandle

from rayft.config import SweepConfig
from rayft.report.progress import Progress
from rayft.sweep.cluster import Placement
from rayft.sweep.exchange import Exchange
from rayft.sweep.groups import WorkerGroups
from rayft.sweep.protocol import GroupSpec
from rayft.sweep.recorder import Recorder
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.scheduler import make_scheduler
from rayft.sweep.searcher import DriverOnly, StudySearcher
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial import Trial

logger = logging.getLogger(__name__)


class _Stopper(DriverOnly, tune.Stopper):  # type: ignore[misc]
    """Ends the experiment, and with it every wait for an epoch."""

    def __init__(self, is_over: Callable[[], bool], exchange: ActorHandle) -> None:
        self._is_over = is_over
        self._exchange = exchange
        self._over = False

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self._over and self._is_over():
            self._over = True
            self._exchange.close.remote()
        return self._over


def run_trials(
    config: SweepConfig,
    run: RunFolder,
    study: SweepStudy,
    progress: Progress,
    spec: GroupSpec,
    placement: Placement,
    encoded: "Future[None]",
    is_over: Callable[[], bool],
) -> str | None:
    """Starts the groups, runs all trials that are still to run, and ends the groups.

    Args:
        config: The sweep.
        run: Its run folder.
        study: Its record.
        progress: Shown what happens.
        spec: What the groups need to know.
        placement: How many groups, and of what.
        encoded: Done once the data lies in the run folder.
        is_over: Asked several times a second whether to end before the last trial.

    Returns:
        Why the sweep can't go on, if a worker group can't be started.
    """
    exchange = _start_exchange(config, placement, study)
    scratch = run.path / ".ray"
    groups = WorkerGroups(exchange, spec, placement, config.cluster.max_failures, scratch)
    groups.start()
    encoded.result()
    scheduler = make_scheduler(config)
    searcher = StudySearcher(study, scheduler, config, placement.groups)
    recorder = Recorder(config, run, study, searcher, progress)
    stopper = _Stopper(lambda: is_over() or recorder.lost is not None, exchange)
    trainable = tune.with_parameters(
        Trial, exchange=exchange, metric=config.search.metric, epochs=config.training.epochs
    )
    tuner = tune.Tuner(
        # Tune insists on some resource; the workers hold the CPUs and GPUs, so a trial takes a byte of memory.
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])),
        tune_config=tune.TuneConfig(
            num_samples=searcher.remaining,
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            stop=stopper,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )
    try:
        tuner.fit()
    finally:
        if not groups.stop():
            logger.warning("worker groups were ended in the middle of an epoch")
        recorder.record_commits(ray.get(exchange.take_commits.remote()))
        recorder.drop_checkpoints()
        recorder.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return recorder.lost


def _start_exchange(config: SweepConfig, placement: Placement, study: SweepStudy) -> ActorHandle:
    best = {r.number: r.value for r in study.records() if r.value is not None and r.state != "failed"}
    actor = ray.remote(Exchange).options(num_cpus=0, max_restarts=-1)
    return actor.remote(
        placement.groups,
        placement.workers,
        config.cluster.max_failures,
        config.search.metric,
        config.search.direction,
        best,
    )


def _trial_name(trial: object) -> str:
    return f"trial-{trial.config['assignment'].trial}"  # type: ignore[attr-defined]

"""The trials on the cluster: exchange, worker groups and Tune, put together."""

import logging
from collections.abc import Callable
from pathlib import Path

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayft.config_tasks import LATENCY
from rayft.errors import SweepFailedError
from rayft.sweep.cluster import Placement
from rayft.sweep.exchange import Exchange
from rayft.sweep.final import cost, plan
from rayft.sweep.groups import STOP_SECONDS, WorkerGroups
from rayft.sweep.open_sweep import OpenSweep
from rayft.sweep.protocol import GroupSpec
from rayft.sweep.recorder import Recorder
from rayft.sweep.scheduler import make_scheduler
from rayft.sweep.searcher import DriverOnly, StudySearcher
from rayft.sweep.trial import Trial
from rayft.sweep.trial_record import Role

logger = logging.getLogger(__name__)


class _Stopper(DriverOnly, tune.Stopper):  # type: ignore[misc]
    """Ends a stage, and with it every wait for an epoch."""

    def __init__(self, is_over: Callable[[], bool], exchange: ActorHandle) -> None:
        self._is_over = is_over
        self._exchange = exchange
        self._over = False

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self._over and self._is_over():
            self._over = True
            self._exchange.end_stage.remote()
        return self._over


def run_trials(
    sweep: OpenSweep,
    spec: GroupSpec,
    placement: Placement,
    meanwhile: Callable[[], None],
    is_over: Callable[[Role], bool],
    close_cut_off: Callable[[], None],
) -> None:
    """Starts the groups, runs all trials that are still to run, and ends the groups.

    Args:
        sweep: The sweep.
        spec: What the groups need to know.
        placement: How many groups, and of what.
        meanwhile: Called while the groups come up; after it the encoded data lies in the run folder.
        is_over: Asked several times a second whether a stage has to end before its last trial.
        close_cut_off: Called after the search, if there is time for a last stage: what was cut off is over.

    Raises:
        SweepFailedError: It can't go on, and can be resumed.
        UserError: From `meanwhile`.
    """
    exchange = _start_exchange(sweep, placement)
    scratch = sweep.run.path / ".ray"
    place = (str(scratch), None) if sweep.run.remote is None else sweep.run.remote.for_pyarrow(".ray")
    groups = WorkerGroups(exchange, spec, placement, sweep.config.cluster.max_failures, *place)
    groups.start()
    patience = 0.0  # nothing runs yet that would be worth waiting for
    try:
        meanwhile()
        patience = STOP_SECONDS
        recorder = _tune(sweep, placement.groups, exchange, scratch, is_over, "search")
        if recorder.stopped_by is None and not is_over("final"):
            close_cut_off()
            if open_finals(sweep):
                ray.get(exchange.begin_stage.remote())
                recorder = _tune(sweep, placement.groups, exchange, scratch, is_over, "final")
    finally:
        if not groups.stop(patience) and patience:
            logger.warning("worker groups were ended in the middle of an epoch")
        sweep.run.discard(".ray")
    recorder.drop_checkpoints()  # one may have been written after its trial had ended
    if recorder.stopped_by is not None:
        raise SweepFailedError(f"{recorder.stopped_by}; go on with: rayft resume {sweep.run.address}")


def open_finals(sweep: OpenSweep) -> bool:
    """Opens the trials of the last stage; returns whether there are any to train."""
    config, records = sweep.config, sweep.study.records()
    runs = plan(config, records)
    for run in runs:
        sweep.study.open_final(run.of, run.params, run.seed)
    if runs:
        names = sorted({"the untuned default" if run.of is None else f"trial {run.of}" for run in runs}, reverse=True)
        sweep.note(f"the last stage: {len(runs)} runs of {', '.join(names)} with other seeds")
    elif config.final == "auto" and not any(record.role == "final" for record in records):
        share = cost(config, records)
        sweep.note(f"no last stage: it would take {share:.0%} of the search's time; `final: {{}}` has it run anyway")
    return bool(runs) or any(record.role == "final" and record.state == "running" for record in records)


def _tune(
    sweep: OpenSweep, groups: int, exchange: ActorHandle, scratch: Path, is_over: Callable[[Role], bool], role: Role
) -> Recorder:
    config = sweep.config
    if role == "final":  # where each run goes to its end
        config = config.model_copy(update={"early_stopping": None})
    scheduler = make_scheduler(config)
    latencies = sweep.run.latencies() if LATENCY in config.objectives else None
    searcher = StudySearcher(sweep.study, scheduler, config, groups, role, latencies)
    recorder = Recorder(sweep, searcher)
    stopper = _Stopper(lambda: is_over(role) or recorder.stopped_by is not None, exchange)
    trainable = tune.with_parameters(Trial, exchange=exchange, metric=config.metric, epochs=config.training.epochs)
    tuner = tune.Tuner(
        # Tune insists on some resource; the workers hold the CPUs and GPUs, so a trial takes a byte of memory.
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # a trial counts once more each time it is handed out again; the searcher says when to end
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{role}",
            storage_path=str(scratch),
            verbose=0,
            stop=stopper,
            callbacks=[recorder],
            # Tune takes up a trial whose actor died while it ran, but not while it was being given to the trial.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError as error:
        logger.exception("Ray Tune failed")
        raise SweepFailedError(f"Ray Tune failed: {error}; go on with: rayft resume {sweep.run.address}") from None
    return recorder


def _start_exchange(sweep: OpenSweep, placement: Placement) -> ActorHandle:
    records = sweep.study.records()
    best = {
        record.number: (record.best_epoch, record.point)
        for record in records
        if record.best_epoch is not None and record.state != "failed" and record.role == "search"
    }
    # On the driver's node: without the driver it has no use, and without it the driver has none.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=here)
    max_failures, modes = sweep.config.cluster.max_failures, sweep.config.modes
    ended = [record.number for record in records if record.state != "running"]
    return actor.remote(placement.groups, placement.workers, max_failures, modes, best, ended)


def _trial_name(trial: object) -> str:
    return f"trial-{trial.config['assignment'].trial}"  # type: ignore[attr-defined]

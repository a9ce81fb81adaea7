"""The search: from the splits, or the encoded data of an earlier run, to a study without unfinished trials."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rayft import imports
from rayft.data.encode import encode_splits
from rayft.data.encoded import EncodedData
from rayft.data.splits import Splits
from rayft.errors import InterruptedSweep
from rayft.sweep import ray_environment
from rayft.sweep.final import plan
from rayft.sweep.group_spec import group_spec
from rayft.sweep.interruption import Interruption
from rayft.sweep.open_sweep import OpenSweep
from rayft.sweep.trial_record import Role
from rayft.tasks import get_task

if TYPE_CHECKING:
    from rayft.sweep.budget import Limit


def search(
    sweep: OpenSweep, address: str | None, splits: Splits | None, measure: Callable[[], None] | None = None
) -> None:
    """Runs the trials that are still to run.

    Args:
        sweep: The sweep.
        address: The Ray cluster to join; this machine alone if None.
        splits: The data, if it isn't encoded yet.
        measure: Called once the data is encoded and before any worker starts, so that nothing else runs.

    Raises:
        UserError: The model or the cluster doesn't fit the sweep.
        SweepFailedError: It can't go on, and can be resumed.
        InterruptedSweep: It was interrupted, and can be resumed.
    """
    config, run = sweep.config, sweep.run
    with Interruption() as interruption:
        ray_environment.prepare(address)
        with imports.swiftly():
            from rayft.sweep import cluster
        with cluster.connected(address, meanwhile=_import_distributed):
            from rayft.sweep.budget import Clock, first_limit
            from rayft.sweep.distributed import run_trials

            placement = cluster.plan(cluster.node_resources(), config.cluster, sweep.to_run)
            limit = first_limit(config.search, placement)
            clock = Clock(config, limit, placement.groups, sweep.study.records, sweep.began)
            cut_off: list[int] = []
            if measure is not None:
                check_and_encode(sweep, splits)
                measure()
            spec = group_spec(config, run.address, placement.cpus)
            run_trials(
                sweep,
                spec,
                placement,
                meanwhile=lambda: check_and_encode(sweep, splits) if measure is None else None,
                is_over=lambda role: interruption.requested or clock.is_up(role),
                close_cut_off=lambda: cut_off.extend(_close_cut_off(sweep, ("search",), limit)),
            )
    if interruption.requested:
        raise InterruptedSweep(f"interrupted; go on with: rayft resume {run.address}")
    if limit is not None:
        cut_off += _close_cut_off(sweep, ("search", "final"), limit)
        _tell_what_is_left(sweep, limit, cut_off)


def _close_cut_off(sweep: OpenSweep, roles: tuple[Role, ...], limit: "Limit | None") -> list[int]:
    """Closes the trials that a limit has cut off, and returns their numbers."""
    records = sweep.study.records()
    running = [record.number for record in records if record.state == "running" and record.role in roles]
    for number in running:
        assert limit is not None, f"nothing but a limit ends trial {number} before its end"
        sweep.study.finish(number, reason=f"stopped by {limit.key}")
    return running


def _tell_what_is_left(sweep: OpenSweep, limit: "Limit", cut_off: list[int]) -> None:
    records = sweep.study.records()
    stopped = sum(record.role == "search" and record.number in cut_off for record in records)
    not_started = max(0, sweep.config.search.trials - sum(record.role == "search" for record in records))
    final = plan(sweep.config, records)
    if stopped or not_started or final:
        left = f"{stopped} trials were stopped and {not_started} not started"
        left += f", and {len(final)} runs of the last stage are left" if final else ""
        sweep.note(f"{limit.key} is reached: {left}; go on with: rayft resume {sweep.run.address}")


def _import_distributed() -> None:
    with imports.swiftly():
        import rayft.sweep.distributed  # noqa: F401


def check_and_encode(sweep: OpenSweep, splits: Splits | None) -> None:
    """Finds what can be wrong with the model, and tokenises the data unless it is None: then that has been done.

    Raises:
        UserError: The model or the data doesn't fit the sweep.
    """
    with imports.swiftly():
        from rayft.models.load import load_preprocessor
        from rayft.sweep.preflight import check_model

    config, run, task = sweep.config, sweep.run, get_task(sweep.config.task)
    folders = {model: run.path / config.encoded_folder(model) for model in config.models}
    label_names = splits.label_names if splits else EncodedData.open(folders[config.models[0]]).label_names
    preprocessors = {model: load_preprocessor(model, task) for model in config.models}
    for model in config.models:
        check_model(config, model, label_names)
    if splits is None:
        return
    for model, folder in folders.items():
        for note in encode_splits(splits, task, preprocessors[model], config.data, folder):
            sweep.note(f"{Path(model).name}: {note}" if len(folders) > 1 else note)
    run.publish("encoded")

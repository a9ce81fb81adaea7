"""The search: from the splits, or the encoded data of an earlier run, to a study without unfinished trials."""

import math
import time
from pathlib import Path

from rayft import imports
from rayft.data.encode import encode_splits
from rayft.data.encoded import EncodedData
from rayft.data.splits import Splits
from rayft.errors import InterruptedSweep
from rayft.sweep import ray_environment
from rayft.sweep.group_spec import group_spec
from rayft.sweep.interruption import Interruption
from rayft.sweep.open_sweep import OpenSweep
from rayft.tasks import get_task


def search(sweep: OpenSweep, address: str | None, splits: Splits | None) -> None:
    """Runs the trials that are still to run.

    Args:
        sweep: The sweep.
        address: The Ray cluster to join; this machine alone if None.
        splits: The data, if it isn't encoded yet.

    Raises:
        UserError: The model or the cluster doesn't fit the sweep.
        SweepFailedError: It can't go on, and can be resumed.
        InterruptedSweep: It was interrupted, and can be resumed.
    """
    config, run = sweep.config, sweep.run
    started = time.monotonic()
    with Interruption() as interruption:
        ray_environment.prepare(address)
        with imports.swiftly():
            from rayft.sweep import cluster
        with cluster.connected(address, meanwhile=_import_distributed):
            from rayft.sweep.budget import first_limit
            from rayft.sweep.distributed import run_trials

            placement = cluster.plan(cluster.node_resources(), config.cluster, sweep.to_run)
            limit = first_limit(config.search, placement)
            deadline = started + (limit.seconds if limit else math.inf)
            spec = group_spec(config, run.address, placement.cpus)
            run_trials(
                sweep,
                spec,
                placement,
                meanwhile=lambda: check_and_encode(sweep, splits),
                is_over=lambda: interruption.requested or time.monotonic() > deadline,
            )
    if interruption.requested:
        raise InterruptedSweep(f"interrupted; go on with: rayft resume {run.address}")
    if limit is not None and time.monotonic() > deadline:
        _stop(sweep, limit.key)


def _stop(sweep: OpenSweep, key: str) -> None:
    """Closes what a limit has cut off, and says what it left."""
    records = sweep.study.records()
    cut_off = [record.number for record in records if record.state == "running"]
    for number in cut_off:
        sweep.study.finish(number, reason=f"stopped by {key}")
    not_started = sweep.config.search.trials - sum(record.role == "search" for record in records)
    left = f"{len(cut_off)} trials were stopped and {max(0, not_started)} not started"
    if cut_off or not_started > 0:
        sweep.note(f"{key} is reached: {left}; go on with: rayft resume {sweep.run.address}")


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

"""The arm `documented`: what Ray's documentation shows for Train in Tune, a TorchTrainer for every trial.

See "Hyperparameter Tuning with Ray Tune" in the Ray Train guide: a Tune function trainable makes the trainer, and
TuneReportCallback hands its metrics on. The loop in the worker is the shared one.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from benchmarks.arms.job import GRACE_EPOCHS, REDUCTION_FACTOR, Job, this_job, trial_result, write_result


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train's train function: one configuration, in a worker of its own."""
    import torch

    from benchmarks.arms.loop import Tuner

    torch.set_num_threads(1)
    tuner = Tuner(settings["job"])

    def report(epoch: int, accuracy: float) -> None:
        ray.train.report({"accuracy": accuracy, "epoch": epoch})

    tuner.train(settings["config"], report)


def run_trial(settings: dict[str, Any]) -> None:
    """Tune's trainable: a whole TorchTrainer for one trial."""
    job: Job = settings["job"]
    callback = TuneReportCallback()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": job.configs[settings["index"]], "job": job},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"trial-{settings['index']}", storage_path=str(Path(job.work) / "train"), callbacks=[callback]
        ),
    )
    trainer.fit()
    # Tune hangs for good if the trainable ends before it has fetched the last report.
    while not callback._training_actor_item_queue.empty():
        time.sleep(0.05)


def start_ray(cpus: int) -> None:
    """Starts Ray on this machine, at an address that its processes are told.

    Train's cleaner frees the placement group of a trial that Tune has stopped. It looks for its cluster in RAY_ADDRESS
    and then in a file that other clusters on the machine write too; where it finds the wrong one, the next trial waits
    for ever.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
    ray.init(address="local", num_cpus=cpus, log_to_driver=False)


def main() -> None:
    """Runs all trials, one per core; the trial's own actors need a place beside the workers, hence the extra CPU."""
    job = this_job()
    start_ray(job.cores + 1)
    scheduler = None
    if job.early_stopping:
        scheduler = ASHAScheduler(max_t=job.epochs, grace_period=GRACE_EPOCHS, reduction_factor=REDUCTION_FACTOR)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": 0.01}),
        param_space={"index": tune.grid_search(list(range(len(job.configs)))), "job": job},
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", scheduler=scheduler, max_concurrent_trials=job.cores
        ),
        run_config=tune.RunConfig(storage_path=str(Path(job.work) / "tune"), verbose=0),
    )
    results = tuner.fit()
    trials = []
    for result in results:
        if result.error is not None:
            raise RuntimeError(f"a trial failed: {result.error}")
        accuracies = result.metrics_dataframe["accuracy"].tolist()
        trials.append(trial_result(result.config["index"], accuracies))
    ray.shutdown()
    write_result(trials)


if __name__ == "__main__":
    main()

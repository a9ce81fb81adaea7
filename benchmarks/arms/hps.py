"""The arms `hps-ray` and `hps-optuna`: transformers' Trainer.hyperparameter_search, at its best settings.

Rows are tokenised once and grouped by length, validation runs once per epoch in large batches, and nothing is saved or
logged. Frozen layers have no dropout, as in the other arms.
"""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune reads it when it is imported

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from benchmarks.arms.job import (
    GRACE_EPOCHS,
    MAX_GRAD_NORM,
    REDUCTION_FACTOR,
    SPACE,
    WARMUP_RATIO,
    Job,
    this_job,
    trial_result,
    write_result,
)
from benchmarks.arms.loop import Tuner, autocast_of, read_csv

MANY_TRIALS = 10_000
"""More than any time budget allows."""
SHUTDOWN_SECONDS = 3.0
"""What a time budget leaves for Tune's own end."""


@dataclass
class Arguments(TrainingArguments):  # type: ignore[misc]
    """The Trainer's arguments with what it has none for, so that the search may set them without a warning."""

    freeze_depth: int = 0
    index: int = 0


def params_of(trial: Any, configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration of a trial, which Ray gives as a dict and Optuna as an object."""
    if trial is None:  # Trainer makes one model before the search
        return {"freeze_depth": 0}
    if isinstance(trial, dict):
        return trial
    index = trial.suggest_categorical("index", list(range(len(configs))))
    return {**configs[index], "per_device_train_batch_size": configs[index]["batch_size"], "index": index}


def build_trainer(job: Job, threads: int) -> Trainer:
    """A Trainer that makes its model anew for every trial."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    names = sorted(set(read_csv(job.train)[1]))
    configs, model_path = job.configs, job.model

    def rows(path: str) -> list[dict[str, Any]]:
        texts, labels = read_csv(path)
        encoded = tokenizer(texts, truncation=True, max_length=job.max_length, return_token_type_ids=False)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": names.index(label)}
            for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
        ]

    def model_init(trial: Any) -> Any:
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=len(names))
        freeze(model, params_of(trial, configs)["freeze_depth"])
        return model

    return Trainer(
        model_init=model_init,
        args=arguments(job),
        train_dataset=rows(job.train),
        eval_dataset=rows(job.validation),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """The Trainer's hook for metrics."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def freeze(model: Any, depth: int) -> None:
    """Freezes the embeddings and the first blocks, without dropout."""
    for module in [model.bert.embeddings, *model.bert.encoder.layer[:depth]] if depth else []:
        module.requires_grad_(False)
        for dropout in module.modules():
            if isinstance(dropout, nn.Dropout):
                dropout.p = 0.0


def arguments(job: Job) -> Arguments:
    """Settings that cost the least time."""
    return Arguments(
        output_dir=str(Path(job.work) / "trainer"),
        num_train_epochs=job.epochs,
        per_device_eval_batch_size=128,
        train_sampling_strategy="group_by_length",
        warmup_steps=WARMUP_RATIO,
        max_grad_norm=MAX_GRAD_NORM,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        bf16=autocast_of(job) is not None,
        seed=job.seed,
    )


def search_ray(job: Job) -> tuple[list[dict[str, Any]], float]:
    """All trials through Ray Tune, one per core, and when the search was done."""
    import ray
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    ray.init(address="local", num_cpus=job.cores, include_dashboard=False, log_to_driver=False)
    trainer = build_trainer(job, threads=1)
    options: dict[str, Any] = {}
    if job.early_stopping:
        options["scheduler"] = ASHAScheduler(
            metric="objective",
            mode="max",
            max_t=job.epochs,
            grace_period=GRACE_EPOCHS,
            reduction_factor=REDUCTION_FACTOR,
        )
    if job.deadline is not None:
        options["time_budget_s"] = max(1.0, job.deadline - time.time() - SHUTDOWN_SECONDS)
    np.random.seed(job.seed)
    random.seed(job.seed)
    best = trainer.hyperparameter_search(
        hp_space=lambda _: grid(job) if job.configs else drawn(),
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=1 if job.configs else MANY_TRIALS,
        direction="maximize",
        backend="ray",
        resources_per_trial={"cpu": 1},
        search_alg=BasicVariantGenerator(max_concurrent=job.cores, random_state=job.seed),
        storage_path=str(Path(job.work) / "tune"),
        reuse_actors=job.options.get("reuse_actors", False),
        raise_on_failed_trial=False,
        verbose=0,
        **options,
    )
    searched = time.time()
    trials = []
    for number, trial in enumerate(best.run_summary.trials):
        if "objective" in trial.metric_analysis:
            result = trial_result(trial.config.get("index", number), [trial.metric_analysis["objective"]["max"]])
            config = {name: trial.config[name] for name in ("learning_rate", "weight_decay", "freeze_depth")}
            config["batch_size"] = trial.config["per_device_train_batch_size"]
            trials.append(result | {"epochs": trial.last_result["training_iteration"], "config": config})
    ray.shutdown()
    return trials, searched


def grid(job: Job) -> dict[str, Any]:
    """Tune's space of the job's configurations: one choice, of the index, and what follows from it."""
    from ray import tune

    configs = job.configs

    def value_of(name: str) -> Any:
        return tune.sample_from(lambda spec: configs[spec.config.index][name])

    return {
        "index": tune.grid_search(list(range(len(configs)))),
        "learning_rate": value_of("learning_rate"),
        "weight_decay": value_of("weight_decay"),
        "freeze_depth": value_of("freeze_depth"),
        "per_device_train_batch_size": value_of("batch_size"),
    }


def drawn() -> dict[str, Any]:
    """`SPACE` in Tune's words."""
    from ray import tune

    return {
        "learning_rate": tune.loguniform(SPACE["learning_rate"]["low"], SPACE["learning_rate"]["high"]),
        "weight_decay": tune.loguniform(SPACE["weight_decay"]["low"], SPACE["weight_decay"]["high"]),
        "freeze_depth": tune.randint(SPACE["freeze_depth"]["low"], SPACE["freeze_depth"]["high"] + 1),
        "per_device_train_batch_size": tune.choice(SPACE["batch_size"]),
    }


def search_optuna(job: Job) -> tuple[list[dict[str, Any]], float]:
    """All trials through Optuna, one after another on all cores."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trainer = build_trainer(job, threads=job.cores)
    storage = optuna.storages.InMemoryStorage()
    numbers = list(range(len(job.configs)))
    trainer.hyperparameter_search(
        hp_space=lambda trial: params_of(trial, job.configs),
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=len(numbers),
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"index": numbers}, seed=job.seed),
        pruner=optuna.pruners.NopPruner(),  # which trials stop early is the job's to say; Optuna's default would too
        storage=storage,
        study_name="hps",
    )
    searched = time.time()
    trials = []
    for trial in optuna.load_study(study_name="hps", storage=storage).trials:
        trials.append(trial_result(trial.params["index"], list(trial.intermediate_values.values())))
    return trials, searched


def score_winner(job: Job, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The winner as a user gets it: trained again to the end, and the best epoch's model scored."""
    config = max(trials, key=lambda trial: trial["accuracy"])["config"]
    torch.set_num_threads(job.cores)
    tuner = Tuner(job)
    scores: list[tuple[float, float]] = []

    def score(epoch: int, validation: float) -> None:
        scores.append((validation, tuner.accuracy("test", config["freeze_depth"])))

    tuner.train(config, score)
    validation, test = max(scores, key=lambda pair: pair[0])
    return {"config": config, "validation": validation, "test": test}


def main() -> None:
    """Searches; scoring the winner on the test split is not timed."""
    job = this_job()
    trials, searched = (search_ray if job.options["backend"] == "ray" else search_optuna)(job)
    if job.test is None:
        write_result(trials)
    else:
        write_result(trials, searched, winner=score_winner(job, trials))


if __name__ == "__main__":
    main()

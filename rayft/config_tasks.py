"""What a sweep file may say for each task: its metrics, its columns, and the keys and strategies that it reads."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from rayft.config_space import Faults, StrategyName

TaskName = Literal[
    "text-classification",
    "multi-label-classification",
    "regression",
    "token-classification",
    "causal-lm",
    "image-classification",
]
MetricName = Literal[
    "loss",
    "accuracy",
    "top5_accuracy",
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "matthews_correlation",
    "mse",
    "mae",
    "pearson",
    "spearman",
    "f1",
    "precision",
    "recall",
    "token_accuracy",
    "perplexity",
]
CostName = Literal["latency_ms", "train_seconds"]
ObjectiveName = MetricName | CostName
LATENCY: CostName = "latency_ms"
"""Of the exported model: one call of its pipeline on one row, for causal-lm with one new token."""
TRAIN_SECONDS: CostName = "train_seconds"
"""Of a trial, up to its best epoch."""
COSTS: tuple[CostName, ...] = (LATENCY, TRAIN_SECONDS)
LOWER_IS_BETTER: frozenset[ObjectiveName] = frozenset({"loss", "mse", "mae", "perplexity", *COSTS})

TASK_HYPERPARAMETERS: frozenset[str] = frozenset({"label_smoothing", "flip", "crop", "randaugment"})
"""What only some tasks read."""
TASK_COLUMNS: frozenset[str] = frozenset({"text", "label", "tokens", "tags", "messages", "image"})
TASK_DATA_KEYS: frozenset[str] = frozenset({"max_length", "class_weights", "sampling", "unlabeled"})
"""Keys of the data section that only some tasks read."""


@dataclass(frozen=True)
class TaskRules:
    """What one task reads of a sweep file.

    Attributes:
        metrics: All that it measures, in the order in which they are shown.
        default_metric: What is searched for if the file doesn't say.
        columns: Keys of data.columns.
        hyperparameters: Of those that only some tasks read.
        data_keys: Of the data section's that only some tasks read.
        refused: Strategies that make no sense for it, each with the reason.
    """

    metrics: tuple[MetricName, ...]
    default_metric: MetricName
    columns: frozenset[str]
    hyperparameters: frozenset[str] = frozenset({"label_smoothing"})
    data_keys: frozenset[str] = frozenset({"max_length"})
    refused: Mapping[StrategyName, str] = field(default_factory=dict)


_CLASSES: tuple[MetricName, ...] = ("loss", "accuracy", "macro_f1", "weighted_f1", "matthews_correlation")
_ONE_CLASS = "its discriminator tells a true class from predicted probabilities of classes, and {} has no such"

TASK_RULES: dict[TaskName, TaskRules] = {
    "text-classification": TaskRules(
        metrics=_CLASSES,
        default_metric="accuracy",
        columns=frozenset({"text", "label"}),
        data_keys=frozenset({"max_length", "class_weights", "sampling", "unlabeled"}),
    ),
    "multi-label-classification": TaskRules(
        metrics=("loss", "accuracy", "micro_f1", "macro_f1", "weighted_f1"),
        default_metric="micro_f1",
        columns=frozenset({"text", "label"}),
        hyperparameters=frozenset(),
        data_keys=frozenset({"max_length", "class_weights"}),
        refused={"adversarial": _ONE_CLASS.format("a row with several labels")},
    ),
    "regression": TaskRules(
        metrics=("loss", "mse", "mae", "pearson", "spearman"),
        default_metric="mse",
        columns=frozenset({"text", "label"}),
        hyperparameters=frozenset(),
        refused={"adversarial": _ONE_CLASS.format("a number")},
    ),
    "token-classification": TaskRules(
        metrics=("loss", "f1", "precision", "recall", "accuracy"),
        default_metric="f1",
        columns=frozenset({"tokens", "tags"}),
        refused={"adversarial": _ONE_CLASS.format("a row of tagged tokens")},
    ),
    "causal-lm": TaskRules(
        metrics=("loss", "perplexity", "token_accuracy"),
        default_metric="loss",
        columns=frozenset({"text", "messages"}),
        refused={"adversarial": _ONE_CLASS.format("a text to continue")},
    ),
    "image-classification": TaskRules(
        metrics=("loss", "accuracy", "top5_accuracy", "macro_f1", "weighted_f1", "matthews_correlation"),
        default_metric="accuracy",
        columns=frozenset({"image", "label"}),
        hyperparameters=TASK_HYPERPARAMETERS,
        data_keys=frozenset({"class_weights", "sampling", "unlabeled"}),
    ),
}

TASKS: tuple[TaskName, ...] = get_args(TaskName)


def task_faults(
    task: TaskName,
    given: Mapping[str, Collection[str]],
    objectives: Sequence[ObjectiveName],
    strategies: Sequence[StrategyName],
) -> Faults:
    """What the task doesn't read, measure or train with.

    Args:
        task: The task.
        given: The keys of each section that the file has.
        objectives: What it searches for.
        strategies: All that a trial may have.
    """
    rules = TASK_RULES[task]
    faults: Faults = []
    read = {
        "training": (TASK_HYPERPARAMETERS, rules.hyperparameters),
        "search_space": (TASK_HYPERPARAMETERS, rules.hyperparameters),
        "data": (TASK_DATA_KEYS, rules.data_keys),
        "data.columns": (TASK_COLUMNS, rules.columns),
    }
    for section, keys in given.items():
        of_some_tasks, own = read[section]
        for key in sorted(of_some_tasks.intersection(keys) - own):
            known = f"; of its kind it reads {', '.join(sorted(own))}" if own else ""
            faults.append((f"{section}.{key}", f"task {task} doesn't read it{known}"))
    if task == "causal-lm" and {"text", "messages"} <= {*given["data.columns"]}:
        faults.append(("data.columns", "causal-lm trains on text or on messages, not both"))
    measured = _measured(task)
    for name in objectives:
        if name not in measured and name not in COSTS:
            rule = f"must be one that task {task} measures, {', '.join(measured)}, but got {name!r}"
            faults.append(("search.metric", rule))
    for strategy in strategies:
        if strategy in rules.refused:
            section = "search_space" if "strategy" in given["search_space"] else "training"
            rule = f"strategy {strategy} can't be used for task {task}: {rules.refused[strategy]}"
            faults.append((f"{section}.strategy", rule))
    return faults


def _measured(task: TaskName) -> tuple[MetricName, ...]:
    """Text classification may turn out to have several labels a row once the data is read."""
    several = TASK_RULES["multi-label-classification"].metrics if task == "text-classification" else ()
    return tuple(dict.fromkeys((*TASK_RULES[task].metrics, *several)))

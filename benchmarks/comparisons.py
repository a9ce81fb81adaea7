"""The benchmarks in which every arm trains the same configurations."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks import workload
from benchmarks.arms.job import Config, Job
from benchmarks.options import BenchmarkError, Options
from benchmarks.report import Target, as_json, console, disagreement, ratio_rows, ratios_table, seconds_table
from benchmarks.runner import Arm, interleaved

ARMS = {
    "rayft": Arm("rayft", {"training": {"precision": "fp32"}}),
    "rayft-auto": Arm("rayft", {"training": {"precision": "auto"}}),
    "rayft-no-cache": Arm("rayft", {"training": {"precision": "fp32", "cache": "off"}}),
    "rayft-no-onednn": Arm("rayft", {"training": {"precision": "fp32"}}, without="onednn"),
    "rayft-no-buckets": Arm("rayft", {"training": {"precision": "fp32"}}, without="buckets"),
    "rayft-sync-writes": Arm("rayft", {"training": {"precision": "fp32"}}, without="background-writes"),
    "rayft-cold-groups": Arm("rayft", {"training": {"precision": "fp32"}}, without="warm-groups"),
    "rayft-compile": Arm("rayft", {"training": {"compile": True}}),
    "hps-ray": Arm("hps", {"backend": "ray"}),
    "hps-ray-reuse": Arm("hps", {"backend": "ray", "reuse_actors": True}),
    "hps-ray-auto": Arm("hps", {"backend": "ray", "precision": "auto"}),
    "hps-optuna": Arm("hps", {"backend": "optuna"}),
    "hps-optuna-auto": Arm("hps", {"backend": "optuna", "precision": "auto"}),
    "documented": Arm("documented"),
    "expert": Arm("expert"),
    "expert-cached": Arm("expert", {"cached": True}),
    "expert-cached-auto": Arm("expert", {"cached": True, "precision": "auto"}),
    "expert-cached-onednn": Arm("expert", {"cached": True, "onednn": True}),
}
SMOKE_ROWS = {"train": 60, "validation": 40}


@dataclass(frozen=True)
class Comparison:
    """One benchmark of this kind.

    Attributes:
        title: What it measures.
        arms: Names in `ARMS` that run by default.
        configs: What every arm trains.
        epochs: At most so many for each configuration.
        train_rows: Without --rows.
        validation_rows: Always.
        early_stopping: Whether ASHA stops configurations.
        targets: What is aimed at.
        bases: The arms that all others are divided by.
    """

    title: str
    arms: tuple[str, ...]
    configs: list[Config]
    epochs: int
    train_rows: int = 1000
    validation_rows: int = workload.VALIDATION_ROWS
    early_stopping: bool = False
    targets: list[Target] = field(default_factory=list)
    bases: tuple[str, ...] = ("rayft", "rayft-auto")


COMPARISONS = {
    "replay": Comparison(
        "replay: 8 fixed configurations, 2 epochs, no early stopping",
        (
            *("rayft", "rayft-auto", "hps-ray", "hps-ray-auto", "hps-optuna", "hps-optuna-auto", "documented"),
            *("expert", "expert-cached", "expert-cached-auto", "expert-cached-onednn"),
        ),
        workload.replay_configs(),
        epochs=2,
        targets=[
            Target("rayft", "expert-cached", 1.15, at_most=True),
            Target("hps-ray", "rayft", 3.0),
            Target("hps-optuna", "rayft", 2.3),
            Target("documented", "rayft", 3.3),
            Target("rayft-auto", "expert-cached", 1.0, at_most=True),
            Target("rayft-auto", "expert-cached-auto", 1.15, at_most=True),
            Target("hps-ray-auto", "rayft-auto", 3.0),
            Target("hps-optuna-auto", "rayft-auto", 2.3),
            Target("documented", "rayft-auto", 3.3),
        ],
    ),
    "short": Comparison(
        "short: 32 random configurations, at most 4 epochs, ASHA",
        ("rayft", "rayft-auto", "hps-ray", "hps-ray-auto", "documented"),
        workload.random_configs(32, seed=0),
        epochs=4,
        train_rows=200,
        validation_rows=200,
        early_stopping=True,
        targets=[
            Target("documented", "rayft", 8.0),
            Target("hps-ray", "rayft", 4.0),
            Target("documented", "rayft-auto", 8.0),
            Target("hps-ray-auto", "rayft-auto", 4.0),
        ],
    ),
    "depth0": Comparison(
        "depth0: 4 configurations of full fine-tuning, 2 epochs",
        ("rayft", "rayft-auto", "hps-ray", "hps-ray-auto", "hps-optuna", "hps-optuna-auto"),
        workload.full_configs(),
        epochs=2,
        targets=[
            Target("hps-ray", "rayft", 2.0),
            Target("hps-optuna", "rayft", 1.0),
            Target("hps-ray-auto", "rayft-auto", 2.0),
            Target("hps-optuna-auto", "rayft-auto", 1.0),
        ],
    ),
    "ablation": Comparison(
        "ablation: the replay with parts of rayft off",
        (
            *("rayft", "rayft-auto", "rayft-no-cache", "rayft-no-onednn", "rayft-no-buckets", "rayft-sync-writes"),
            *("rayft-cold-groups",),
        ),
        workload.replay_configs(),
        epochs=2,
        bases=("rayft",),
    ),
}


def run(name: str, options: Options) -> dict[str, Any]:
    """Runs one comparison, prints its tables and returns its result.

    Raises:
        BenchmarkError: There is no such arm, or there are not enough rows.
    """
    comparison = COMPARISONS[name]
    names = options.arms or comparison.arms
    if unknown := [arm for arm in names if arm not in ARMS]:
        raise BenchmarkError(f"unknown arm {unknown[0]!r}, available are {', '.join(ARMS)}")
    sizes = {"train": options.rows or comparison.train_rows, "validation": comparison.validation_rows}
    sizes |= SMOKE_ROWS if options.smoke else {}
    files = workload.write_files(options.work / name / "data", sizes["train"], sizes["validation"], test_rows=0)
    job = Job(
        model=files.model,
        train=files.train,
        validation=files.validation,
        configs=_smoke_configs(comparison) if options.smoke else comparison.configs,
        epochs=1 if options.smoke and not comparison.early_stopping else comparison.epochs,
        work="",
        early_stopping=comparison.early_stopping,
        cores=options.cores,
        max_length=workload.MAX_LENGTH,
    )
    arms = {arm: ARMS[arm] for arm in names}
    runs = interleaved(arms, job, options.work / name, options.repeats, options.timeout)
    rows = ratio_rows(runs, comparison.targets, [base for base in comparison.bases if base in arms])
    out = console()
    out.print(seconds_table(comparison.title, runs), ratios_table(rows))
    return {
        "rows": sizes,
        "configs": job.configs,
        "epochs": job.epochs,
        "runs": as_json(runs),
        "ratios": rows,
        "largest_distance_from_median_accuracy": disagreement(runs),
    }


def _smoke_configs(comparison: Comparison) -> list[Config]:
    """The shallowest and the deepest, and where trials are stopped early two more, so that one is."""
    ordered = sorted(comparison.configs, key=lambda config: config["freeze_depth"])
    return [*ordered[:2], *ordered[-2:]] if comparison.early_stopping else [ordered[0], ordered[-1]]

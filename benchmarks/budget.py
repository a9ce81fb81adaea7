"""The same seconds for every search: whose winner is best on the test split?"""

from dataclasses import replace
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import workload
from benchmarks.arms.job import Job
from benchmarks.options import BenchmarkError, Options
from benchmarks.report import as_json, console
from benchmarks.runner import Arm, Run, run_arm

ARMS = {
    "rayft": Arm("rayft"),
    "hps-ray": Arm("hps", {"backend": "ray", "precision": "auto"}),
    "random": Arm("expert", {"search": "random", "precision": "auto"}),
    "top-k": Arm("expert", {"search": "top-k", "precision": "auto"}),
}
DRAWS = 1000
"""Configurations that the searches without Ray are given: more than there is time for."""


def run(options: Options) -> dict[str, Any]:
    """Runs all searches with every seed, prints the table and returns the result.

    Raises:
        BenchmarkError: There is no such arm, or there are not enough rows.
    """
    names = options.arms or tuple(ARMS)
    if unknown := [arm for arm in names if arm not in ARMS]:
        raise BenchmarkError(f"unknown arm {unknown[0]!r}, available are {', '.join(ARMS)}")
    rows = (60, 40, 40) if options.smoke else (options.rows or 1000, workload.VALIDATION_ROWS, workload.TEST_ROWS)
    files = workload.write_files(options.work / "budget" / "data", *rows)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for seed in range(1 if options.smoke else options.seeds):
        job = Job(
            model=files.model,
            train=files.train,
            validation=files.validation,
            test=files.test,
            configs=[],
            epochs=4,
            work="",
            early_stopping=True,
            seed=seed,
            cores=options.cores,
            max_length=workload.MAX_LENGTH,
        )
        for name in names:
            drawn = workload.random_configs(DRAWS, seed) if ARMS[name].module == "expert" else []
            folder = options.work / "budget" / f"{name}-{seed}"
            result = run_arm(ARMS[name], replace(job, configs=drawn), folder, options.timeout, options.seconds)
            print(f"{name}, seed {seed}: {result.error or _scores(result)}, {result.seconds:.1f} s", flush=True)
            runs[name].append(result)
    console().print(_table(runs, options.seconds))
    return {"budget_seconds": options.seconds, "rows": rows, "runs": as_json(runs)}


def _scores(run: Run) -> str:
    winner = run.more["winner"]
    return f"validation {winner['validation']:.3f}, test {winner['test']:.3f}, {len(run.trials)} configurations"


def _table(runs: dict[str, list[Run]], budget: float) -> Table:
    table = Table(title=f"the winner after {budget:g} s, by accuracy")
    for column in ("arm", "median test", "each seed", "median validation", "seconds", "configurations"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, repeats in runs.items():
        done = [run for run in repeats if run.error is None]
        if not done:
            table.add_row(name, "failed", *[""] * 4)
            continue
        tests = [run.more["winner"]["test"] for run in done]
        table.add_row(
            name,
            f"{median(tests):.3f}",
            " ".join(f"{test:.3f}" for test in tests),
            f"{median(run.more['winner']['validation'] for run in done):.3f}",
            " ".join(f"{run.seconds:.0f}" for run in done),
            " ".join(str(len(run.trials)) for run in done),
        )
    return table

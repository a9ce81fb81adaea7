"""The arm `rayft`: writes a sweep file and runs `rayft sweep`, as a user would."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.arms.job import GRACE_EPOCHS, REDUCTION_FACTOR, SPACE, Config, Job, this_job, trial_result, write_result

RAYFT = str(Path(sys.executable).parent / "rayft")

MANY_TRIALS = 10_000
"""More than any time limit allows."""
RESERVE_SECONDS = 3.0
"""What a time budget leaves for starting and ending the process: search.time_limit is this much less."""


def sweep_file(job: Job) -> dict[str, Any]:
    """The sweep file of a job.

    With configurations given, the search space only has to hold them, and every trial is one of `start_with`.
    Otherwise rayft draws them, by its default sampler unless the options name another.
    """
    fixed = bool(job.configs)
    data = {"train": job.train, "validation": job.validation, "max_length": job.max_length}
    sweep: dict[str, Any] = {
        "model": job.model,
        "data": data | ({"test": job.test} if job.test else {}),
        "training": {"epochs": job.epochs, **job.options.get("training", {})},
        "search_space": _space_of(job.configs) if fixed else job.options.get("space", SPACE),
        "search": {"metric": "accuracy", "seed": job.seed},
        "final": None,  # no other arm trains its winner again
        "early_stopping": None,
        "cluster": {"concurrent_trials": job.cores},
        "storage": str(Path(job.work) / "runs"),
    }
    if fixed:
        sweep["search"] |= {
            "trials": len(job.configs),
            "sampler": "random",
            "start_with": [_as_start(config) for config in job.configs],
        }
    else:
        sweep["training"] |= {"strategy": "partial"} if "freeze_depth" in sweep["search_space"] else {}
        sweep["search"] |= {"trials": MANY_TRIALS, **job.options.get("search", {})}
    if job.early_stopping:
        sweep["early_stopping"] = {"grace_epochs": GRACE_EPOCHS, "reduction_factor": REDUCTION_FACTOR}
    if job.deadline is not None:
        sweep["search"]["time_limit"] = max(1.0, job.deadline - time.time() - RESERVE_SECONDS)
    return sweep


def _space_of(configs: list[Config]) -> dict[str, Any]:
    space: dict[str, Any] = {
        "strategy": ["full"],
        "learning_rate": {"low": 1e-6, "high": 1e-2, "log": True},
        "batch_size": [16, 32],
        "weight_decay": {"low": 0.0, "high": 1.0},
    }
    if deepest := max(config["freeze_depth"] for config in configs):
        space["strategy"] = ["full", "partial"]
        space["freeze_depth"] = {"low": 1, "high": deepest, "when": {"strategy": "partial"}}
    return space


def _as_start(config: Config) -> dict[str, Any]:
    if config["freeze_depth"] > 0:
        return {"strategy": "partial", **config}
    return {"strategy": "full", **{name: value for name, value in config.items() if name != "freeze_depth"}}


def main() -> None:
    """Runs the sweep; the clock stops when the command has ended, since listing the trials is for this benchmark."""
    job = this_job()
    path = Path(job.work) / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_file(job)), encoding="utf-8")
    subprocess.run([RAYFT, "sweep", str(path), "--name", "run"], check=True)
    finished_at = time.time()
    run = Path(job.work) / "runs" / "run"
    listed = subprocess.run([RAYFT, "trials", str(run), "--json"], check=True, capture_output=True, text=True)
    rows = [row for row in json.loads(listed.stdout) if row["value"] is not None]
    trials = [trial_result(row["number"], [row["value"]], row["params"]) | {"epochs": row["epochs"]} for row in rows]
    exported = json.loads((run / "best" / "rayft.json").read_text(encoding="utf-8"))
    winner = {split: exported[split]["accuracy"] for split in ("validation", "test") if exported[split]}
    write_result(trials, finished_at, winner=winner | {"config": exported["params"]})


if __name__ == "__main__":
    main()

"""The arms without Ray: one warm process per core, which takes one configuration after another.

`expert` computes frozen blocks anew for every batch, and `expert-cached` computes them once: it is the floor. With a
deadline they are two searches, `random` and `top-k`.
"""

import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms.job import Config, Job, this_job, trial_result, write_result

TOP_K = 8
"""After half of the time, as many of the best are trained to the end as there is time for, but no more than these."""

Task = tuple[int, Config, int, float | None]
"""Number, configuration, epochs, and when to cut it off."""


def work(job: Job, rank: int, tasks: Any, results: Any, barrier: Any) -> None:
    """One process: it imports torch here, so that the parent needn't."""
    import torch

    from benchmarks.arms.loop import Tuner

    torch.set_num_threads(1)
    tuner = Tuner(job)
    if job.options.get("cached"):
        from benchmarks.arms.prefix_cache import CachedPrefix

        depths = sorted({config["freeze_depth"] for config in job.configs} - {0})
        tuner.prefix = prefix = CachedPrefix(tuner.model, tuner.splits, depths, Path(job.work))
        prefix.fill(rank, job.cores, barrier.wait)
    best: dict[str, Any] = {"validation": -1.0}
    while (task := tasks.get()) is not None:
        index, config, epochs, deadline = task
        if deadline is not None and time.time() > deadline:
            results.put((index, config, []))
            continue

        def keep_best(epoch: int, accuracy: float, config: Config = config) -> None:
            if job.test is not None and accuracy > best["validation"]:
                state = {name: value.clone() for name, value in tuner.model.state_dict().items()}
                best.update(validation=accuracy, config=config, state=state)

        results.put((index, config, tuner.train(config, keep_best, epochs, deadline)))
    if "state" in best:
        tuner.model.load_state_dict(best.pop("state"))
        best["test"] = tuner.accuracy("test", best["config"]["freeze_depth"])
    results.put(best)


def run(tasks: Sequence[Task], queue: Any, results: Any) -> list[dict[str, Any]]:
    """Hands tasks out and waits for all of them; one that was cut off before its first epoch's end is left out."""
    for task in tasks:
        queue.put(task)
    finished = [results.get() for _ in tasks]
    return [trial_result(index, accuracies, config) for index, config, accuracies in finished if accuracies]


def search(job: Job, queue: Any, results: Any) -> list[dict[str, Any]]:
    """Everything that the job asks for."""
    numbered = list(enumerate(job.configs))
    if job.deadline is None:  # the longest first, or a long one may run alone at the end
        longest_first = sorted(numbered, key=lambda item: (item[1]["freeze_depth"], item[1]["batch_size"]))
        return run([(index, config, job.epochs, None) for index, config in longest_first], queue, results)
    if job.options["search"] == "random":
        return run([(index, config, job.epochs, job.deadline) for index, config in numbered], queue, results)
    half = time.time() + (job.deadline - time.time()) / 2
    first = run([(index, config, 1, half) for index, config in numbered], queue, results)
    leaders = sorted(first, key=lambda trial: -trial["accuracy"])[:TOP_K]
    again = [(trial["index"], trial["config"], job.epochs, job.deadline) for trial in leaders]
    return first + run(again, queue, results)


def main() -> None:
    """Starts the processes at once, and the clock stops when the last configuration is done."""
    job = this_job()
    context = multiprocessing.get_context("spawn")
    queue, results, barrier = context.Queue(), context.Queue(), context.Barrier(job.cores)
    workers = [
        context.Process(target=work, args=(job, rank, queue, results, barrier), daemon=True)
        for rank in range(job.cores)
    ]
    for worker in workers:
        worker.start()
    trials = search(job, queue, results)
    searched = time.time()
    for _ in workers:
        queue.put(None)
    winner = max((results.get() for _ in workers), key=lambda best: best["validation"])
    for worker in workers:
        worker.join()
    write_result(trials, searched if job.deadline is not None else None, winner=winner)


if __name__ == "__main__":
    main()

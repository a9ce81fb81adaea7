"""What a trial costs besides its arithmetic: a thousand trials of a trivial model."""

import random
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
from rich.table import Table

from benchmarks import workload
from benchmarks.arms.job import Job
from benchmarks.options import BenchmarkError, Options
from benchmarks.report import console
from benchmarks.runner import Arm, run_arm

TRIALS, SMOKE_TRIALS = 1000, 30
ROWS = 64
WINDOW = 100
SETTLED_TRIAL = 20
"""From here on memory is watched: allocators and caches have found their size by then."""
SAMPLE_SECONDS = 0.5
WORDS = ["the", "it", "is", "was", "very", "good", "great", "nice", "bad", "poor", "awful", "dull", "film", "book"]
TARGETS = {"seconds_per_trial": 0.15, "last_over_first": 1.3, "memory_growth_per_200_trials": 0.05}


class WorkerMemory:
    """Samples the memory of every worker process below this one, in a thread, while the block runs."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, int]] = []
        """When (seconds since 1970), which process, and its resident bytes."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "WorkerMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def growth(self, start: float, end: float) -> dict[str, list[float]]:
        """MiB of each process at two times, for those that lived at both."""
        found = {}
        for pid in sorted({pid for _, pid, _ in self.samples}):
            of_pid = [(when, size / 2**20) for when, process, size in self.samples if process == pid]
            before = [size for when, size in of_pid if when <= start]
            after = [size for when, size in of_pid if when <= end]
            if before and of_pid[-1][0] >= end - 5:
                found[str(pid)] = [round(before[-1], 1), round(after[-1], 1)]
        return found

    def _watch(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            for process in psutil.Process().children(recursive=True):
                try:
                    command = " ".join(process.cmdline())
                    if "RayTrainWorker" in command:
                        self.samples.append((time.time(), process.pid, process.memory_info().rss))
                except psutil.Error:
                    continue


def write_tiny_model(folder: Path) -> None:
    """A BERT of one block and hidden size 32 with random weights, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: index for index, token in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)).save_pretrained(folder)


def write_rows(path: Path) -> None:
    """Rows of random words with two labels."""
    generator = random.Random(0)
    rows = [(" ".join(generator.choices(WORDS, k=6)), ("no", "yes")[index % 2]) for index in range(ROWS)]
    workload.quickstart().write_csv(path, rows)


def run(options: Options) -> dict[str, Any]:
    """Runs the trials, prints the table and returns the result.

    Raises:
        BenchmarkError: The sweep failed.
    """
    folder = options.work / "overhead"
    write_tiny_model(folder / "model")
    write_rows(folder / "rows.csv")
    job = Job(
        model=str(folder / "model"),
        train=str(folder / "rows.csv"),
        validation=str(folder / "rows.csv"),
        configs=[],
        epochs=1,
        work="",
        cores=options.cores,
        max_length=16,
        options={
            "space": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
            "final": None,
            "search": {"trials": SMOKE_TRIALS if options.smoke else TRIALS, "sampler": "random"},
        },
    )
    with WorkerMemory() as memory:
        done = run_arm(Arm("rayft"), job, folder / "rayft", options.timeout)
    if done.error is not None:
        raise BenchmarkError(done.error)
    finished = finish_times(folder / "rayft" / "work" / "runs" / "run" / "study.db")
    result: dict[str, Any] = {"seconds": done.seconds, **per_trial(finished)}
    if len(finished) > SETTLED_TRIAL:
        sizes = memory.growth(finished[SETTLED_TRIAL - 1], finished[-1])
        share = max((after / before - 1 for before, after in sizes.values()), default=float("nan"))
        result["worker_mib"] = sizes
        result["memory_growth"] = share
        result["memory_growth_per_200_trials"] = share * 200 / (len(finished) - SETTLED_TRIAL)
    console().print(_table(result))
    return result


def finish_times(study: Path) -> list[float]:
    """When each trial was complete, seconds since 1970, in order."""
    storage = f"sqlite:///{study}"
    name = optuna.get_all_study_names(storage)[0]
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return sorted(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete is not None)


def per_trial(finished: list[float]) -> dict[str, float]:
    """Seconds from one completed trial to the next: over all, and of the first and last ones."""

    def mean_gap(times: list[float]) -> float:
        return (times[-1] - times[0]) / max(1, len(times) - 1)

    window = min(WINDOW, len(finished) // 2) + 1
    first, last = mean_gap(finished[:window]), mean_gap(finished[-window:])
    return {
        "trials": len(finished),
        "seconds_per_trial": mean_gap(finished),
        "seconds_per_trial_first": first,
        "seconds_per_trial_last": last,
        "last_over_first": last / first,
    }


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"overhead: {result['trials']} trials of a trivial model, {result['seconds']:.1f} s in all")
    for column in ("measure", "value", "target", ""):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name, value in result.items():
        if isinstance(value, float) and name != "seconds":
            bound = TARGETS.get(name)
            verdict = "" if bound is None else ("met" if value <= bound else "missed")
            table.add_row(name.replace("_", " "), f"{value:.3f}", "" if bound is None else f"<= {bound:g}", verdict)
    if "worker_mib" in result:
        sizes = ", ".join(f"{before:.0f} to {after:.0f}" for before, after in result["worker_mib"].values())
        table.add_row("MiB of each worker", sizes or "not seen", "", "")
    return table

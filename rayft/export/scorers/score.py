"""Scores a model folder on raw rows, as anybody who loads it would: plain `transformers`, nothing of rayft.

Run as a script in a process of its own: `python -P score.py TASK MODEL DATA [SPLIT ...]`. Without arguments it
takes them as a JSON list from its input, once it has imported what it needs. The last line that it prints is a JSON
object with the device; and for each split the metrics, how far rounding may have moved each of them, and each class's
own figures. With `--latency` the object also has the time that one row takes.

How a task is scored is in a file beside this one, whose `score(pipe, table, rounding, facts)` gives these three, and a
function that measures one metric on some of the rows, from which the interval of a metric is drawn; the number of rows;
and where a model predicts numbers, some true ones beside what it gives for them.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import sklearn.metrics  # noqa: F401, takes seconds, which may pass before there is a model
import torch
import transformers
import transformers.modeling_layers

RESAMPLES = 500

KINDS = {
    "text-classification": ("text-classification", "AutoModelForSequenceClassification", "classes"),
    "multi-label-classification": ("text-classification", "AutoModelForSequenceClassification", "several_labels"),
    "regression": ("text-classification", "AutoModelForSequenceClassification", "numbers"),
    "token-classification": ("token-classification", "AutoModelForTokenClassification", "tags"),
    "causal-lm": ("text-generation", "AutoModelForCausalLM", "next_tokens"),
    "image-classification": ("image-classification", "AutoModelForImageClassification", "classes"),
}
"""For each task its pipeline, the class of its model, and the file that scores it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the model, scores the splits and prints the result.

    Args:
        arguments: The command line without the script's name; `sys.argv`'s if None, and the input's if that has none.

    Raises:
        SystemExit: The weights in the folder aren't exactly those that the model needs.
    """
    parser = argparse.ArgumentParser(description="Scores a model folder on raw rows.")
    parser.add_argument("task", choices=KINDS, help="what the model is for")
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="folder of SPLIT.arrow with the raw rows")
    parser.add_argument("splits", nargs="*", metavar="SPLIT", help="validation, test")
    parser.add_argument("--bf16", action="store_true", help="compute under torch.autocast to bfloat16")
    parser.add_argument("--rounding", type=float, default=0.0, help="how far rounding may move a probability")
    parser.add_argument("--metric", help="what to give the interval of, on the last split")
    parser.add_argument("--latency", action="store_true", help="time the model on one row of validation after another")
    parser.add_argument("--facts", type=json.loads, default={}, help="what the task knows of its data, as JSON")
    given = parser.parse_args(arguments or sys.argv[1:] or json.loads(sys.stdin.readline()))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load(given.task, given.model, device)
    scorer = _beside(KINDS[given.task][2])
    metrics, slack, classes, pairs, interval = {}, {}, {}, {}, None
    for split in given.splits:
        table = _rows(given.data, split)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=given.bf16):
            found = scorer.score(pipe, table, given.rounding, given.facts)
        metrics[split], slack[split], classes[split], measure, rows, *rest = found
        pairs[split] = rest[0] if rest else []
        if given.metric and split == given.splits[-1]:
            interval = bootstrap(partial(measure, given.metric), rows)
    result = {"device": device.type, "metrics": metrics, "slack": slack, "classes": classes, "interval": interval}
    result["pairs"] = pairs
    if given.latency:
        result["latency_ms"] = _beside("latency").latency_ms(pipe, _rows(given.data, "validation"))
    print(json.dumps(result))


def _rows(data: Path, split: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(data / f"{split}.arrow"))).read_all()


def bootstrap(measure: Callable[[np.ndarray], float], rows: int) -> list[float]:
    """The 95 % percentile interval of a metric over rows drawn anew, with replacement (Efron 1979).

    Args:
        measure: The metric of some rows, by their indices.
        rows: How many there are.
    """
    generator = np.random.default_rng(0)
    values = [measure(generator.integers(rows, size=rows)) for _ in range(RESAMPLES)]
    return [float(bound) for bound in np.percentile(values, (2.5, 97.5))]


def load(task: str, folder: Path, device: torch.device) -> Any:
    """The pipeline of a model folder.

    Raises:
        SystemExit: The weights in the folder aren't exactly those that the model needs.
    """
    kind, auto_class, _ = KINDS[task]
    model, loaded = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[fault]:  # transformers only warns, and draws missing weights at random
            raise SystemExit(
                f"the model's weights have {fault.replace('_', ' ')}: {', '.join(map(str, loaded[fault]))}"
            )
    part = "image_processor" if kind == "image-classification" else "tokenizer"
    return transformers.pipeline(kind, model=model, device=device, **{part: str(folder)})


def _beside(name: str) -> ModuleType:
    """A file beside this one; rayft is out of reach here, on purpose."""
    spec = importlib.util.spec_from_file_location(f"rayft_score_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()

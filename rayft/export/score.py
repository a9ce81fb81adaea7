"""Scores a model folder on raw text, as anybody who loads it would: plain `transformers`, nothing of rayft.

Run as a script in a process of its own: `python -P score.py MODEL DATA SPLIT [SPLIT ...]`. Without arguments it takes
them as a JSON list from its input, once it has imported what it needs. The last line that it prints is a JSON object
with the device, the metrics of each split, and how far rounding may have moved each of them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers.modeling_layers  # noqa: F401, the model needs it, and transformers imports it no sooner
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROWS_PER_BATCH = 32
MAX_UNDECIDED = 100
"""Rows, of a split, whose other outcome is looked at."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the model, scores the splits and prints the result.

    Args:
        arguments: The command line without the script's name; `sys.argv`'s if None, and the input's if that has none.

    Raises:
        SystemExit: The weights in the folder aren't exactly those that the model needs.
    """
    parser = argparse.ArgumentParser(description="Scores a model folder on raw text.")
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="folder of SPLIT.arrow, with columns text, [text_pair] and label")
    parser.add_argument("splits", nargs="+", metavar="SPLIT", help="validation, test")
    parser.add_argument("--bf16", action="store_true", help="compute under torch.autocast to bfloat16")
    parser.add_argument("--rounding", type=float, default=0.0, help="how far rounding may move a probability")
    given = parser.parse_args(arguments or sys.argv[1:] or json.loads(sys.stdin.readline()))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model, loaded = AutoModelForSequenceClassification.from_pretrained(given.model, output_loading_info=True)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[fault]:  # transformers only warns, and draws missing weights at random
            raise SystemExit(
                f"the model's weights have {fault.replace('_', ' ')}: {', '.join(map(str, loaded[fault]))}"
            )
    model.to(device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=given.bf16):
        outputs = {split: predict(model, tokenizer, given.data / f"{split}.arrow", device) for split in given.splits}
    metrics = {split: classification_metrics(*output) for split, output in outputs.items()}
    slack = {split: rounding_slack(*output, given.rounding) for split, output in outputs.items()}
    print(json.dumps({"device": device.type, "metrics": metrics, "slack": slack}))


@torch.inference_mode()
def predict(model: Any, tokenizer: Any, path: Path, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The model's logits for one split, [rows, labels], and the true label ids, [rows]."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    columns = [table[name].to_pylist() for name in ("text", "text_pair") if name in table.column_names]
    labels = table["label"].to_numpy()
    order = np.argsort([len(text) for text in columns[0]], kind="stable")
    logits = np.empty((len(labels), model.config.num_labels))
    for start in range(0, len(order), ROWS_PER_BATCH):
        rows = order[start : start + ROWS_PER_BATCH]
        texts = [[column[row] for row in rows] for column in columns]
        batch = tokenizer(*texts, truncation=True, padding=True, return_tensors="pt").to(device)
        logits[rows] = model(**batch).logits.double().cpu().numpy()
    return logits, labels


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of the search, computed apart from the code that the search ran.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].
    """
    loss = -log_probabilities(logits)[np.arange(len(labels)), labels].mean()
    return {"loss": float(loss), **counted_metrics(logits.argmax(axis=1), labels)}


def rounding_slack(logits: np.ndarray, labels: np.ndarray, rounding: float) -> dict[str, float]:
    """How far each metric may lie from itself where rounding decides rows otherwise.

    A row is decided by rounding if its two highest probabilities are no further apart than that. What each such row by
    itself would change is added up; the loss isn't counted in rows and has none.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].
        rounding: How far it may move a probability.
    """
    probabilities = np.exp(log_probabilities(logits))
    order = probabilities.argsort(axis=1)
    rows = np.arange(len(labels))
    margins = probabilities[rows, order[:, -1]] - probabilities[rows, order[:, -2]]
    undecided = [row for row in margins.argsort(kind="stable")[:MAX_UNDECIDED] if margins[row] <= rounding]
    predicted = logits.argmax(axis=1)
    as_is = counted_metrics(predicted, labels)
    slack = dict.fromkeys(as_is, 0.0)
    for row in undecided:
        other = predicted.copy()
        other[row] = order[row, -2] if order[row, -2] != predicted[row] else order[row, -1]
        for name, value in counted_metrics(other, labels).items():
            slack[name] += abs(value - as_is[name])
    return {"loss": 0.0, **slack}


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def counted_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics that only ask which label won."""
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "weighted_f1": float(f1_score(labels, predicted, average="weighted", zero_division=0.0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)),
    }


if __name__ == "__main__":
    main()

"""Scores a model folder on raw text, as anybody who loads it would: plain `transformers`, nothing of rayft.

Run as a script in a process of its own: `python -P score.py MODEL DATA SPLIT [SPLIT ...]`. Without arguments it takes
them as a JSON list from its input, once it has imported what it needs. The last line that it prints is a JSON object
with the device and the metrics of each split.
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
        metrics = {split: score(model, tokenizer, given.data / f"{split}.arrow", device) for split in given.splits}
    print(json.dumps({"device": device.type, "metrics": metrics}))


@torch.inference_mode()
def score(model: Any, tokenizer: Any, path: Path, device: torch.device) -> dict[str, float]:
    """Every metric of the model on one split."""
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
    return classification_metrics(logits, labels)


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of the search, computed apart from the code that the search ran.

    Args:
        logits: Scores, [rows, labels].
        labels: True label ids, [rows].
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))
    predicted = logits.argmax(axis=1)
    return {
        "loss": float(-log_likelihood.mean()),
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "weighted_f1": float(f1_score(labels, predicted, average="weighted", zero_division=0.0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predicted)),
    }


if __name__ == "__main__":
    main()

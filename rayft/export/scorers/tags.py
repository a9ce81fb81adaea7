"""Scores models that give a tag for each word."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

ROWS_PER_BATCH = 32
MAX_UNDECIDED = 30
"""Words, of a split, whose other outcome is looked at."""

Measure = Callable[[str, np.ndarray], float]
Scored = tuple[dict[str, float], dict[str, float], dict[str, dict[str, Any]], Measure, int]
"""Metrics, their slack, each class's own figures, what measures one metric on some rows, and the number of rows."""
warnings.filterwarnings("ignore", module="seqeval")


def score(pipe: Any, table: pa.Table, rounding: float, facts: dict[str, Any]) -> Scored:
    """The metrics of the search, computed apart from the code that the search ran; their slack; and each kind's own.

    The tags are the pipeline's. It gives no probabilities but the highest, so the loss comes from its model.
    """
    names = pipe.model.config.id2label
    words, labels = table["tokens"].to_pylist(), table["label"].to_pylist()
    losses: list[float] = []
    true: list[list[str]] = []
    predicted: list[list[str]] = []
    undecided: list[tuple[float, int, int, str]] = []
    for row, (own_words, own_labels) in enumerate(zip(words, labels, strict=True)):
        encoded = pipe.tokenizer(own_words, is_split_into_words=True, truncation=True, return_tensors="pt")
        firsts = _first_sub_words(encoded.word_ids(0))
        logits = pipe.model(**encoded.to(pipe.model.device)).logits[0].double().cpu()[list(firsts.values())]
        targets = torch.tensor([own_labels[word] for word in firsts])
        losses.append(float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")))
        true.append([names[label] for label in targets.tolist()])
        predicted.append([names[label] for label in logits.argmax(dim=-1).tolist()])
        two, ids = logits.softmax(dim=-1).topk(2, dim=-1)
        undecided += [
            (margin, row, word, names[other])
            for word, (margin, other) in enumerate(
                zip((two[:, 0] - two[:, 1]).tolist(), ids[:, 1].tolist(), strict=True)
            )
            if margin <= rounding
        ]
        if row < ROWS_PER_BATCH:
            _check_pipeline(pipe, own_words, list(firsts.values()), predicted[-1], rounding, two)
    as_is = counted_metrics(predicted, true)
    slack = dict.fromkeys(as_is, 0.0)
    for _, row, word, other in sorted(undecided)[:MAX_UNDECIDED]:
        kept, predicted[row][word] = predicted[row][word], other
        for name, value in counted_metrics(predicted, true).items():
            slack[name] += abs(value - as_is[name])
        predicted[row][word] = kept
    counted = np.array([_counts(*row) for row in zip(true, predicted, losses, strict=True)])
    metrics = {"loss": _from_counts(counted)["loss"], **as_is}
    slack = {"loss": 0.0, **slack}
    return metrics, slack, _kinds(true, predicted), lambda name, rows: _from_counts(counted[rows])[name], len(true)


def _counts(true: list[str], predicted: list[str], loss: float) -> tuple[float, ...]:
    """A row's loss, words, right words, right entities, predicted entities and true ones."""
    wanted, found = set(get_entities(true)), set(get_entities(predicted))
    right = sum(one == other for one, other in zip(true, predicted, strict=True))
    return loss, len(true), right, len(wanted & found), len(found), len(wanted)


def _from_counts(counted: np.ndarray) -> dict[str, float]:
    """The metrics over some rows, from what `_counts` gave for each."""
    loss, words, right, hits, found, wanted = counted.sum(axis=0)
    return {
        "loss": loss / words,
        "accuracy": right / words,
        "precision": hits / max(found, 1),
        "recall": hits / max(wanted, 1),
        "f1": 2 * hits / max(found + wanted, 1),
    }


def counted_metrics(predicted: list[list[str]], true: list[list[str]]) -> dict[str, float]:
    """seqeval's entity metrics, and the share of words with the right tag."""
    pairs = [
        (one, other) for row, own in zip(predicted, true, strict=True) for one, other in zip(row, own, strict=True)
    ]
    return {
        "f1": float(f1_score(true, predicted, zero_division=0)),
        "precision": float(precision_score(true, predicted, zero_division=0)),
        "recall": float(recall_score(true, predicted, zero_division=0)),
        "accuracy": float(np.mean([one == other for one, other in pairs])),
    }


def _first_sub_words(word_ids: list[int | None]) -> dict[int, int]:
    """The place of each word's first sub-word, of the words that were not cut off."""
    places: dict[int, int] = {}
    for place, word in enumerate(word_ids):
        if word is not None:
            places.setdefault(word, place)
    return places


def _check_pipeline(
    pipe: Any, words: list[str], places: list[int], tags: list[str], rounding: float, two: torch.Tensor
) -> None:
    """Holds what the pipeline itself gives for some rows against the model's tags.

    Raises:
        SystemExit: It gives other tags.
    """
    (entries,) = pipe([words], is_split_into_words=True, ignore_labels=[])
    given = {entry["index"]: entry["entity"] for entry in entries}
    margins = (two[:, 0] - two[:, 1]).tolist()
    for place, tag, margin in zip(places, tags, margins, strict=True):
        if given.get(place, tag) != tag and margin > rounding:
            raise SystemExit(f"the pipeline tags {words} otherwise than the model: {given[place]} and not {tag}")


def _kinds(true: list[list[str]], predicted: list[list[str]]) -> dict[str, dict[str, float]]:
    report = classification_report(true, predicted, output_dict=True, zero_division=0)
    return {
        kind: {
            "rows": int(figures["support"]),
            "precision": float(figures["precision"]),
            "recall": float(figures["recall"]),
            "f1": float(figures["f1-score"]),
        }
        for kind, figures in report.items()
        if not kind.endswith(" avg")
    }

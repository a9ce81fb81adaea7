"""Scores models that give the next token of a text, or of the answers in a chat."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

IGNORED = -100

Measure = Callable[[str, np.ndarray], float]
Scored = tuple[dict[str, float], dict[str, float], dict[str, dict[str, Any]], Measure, int]
"""Metrics, their slack, each class's own figures, what measures one metric on some rows, and the number of rows."""


def score(pipe: Any, table: pa.Table, rounding: float, facts: dict[str, Any]) -> Scored:
    """The metrics of the search, computed apart from the code that the search ran, without packing; and their slack.

    Raises:
        SystemExit: The pipeline can't go on with a text.
    """
    model, tokenizer = pipe.model, pipe.tokenizer
    counts: list[tuple[float, int, int]] = []  # of each piece: its loss, tokens that are right, and all tokens
    undecided = 0
    pieces = _chat_pieces if facts.get("chat") else _text_pieces
    for ids, targets in pieces(table, tokenizer):
        inputs = torch.tensor([ids], device=model.device)
        logits = model(input_ids=inputs, use_cache=False).logits[0].double().cpu()
        wanted = torch.tensor(targets)
        scored = wanted != IGNORED
        logits, wanted = logits[scored], wanted[scored]
        loss = float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        counts.append((loss, int((logits.argmax(dim=-1) == wanted).sum()), len(wanted)))
        two = logits.softmax(dim=-1).topk(2, dim=-1).values
        undecided += int((two[:, 0] - two[:, 1] <= rounding).sum())
    _check_pipeline(pipe, table)
    counted = np.array(counts)
    metrics = _metrics(counted)
    undecided_share = undecided / counted[:, 2].sum()
    slack = {"loss": 0.0, "perplexity": metrics["perplexity"] * float(np.expm1(rounding))}
    slack["token_accuracy"] = float(undecided_share)
    return metrics, slack, {}, lambda name, rows: _metrics(counted[rows])[name], len(counted)


def _metrics(counted: np.ndarray) -> dict[str, float]:
    """Over some pieces, from [pieces, (loss, right tokens, tokens)]."""
    loss, right, tokens = counted.sum(axis=0)
    return {"loss": loss / tokens, "perplexity": float(np.exp(loss / tokens)), "token_accuracy": right / tokens}


def _text_pieces(table: pa.Table, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Each text with an end-of-text token in pieces that the model was trained on, and the next token at each place."""
    size, end = tokenizer.model_max_length, tokenizer.eos_token_id
    for text in table["text"].to_pylist():
        ids = tokenizer(text, verbose=False)["input_ids"]
        if end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            if len(piece) > 1:
                yield piece, [*piece[1:], IGNORED]


def _chat_pieces(table: pa.Table, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Each chat by the model's template; targets are tokens of answers only."""
    size = tokenizer.model_max_length
    for chat in table["messages"].to_pylist():
        messages = json.loads(chat)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        answered = np.zeros(len(whole) + 1, dtype=bool)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
            if whole.startswith(after) and after.startswith(before):
                answered[len(before) : len(after)] = True
        ids, targets = encoded["input_ids"], []
        for token, (begin, end) in zip(ids[1:size], encoded["offset_mapping"][1:size], strict=True):
            targets.append(token if begin < end and answered[begin:end].all() else IGNORED)
        targets.append(IGNORED)
        if any(target != IGNORED for target in targets):
            yield ids[:size], targets


def _check_pipeline(pipe: Any, table: pa.Table) -> None:
    start = (
        json.loads(table["messages"][0].as_py())[:1]
        if "messages" in table.column_names
        else table["text"][0].as_py()[:40]
    )
    given = pipe(start, max_new_tokens=2, do_sample=False)
    if not given or not given[0]["generated_text"]:
        raise SystemExit("the pipeline doesn't go on with a text")

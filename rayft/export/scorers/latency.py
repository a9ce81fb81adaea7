"""Times an exported model, as a service that gets one request at a time would see it."""

import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

WARM_UP = 3
MOST_CALLS, FEWEST_CALLS = 50, 5
MOST_SECONDS = 5.0


def latency_ms(pipe: Any, table: pa.Table) -> float:
    """The median over rows of one call of the pipeline on one row, in milliseconds; for a causal-lm, of one new token.

    Tokenising, or reading the image, is in it: it is what the caller waits for. A GPU has finished by then, since the
    pipeline's results are plain values.

    Args:
        pipe: The model folder's pipeline.
        table: Raw rows; the first ones are taken, as many as a few seconds allow.
    """
    calls = [_call(pipe, table, row) for row in range(min(MOST_CALLS, table.num_rows))]
    for call in (calls * WARM_UP)[:WARM_UP]:
        call()
    seconds: list[float] = []
    while len(seconds) < MOST_CALLS and (len(seconds) < FEWEST_CALLS or sum(seconds) < MOST_SECONDS):
        call = calls[len(seconds) % len(calls)]
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) * 1e3


def _call(pipe: Any, table: pa.Table, row: int) -> Callable[[], Any]:
    cells = {name: table[name][row].as_py() for name in table.column_names}
    if pipe.task == "text-generation":
        text = _prompt(pipe, cells)
        return lambda: pipe(text, max_new_tokens=1, do_sample=False)
    if pipe.task == "token-classification":
        return lambda: pipe([cells["tokens"]], is_split_into_words=True, ignore_labels=[])
    if pipe.task == "image-classification":
        return lambda: pipe(Image.open(io.BytesIO(cells["image"])))
    pair = {name: cells[name] for name in ("text", "text_pair") if name in cells}
    return lambda: pipe(pair, truncation=True)


def _prompt(pipe: Any, cells: dict[str, Any]) -> str:
    """A text, or a chat's first message as the model's template has it, cut to what the model was trained on."""
    tokenizer = pipe.tokenizer
    if "messages" in cells:
        chat = json.loads(cells["messages"])[:1]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    else:
        text = cells["text"]
    # Two less, since tokens that are text again needn't become the same tokens.
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=tokenizer.model_max_length - 2)
    return str(tokenizer.decode(ids["input_ids"]))

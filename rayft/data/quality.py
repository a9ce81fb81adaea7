"""What about the data may mislead a search: rows that are in several splits or nearly so, and contradictory labels."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from rayft.data.load import SplitName

if TYPE_CHECKING:
    from rayft.data.splits import Rows

MAX_SHOWN = 3
"""How many rows a note quotes."""
SCORED_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
NEAR = 0.8
"""From which estimated Jaccard similarity of their words' pairs two texts count as near-duplicates."""
HASHES, BANDS = 64, 16
"""Of MinHash: with 4 hashes a band, texts with a similarity of 0.8 meet in one of 16 bands with probability 0.9998."""
NEAR_ROWS = 200_000
"""Of more rows near-duplicates aren't looked for, which takes some seconds per 100,000."""
IMBALANCE = 10
"""How many times as many rows the largest class must have as the smallest to be worth a note."""


def quality_notes(splits: Mapping[SplitName, "Rows"], label_names: Sequence[str]) -> list[str]:
    """Notes on duplicates within and across splits, contradictory labels, and classes of unlike size."""
    scored = {split: splits[split] for split in SCORED_SPLITS if split in splits}
    keys = {split: _keys(rows) for split, rows in scored.items()}
    return [
        *_repeat_notes(keys),
        *_near_duplicate_notes(scored, keys),
        *_conflict_notes(scored["train"], keys["train"], label_names),
        *_balance_notes(scored["train"], label_names),
        *_tag_notes(scored["train"], label_names),
    ]


def _repeat_notes(keys: Mapping[SplitName, list[bytes]]) -> list[str]:
    """Rows of validation and test that are also in a split before them, and rows of train that are there twice."""
    notes = []
    repeated = len(keys["train"]) - len(set(keys["train"]))
    if repeated:
        notes.append(f"train: {repeated} of {len(keys['train'])} rows are exact duplicates of others in it")
    seen: dict[SplitName, set[bytes]] = {}
    for split, own in keys.items():
        for earlier, known in seen.items():
            count = sum(key in known for key in own)
            if count:
                notes.append(f"{split}: {count} of {len(own)} rows are exact duplicates of rows in {earlier}")
        seen[split] = set(own)
    return notes


def _near_duplicate_notes(scored: Mapping[SplitName, "Rows"], keys: Mapping[SplitName, list[bytes]]) -> list[str]:
    """Texts of validation and test that differ from one in train by few words only (MinHash, Broder 1997)."""
    if any("text" not in rows.inputs for rows in scored.values()) or sum(map(len, keys.values())) > NEAR_ROWS:
        return []
    bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    train = [_signature(text) for text in _texts(scored["train"])]
    exact = set(keys["train"])
    for row, signature in enumerate(train):
        for band in _bands(signature):
            bands[band].append(row)
    notes = []
    for split in scored.keys() - {"train"}:
        near = 0
        for key, text in zip(keys[split], _texts(scored[split]), strict=True):
            if key in exact:
                continue
            signature = _signature(text)
            candidates = {row for band in _bands(signature) for row in bands.get(band, ())[:50]}
            near += any(float((signature == train[row]).mean()) >= NEAR for row in candidates)
        if near:
            rest = "so their score says less about new texts"
            notes.append(f"{split}: {near} of {len(keys[split])} texts are nearly the same as one in train, {rest}")
    return sorted(notes, reverse=True)


def _texts(rows: "Rows") -> list[str]:
    """Each row's text, or both of a pair."""
    return [" ".join(row) for row in zip(*rows.inputs.values(), strict=True)]


_SEEDS = np.random.default_rng(0).integers(1, 2**61 - 1, (2, HASHES), dtype=np.uint64)


def _signature(text: str) -> np.ndarray:
    """The MinHash of a text's pairs of neighbouring words, uint64 of shape [HASHES]."""
    words = re.findall(r"\w+", text.lower())
    pairs = {f"{one} {two}" for one, two in zip(words, [*words[1:], ""], strict=False)} or {text}
    hashes = np.array(
        [xxhash.xxh3_64_intdigest(pair.encode("utf-8", "surrogatepass")) for pair in pairs], dtype=np.uint64
    )
    with np.errstate(over="ignore"):
        minima: np.ndarray = (hashes[:, None] * (_SEEDS[0] | np.uint64(1)) + _SEEDS[1]).min(axis=0)
    return minima


def _bands(signature: np.ndarray) -> list[tuple[int, bytes]]:
    width = HASHES // BANDS
    return [(band, signature[band * width : (band + 1) * width].tobytes()) for band in range(BANDS)]


def _conflict_notes(train: "Rows", keys: Sequence[bytes], label_names: Sequence[str]) -> list[str]:
    """The same input with different labels."""
    if train.labels is None:
        return []
    found: dict[bytes, dict[str, int]] = defaultdict(dict)
    for row, key in enumerate(keys):
        found[key].setdefault(_label_text(train.labels[row], label_names), row)
    conflicts = [labels for labels in found.values() if len(labels) > 1]
    if not conflicts:
        return []
    quotes = [f"{_shown(train, next(iter(labels.values())))} as {' and '.join(labels)}" for labels in conflicts]
    rest = ", ..." if len(conflicts) > MAX_SHOWN else ""
    inputs = f"{len(conflicts)} input{'s' * (len(conflicts) > 1)}"
    return [f"train: {inputs} with contradictory labels: {'; '.join(quotes[:MAX_SHOWN])}{rest}"]


def _balance_notes(train: "Rows", label_names: Sequence[str]) -> list[str]:
    labels = train.labels
    if not isinstance(labels, np.ndarray) or not label_names:
        return []
    counts = np.array(class_counts(labels, label_names))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] < IMBALANCE * counts[least]:
        return []
    rows = f"{label_names[most]!r} has {int(counts[most])} rows and {label_names[least]!r} {int(counts[least])}"
    return [f"train: {rows}; data.class_weights: balanced gives both the same weight, and macro_f1 counts them alike"]


def _tag_notes(train: "Rows", label_names: Sequence[str]) -> list[str]:
    if "tokens" not in train.inputs or any(re.match(r"[BI]-", name) for name in label_names):
        return []
    rest = "so that f1, precision and recall say little; search.metric: accuracy counts words"
    return [f"train: no tag begins with B- or I-, as those of names do that go over several words, {rest}"]


def _keys(rows: "Rows") -> list[bytes]:
    """A digest of each row's inputs."""
    return [xxhash.xxh3_128_digest(_bytes(values)) for values in zip(*rows.inputs.values(), strict=True)]


def _bytes(values: tuple[Any, ...]) -> bytes:
    return b"\0".join(map(_content, values))


def _content(value: Any) -> bytes:
    if isinstance(value, Path):  # of an image
        return value.read_bytes()
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _label_text(label: Any, label_names: Sequence[str]) -> str:
    if isinstance(label, np.ndarray):  # 0 and 1 for each label
        return ", ".join(label_names[int(index)] for index in np.flatnonzero(label)) or "none"
    if isinstance(label, list):
        return " ".join(label_names[index] for index in label)
    return label_names[label] if label_names else f"{label:g}"


def _shown(rows: "Rows", row: int) -> str:
    value = next(iter(rows.inputs.values()))[row]
    text = "an image" if isinstance(value, bytes) else " ".join(value) if isinstance(value, list) else str(value)
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def class_counts(labels: Any, label_names: Sequence[str]) -> list[int]:
    """Rows of each class; of several labels each counts."""
    if isinstance(labels, list):
        counts = Counter(index for row in labels for index in row)
        return [counts[index] for index in range(len(label_names))]
    if labels.ndim == 2:
        return [int(count) for count in labels.sum(axis=0)]
    return [int(count) for count in np.bincount(labels, minlength=len(label_names))]

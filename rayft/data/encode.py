"""Rows as a model reads them, written to the files that `rayft.data.encoded` maps."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayft.config import DataConfig
from rayft.data.encoded import MANIFEST, RAW
from rayft.data.formats import first_places
from rayft.data.quality import class_counts
from rayft.data.splits import Rows, Splits
from rayft.errors import DataError, Fault

if TYPE_CHECKING:
    from rayft.tasks.base import Encoded, Task


def encode_splits(splits: Splits, task: "Task", preprocessor: Any, config: DataConfig, folder: Path) -> list[str]:
    """Encodes all splits into `folder`, replacing what is there.

    Args:
        splits: The rows.
        task: What they are for.
        preprocessor: The model's tokenizer or image processor.
        config: The data section, for how long a row may be and how classes are weighted.
        folder: Where the files go; made if it doesn't exist.

    Returns:
        What the user should know: how much was cut off.

    Raises:
        DataError: Rows have no token at all, so that no model can read them.
        ModelError: The preprocessor can't do what the task needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # from here until the end the folder counts as unfinished
    shutil.rmtree(folder / RAW, ignore_errors=True)
    (folder / RAW).mkdir()
    facts = task.facts(preprocessor, config, splits.train)
    if config.class_weights == "balanced":
        counts = np.array(class_counts(splits.train.labels, splits.label_names))
        # A column of 0 and 1 may have no row of train.
        facts["class_weights"] = (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()
    facts["stratified"] = config.sampling == "stratified"
    summaries, faults, notes = {}, [], []
    for split, rows in splits.present().items():
        summary = _write_split(task.encode(rows, preprocessor, config, facts), folder / f"{split}.arrow")
        summaries[split] = {"columns": summary.columns, "rows": summary.rows, "tokens": summary.tokens}
        summaries[split] |= {"truncated": summary.truncated, "classes": named_class_counts(rows, splits) or None}
        if not summary.rows:
            rule = f"none of its {len(rows)} rows has a token to be predicted within data.max_length"
            faults.append(Fault(split, f"{rule} {config.max_length}", f"data.{split}"))
        if summary.empty:
            texts = first_places([repr(next(iter(rows.inputs.values()))[row])[:40] for row in summary.empty])
            faults.append(Fault(split, f"{len(summary.empty)} of {len(rows)} texts have no tokens: {texts}"))
        if summary.truncated:
            part = f"{summary.truncated} of {len(rows)} rows ({summary.truncated / len(rows):.0%})"
            notes.append(f"{split}: {part} are cut to data.max_length {config.max_length}")
        if split in ("validation", "test"):
            _write_raw(task.raw(rows), folder / RAW / f"{split}.arrow")
    if faults:
        raise DataError(faults)
    manifest = {
        "task": splits.task,
        "label_names": splits.label_names,
        "max_length": config.max_length,
        "pad_token_id": getattr(preprocessor, "pad_token_id", None) or 0,
        "facts": facts,
        "splits": summaries,
        "notes": [*splits.notes, *notes],
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)
    return notes


@dataclass
class _Summary:
    """What encoding a split has shown; `empty` are the rows without a token."""

    columns: list[str] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    empty: list[int] = field(default_factory=list)


def named_class_counts(rows: Rows, splits: Splits) -> dict[str, int]:
    """Rows, or words, of each class; none where rows have no classes, or no labels."""
    names = splits.label_names
    return {} if rows.labels is None or not names else dict(zip(names, class_counts(rows.labels, names), strict=True))


def _write_split(encoded: "Iterator[Encoded]", path: Path) -> _Summary:
    summary = _Summary()
    temporary = path.with_name(f"{path.name}.tmp")
    writer: pa.ipc.RecordBatchFileWriter | None = None
    try:
        for part in encoded:
            batch = pa.RecordBatch.from_pydict(part.columns)
            if writer is None:
                writer = pa.ipc.new_file(str(temporary), batch.schema)
                summary.columns = batch.schema.names
            writer.write_batch(batch)
            summary.rows += batch.num_rows
            if "input_ids" in part.columns:
                summary.tokens += len(part.columns["input_ids"].values)
            summary.truncated += part.truncated
            summary.empty += part.empty
    finally:
        if writer is not None:
            writer.close()
    if writer is not None:
        temporary.replace(path)
    return summary


def _write_raw(columns: dict[str, pa.Array], path: Path) -> None:
    table = pa.table(columns)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)

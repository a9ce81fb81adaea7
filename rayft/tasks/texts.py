"""What the tasks that read texts have in common."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, DataConfig, Hyperparameters
from rayft.data.cells import text_of
from rayft.data.check import numeric_text_faults
from rayft.data.encoded import ROWS_PER_BATCH, EncodedData, EncodedSplit
from rayft.data.formats import Part
from rayft.data.splits import Rows
from rayft.errors import Fault
from rayft.tasks.base import Encoded, Preprocessor, Task, batches

if TYPE_CHECKING:
    from torch import Tensor


class TextTask(Task):
    """A text, or a pair of texts, and one label of some kind for the whole of it."""

    auto_class = "AutoModelForSequenceClassification"
    model_types = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    pipeline = "text-classification"

    def input_columns(self, columns: Columns) -> dict[str, str]:
        """See `Task.input_columns`."""
        if isinstance(columns.text, str):
            return {"text": columns.text}
        return {"text": columns.text[0], "text_pair": columns.text[1]}

    def label_columns(self, columns: Columns) -> tuple[str, ...]:
        """See `Task.label_columns`."""
        return (columns.label,) if isinstance(columns.label, str) else columns.label

    def part_faults(self, part: Part, inputs: Sequence[str]) -> list[Fault]:
        """See `Task.part_faults`."""
        return numeric_text_faults(part, inputs)

    def read_inputs(self, cells: Sequence[Any], part: Part) -> tuple[Any, ...]:
        """See `Task.read_inputs`."""
        return tuple(map(text_of, cells))

    @abstractmethod
    def label_array(self, labels: Any) -> pa.Array:
        """Some rows' labels as the encoded file has them."""

    def encode(
        self, rows: Rows, preprocessor: Preprocessor, config: DataConfig, facts: Mapping[str, Any]
    ) -> Iterator[Encoded]:
        """See `Task.encode`; of pairs the longer text is cut first."""
        for start, part in batches(rows, ROWS_PER_BATCH):
            encoded = preprocessor(
                part.inputs["text"],
                part.inputs.get("text_pair"),
                truncation=True,
                max_length=config.max_length,
                padding=False,
                return_attention_mask=False,
            )
            columns = token_columns(encoded)
            if part.labels is not None:
                columns["label"] = self.label_array(part.labels)
            empty = tuple(start + index for index, ids in enumerate(encoded["input_ids"]) if not ids)
            yield Encoded(columns, count_truncated(encoded, config.max_length), empty)

    def collate(
        self, split: EncodedSplit, rows: NDArray[np.int64], data: EncodedData, hp: Hyperparameters | None = None
    ) -> "dict[str, Tensor]":
        """See `Task.collate`."""
        import torch

        from rayft.data.batches import token_inputs

        batch = token_inputs(split, rows, data.pad_token_id)
        if split.labels is not None:
            batch["labels"] = torch.from_numpy(split.labels[rows])
        return batch


def token_columns(encoded: Any) -> dict[str, pa.Array]:
    """A tokenizer's output as the encoded file has it."""
    columns = {"input_ids": pa.array(encoded["input_ids"], pa.list_(pa.int32()))}
    if "token_type_ids" in encoded:
        columns["token_type_ids"] = pa.array(encoded["token_type_ids"], pa.list_(pa.int8()))
    return columns


def count_truncated(encoded: Any, max_length: int) -> int:
    """Rows that lost tokens; slow tokenizers don't say, so there it is the rows that fill `max_length`."""
    if encoded.is_fast:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return sum(len(ids) == max_length for ids in encoded["input_ids"])

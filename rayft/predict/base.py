"""The contract of a predictor: what it writes for each row, and how it comes by it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from rayft.data.cells import BadRow

Row = tuple[Any, ...]
"""A row's inputs, as its task read them."""
Answer = tuple[Any, ...]
"""A value for each of a predictor's columns."""


class Predictor(ABC):
    """Puts rows through a pipeline of transformers.

    Attributes:
        columns: What it writes for each row: Arrow types by name.
        rows_per_chunk: As many rows are in memory at once.
    """

    columns: dict[str, pa.DataType]
    rows_per_chunk: ClassVar[int] = 1024

    @abstractmethod
    def __init__(self, pipe: Any) -> None:
        """Takes the pipeline."""

    def size(self, row: Row) -> int:
        """What batches are sorted by, so that rows of a batch are of like length."""
        return 0

    @abstractmethod
    def answers(self, rows: Sequence[Row]) -> list[Answer | BadRow]:
        """An answer for each row of a batch, or why there is none."""


def rounded(value: float) -> float:
    """A float32 in as many digits as it has."""
    return float(f"{value:.7g}")

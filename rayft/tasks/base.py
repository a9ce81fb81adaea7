"""The contract of a task: what its rows are, what its model reads and gives, and how that is scored.

The driver reads the data before it needs torch, which takes a second to import, so tasks import it where they compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, DataConfig, Hyperparameters, TaskName
from rayft.data.formats import READERS, Part, Reader
from rayft.data.load import SplitName
from rayft.errors import Fault

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from rayft.data.check import Table
    from rayft.data.encoded import EncodedData, EncodedSplit
    from rayft.data.splits import Ids, Labels, Rows

Preprocessor = Any
"""A tokenizer or an image processor of transformers."""


@dataclass(frozen=True)
class Encoded:
    """Some rows as the model reads them.

    Attributes:
        columns: Arrow arrays by name.
        truncated: Of how many rows something was cut off.
        empty: Rows of which nothing is left to read, counted from the first of the split.
    """

    columns: dict[str, pa.Array]
    truncated: int = 0
    empty: tuple[int, ...] = ()


class Task(ABC):
    """A kind of prediction that models are fine-tuned for. It holds no state: all that it needs comes with each call.

    What a sweep file may say for it is in `config_tasks.TASK_RULES`; how a clean process scores its exported models,
    with nothing of rayft, in `export/scorers/`.

    Attributes:
        name: As the sweep file says it.
        pipeline: The pipeline of transformers that runs the exported model.
        auto_class: The class of transformers that loads the model.
        model_types: The name of transformers' table of the model types that it loads.
        preprocessor: What turns a row into what the model reads.
        readers: Of files, by suffix.
        has_new_head: Whether the head is drawn anew, so that the model's files need not have one.
        tokens_per_batch: Tokens, padding included, that are scored at once; an image counts as 1 per 16 x 16 pixels.
    """

    name: ClassVar[TaskName]
    pipeline: ClassVar[str]
    auto_class: ClassVar[str]
    model_types: ClassVar[str]
    preprocessor: ClassVar[Literal["tokenizer", "image processor"]] = "tokenizer"
    readers: ClassVar[Mapping[str, Reader]] = READERS
    has_new_head: ClassVar[bool] = True
    tokens_per_batch: ClassVar[int] = 8192

    # ---- rows

    @abstractmethod
    def input_columns(self, columns: Columns) -> dict[str, str]:
        """The column of the file for each input of the model, by the input's name."""

    @abstractmethod
    def label_columns(self, columns: Columns) -> tuple[str, ...]:
        """The columns that say what is to be predicted; none if the inputs do."""

    def refined(self, columns: Columns, train: Sequence[Part]) -> Task:
        """The task itself, or another that the data turns out to be for."""
        return self

    def read_folder(self, folder: Path, name: str, wanted: Sequence[str], split: SplitName) -> Part | None:
        """A folder's files as rows; None if it isn't a folder of this task's rows.

        Raises:
            DataError: It is one, and something is wrong with it.
        """
        return None

    def part_faults(self, part: Part, inputs: Sequence[str]) -> list[Fault]:
        """What makes a whole file unusable, beside missing columns."""
        return []

    @abstractmethod
    def read_inputs(self, cells: Sequence[Any], part: Part) -> tuple[Any, ...]:
        """A row's inputs from its cells, in the order of `input_columns`.

        Raises:
            BadRow: They can't be used.
        """

    @abstractmethod
    def read_label(self, cells: Sequence[Any], inputs: tuple[Any, ...], columns: Columns) -> Any:
        """A row's label from the cells of `label_columns`.

        Raises:
            BadRow: It can't be used.
        """

    # ---- labels

    @abstractmethod
    def label_names(self, labels: Sequence[Any], columns: Columns) -> tuple[str, ...]:
        """The classes in the order of their ids, from the labels of train; none if labels are no classes."""

    @abstractmethod
    def label_faults(self, tables: Mapping[SplitName, Table], columns: Columns) -> list[Fault]:
        """What is wrong with the labels of all splits together."""

    @abstractmethod
    def label_ids(self, labels: Sequence[Any], names: Sequence[str]) -> Labels | None:
        """The labels as numbers; None if the inputs say what is to be predicted."""

    def strata(self, rows: Rows, names: Sequence[str]) -> tuple[Ids, Sequence[str] | None]:
        """Each row's stratum, of which every split gets its share; and their names, if none may go without a row."""
        return np.zeros(len(rows), dtype=np.int64), None

    # ---- what the model reads

    @abstractmethod
    def encode(
        self, rows: Rows, preprocessor: Preprocessor, config: DataConfig, facts: Mapping[str, Any]
    ) -> Iterator[Encoded]:
        """Rows as the model reads them, in batches of `ROWS_PER_BATCH` rows each, but for the last.

        Args:
            rows: The rows of one split.
            preprocessor: The model's.
            config: The data section.
            facts: What `facts` gave.
        """

    def facts(self, preprocessor: Preprocessor, config: DataConfig, train: Rows) -> dict[str, Any]:
        """What collating needs to know beside the rows, as JSON takes it.

        Raises:
            ModelError: The preprocessor can't do what the task needs.
        """
        return {}

    def raw(self, rows: Rows) -> dict[str, pa.Array]:
        """The rows as they are before anything is done to them, for a clean process to score."""
        columns = {name: pa.array(values) for name, values in rows.inputs.items()}
        if rows.labels is not None:
            columns["label"] = pa.array(rows.labels.tolist() if isinstance(rows.labels, np.ndarray) else rows.labels)
        return columns

    @abstractmethod
    def collate(
        self, split: EncodedSplit, rows: NDArray[np.int64], data: EncodedData, hp: Hyperparameters | None = None
    ) -> dict[str, Tensor]:
        """The model's arguments for some rows, and `labels` if they have any.

        Args:
            split: Where the rows are.
            rows: Which rows; at least one.
            data: The sweep's.
            hp: What to change at random, if anything, drawing from `random`.
        """

    def row_tokens(self, data: EncodedData) -> int:
        """As how many tokens a row counts, where rows aren't made of tokens."""
        return 1

    def augments(self, hp: Hyperparameters) -> bool:
        """Whether the hyperparameters have training rows changed at random."""
        return False

    # ---- the model

    def configure(self, config: PretrainedConfig, label_names: Sequence[str], pad_token_id: int | None) -> None:
        """Sets what the model needs to know of labels and padding."""
        if label_names:
            config.id2label = dict(enumerate(label_names))
            config.label2id = {label: index for index, label in enumerate(label_names)}
        if pad_token_id is not None:
            config.pad_token_id = pad_token_id

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuses a model that gives wrong results for this task.

        Raises:
            ModelError: It does.
        """
        return

    def finish(self, model: PreTrainedModel, data: EncodedData) -> PreTrainedModel:
        """The trained model as it is exported."""
        return model

    # ---- loss and score

    def row_weights(self, split: EncodedSplit, data: EncodedData) -> NDArray[np.float64]:
        """How much each row counts in the mean loss, of shape [rows]."""
        return np.ones(len(split))

    @abstractmethod
    def loss_sum(self, logits: Tensor, labels: Tensor, hp: Hyperparameters, data: EncodedData) -> Tensor:
        """The loss of a batch, summed with each row's weight, as a scalar that can be differentiated."""

    @abstractmethod
    def output_size(self, data: EncodedData) -> int:
        """How many numbers scoring keeps of a row."""

    def outputs(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """What scoring keeps of a batch's logits, float32 of shape [rows, output size], or less for shorter rows."""
        return logits

    @abstractmethod
    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """Every metric of the task's rules over a whole split.

        Args:
            outputs: What scoring kept, [rows, output size].
            split: A labelled split.
            data: The sweep's.
        """

    def confusion(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> NDArray[np.int64] | None:
        """Counts of rows by true class (first axis) and predicted one; None if there are no classes."""
        return None


def batches(rows: Rows, size: int) -> Iterator[tuple[int, Rows]]:
    """(number of the first row, the rows) of consecutive batches."""
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        labels = None if rows.labels is None else rows.labels[part]
        yield start, replace(rows, inputs={name: cells[part] for name, cells in rows.inputs.items()}, labels=labels)

"""One class for each text, or pair of texts."""

from collections.abc import Sequence

from rayft.config import Columns
from rayft.data.formats import Part
from rayft.tasks.base import Task
from rayft.tasks.classes import ClassTask
from rayft.tasks.multi_label import MultiLabelClassification
from rayft.tasks.texts import TextTask


class TextClassification(ClassTask, TextTask):
    """One class for each text, or pair of texts."""

    name = "text-classification"

    def refined(self, columns: Columns, train: Sequence[Part]) -> Task:
        """See `Task.refined`: where labels are lists, or in several columns, a text may have several."""
        if not isinstance(columns.label, str):
            return MultiLabelClassification()
        cells = (cell for part in train for cell in part.cells.get(columns.label, ()))
        return MultiLabelClassification() if any(isinstance(cell, list) for cell in cells) else self

"""The tasks: one file each, one contract."""

from rayft.config import TaskName
from rayft.tasks.base import Task
from rayft.tasks.causal_lm import CausalLM
from rayft.tasks.image_classification import ImageClassification
from rayft.tasks.multi_label import MultiLabelClassification
from rayft.tasks.regression import Regression
from rayft.tasks.text_classification import TextClassification
from rayft.tasks.token_classification import TokenClassification

__all__ = ["TASKS", "Task", "get_task"]

TASKS: dict[TaskName, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        MultiLabelClassification,
        Regression,
        TokenClassification,
        CausalLM,
        ImageClassification,
    )
}


def get_task(name: TaskName) -> Task:
    """The task of this name."""
    return TASKS[name]()

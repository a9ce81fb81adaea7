from typing import Any

import pytest
from huggingface_hub import ModelCard

from rayft.config import SweepConfig
from rayft.config_tasks import TASK_RULES
from rayft.export.model_card import model_card

METRICS = TASK_RULES["text-classification"].metrics

CONFIG: dict[str, Any] = {
    "model": "google/electra-small-discriminator",
    "data": {"train": ["a.csv", "b.csv"], "validation": 0.2, "test": "test.csv", "columns": {"text": "review"}},
    "search_space": {"strategy": ["full", "lora"], "lora_rank": [4, 8]},
    "search": {"metric": "macro_f1", "seed": 7, "study": "postgresql://secret-host/db"},
}


@pytest.fixture
def config() -> SweepConfig:
    return SweepConfig.model_validate(CONFIG)


@pytest.fixture
def best(config: SweepConfig) -> dict[str, Any]:
    return {
        "model": config.model,
        "task": config.task,
        "trial": 12,
        "epoch": 3,
        "params": {"strategy": "lora", "lora_rank": 8},
        "hyperparameters": config.training.model_dump(exclude={"epochs"}) | {"strategy": "lora", "lora_rank": 8},
        "metric": "macro_f1",
        "validation": dict.fromkeys(METRICS, 0.91),
        "test": dict.fromkeys(METRICS, 0.87),
        "verification": {"validation": dict.fromkeys(METRICS, 0.91), "tolerance": 1e-3, "device": "cpu"},
        "labels": ["bad", "good: very"],
        "classes": {
            "validation": {},
            "test": {
                "bad": {"rows": 60, "precision": 0.9, "recall": 0.8, "f1": 0.85, "predicted": [48, 12]},
                "good: very": {"rows": 40, "precision": 0.7, "recall": 0.87, "f1": 0.78, "predicted": [5, 35]},
            },
        },
        "rows": {"train": 800, "validation": 200, "test": 100},
        "max_length": 128,
        "final": None,
        "front": None,
        "latency_ms": None,
        "objectives": {"macro_f1": 0.91},
        "interval": {"split": "test", "95%": [0.85, 0.89]},
        "versions": {"rayft": "0.1.0", "torch": "2.13.0"},
    }


def test_front_matter_is_what_the_hub_reads(config: SweepConfig, best: dict[str, Any]) -> None:
    data = ModelCard(model_card(config, best)).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.base_model == "google/electra-small-discriminator"
    results = {result.metric_name: result for result in data.eval_results}
    assert set(results) == set(METRICS)
    assert results["macro_f1"].metric_type == "f1"
    assert results["macro_f1"].metric_value == 0.87  # of test, which has chosen nothing
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_without_a_test_split_the_results_are_of_validation_and_say_so(
    config: SweepConfig, best: dict[str, Any]
) -> None:
    card = model_card(config, {**best, "test": None})
    assert {result.dataset_split for result in ModelCard(card).data.eval_results} == {"validation"}
    assert "| metric | validation |\n" in card


def test_says_how_it_scores_what_it_was_made_from_and_how(config: SweepConfig, best: dict[str, Any]) -> None:
    card = model_card(config, best)
    assert "| macro_f1 | 0.9100 | 0.8700 |" in card
    assert "| train | 800 | `a.csv, b.csv` |" in card
    assert "| validation | 200 | 0.2 of train |" in card
    assert "| test | 100 | `test.csv` |" in card
    assert "| strategy | lora | searched |\n| learning_rate | 5e-05 | fixed |\n" in card  # in the order of the config
    assert "| lora_rank | 8 | searched |" in card
    assert "| weight_decay | 0.01 | fixed |" in card
    assert "| dropout | null | fixed |" in card
    assert "trial 12" in card
    assert "`bad`, `good: very`" in card
    assert "seed 7" in card
    assert "torch 2.13.0" in card
    assert 'classify("some text", truncation=True)' in card


def test_leaves_out_what_the_strategy_does_not_read_and_what_nobody_should_see(
    config: SweepConfig, best: dict[str, Any]
) -> None:
    card = model_card(config, best)
    assert "layer_decay" not in card
    assert "discriminator_learning_rate" not in card
    assert "secret" not in card


def test_pairs_are_shown_as_pairs(best: dict[str, Any]) -> None:
    data = {**CONFIG["data"], "columns": {"text": ["premise", "hypothesis"]}}
    config = SweepConfig.model_validate({**CONFIG, "data": data})
    assert 'classify({"text": "a first text", "text_pair": "a second text"}' in model_card(config, best)


def test_a_hub_dataset_is_linked(best: dict[str, Any]) -> None:
    config = SweepConfig.model_validate({**CONFIG, "data": {"train": "hub:stanfordnlp/imdb:plain_text"}})
    data = ModelCard(model_card(config, {**best, "test": None, "rows": {"train": 800, "validation": 200}})).data
    assert data.datasets == "stanfordnlp/imdb"


def test_a_local_base_model_is_no_hub_id(best: dict[str, Any], tmp_path: Any) -> None:
    config = SweepConfig.model_validate({**CONFIG, "model": str(tmp_path)})
    assert ModelCard(model_card(config, {**best, "model": str(tmp_path)})).data.base_model is None


def test_of_several_objectives_it_has_the_front(config: SweepConfig, best: dict[str, Any]) -> None:
    front = [{"trial": n, "params": {}, "objectives": {"macro_f1": f1, "latency_ms": ms}} for n, f1, ms in FRONT]
    card = model_card(config, {**best, "front": front, "latency_ms": 3.25, "objectives": front[0]["objectives"]})
    assert "The search was for macro_f1 and latency_ms." in card
    assert (
        "| trial | macro_f1 | latency_ms |\n| --- | --- | --- |\n| 12 | 0.9100 | 3.2000 |\n| 4 | 0.8700 | 1.1000 |\n"
        in card
    )
    assert "This model takes 3.25 ms for one row." in card
    assert "The search was for" not in model_card(config, best)


FRONT = [(12, 0.91, 3.2), (4, 0.87, 1.1)]

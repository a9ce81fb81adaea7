import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel

from rayft.config import STRATEGIES, StrategyName
from rayft.data.encoded import EncodedData
from rayft.errors import CheckpointError
from rayft.training.acceleration import Acceleration
from rayft.training.checkpoint import read_checkpoint
from rayft.training.failures import DivergedError
from rayft.training.loop import FineTuning, seed_generators
from rayft.training.results import EpochResult
from tests.conftest import FAMILIES, tiny_layers, tiny_model
from tests.training.conftest import ALONE, LABEL_NAMES, fine_tuning, hyperparameters


def numbers(result: EpochResult) -> tuple[object, ...]:
    """All of a result that doesn't depend on the clock."""
    return result.epoch, result.metrics, result.train_loss, result.curve, result.padding


def train(trial: FineTuning, epochs: int) -> list[tuple[object, ...]]:
    return [numbers(trial.train_epoch()) for _ in range(epochs)]


def weights(trial: FineTuning) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trial.trained_model().state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def train_in_fresh_process(folder: Path, strategy: StrategyName) -> list[tuple[object, ...]]:
    return train(fine_tuning(EncodedData.open(folder), hyperparameters(strategy)), 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_learns(data: EncodedData, strategy: StrategyName) -> None:
    trial = fine_tuning(data, hyperparameters(strategy, learning_rate=1e-2, dropout=0.0), epochs=10)
    before = trial.evaluate(data.validation)
    train(trial, 10)

    assert trial.history[-1].train_loss < 0.7 * trial.history[0].train_loss
    assert trial.history[-1].metrics["loss"] < before["loss"]
    assert trial.history[-1].metrics["accuracy"] > 0.6  # of three labels


def test_the_base_model_is_left_as_it_is(data: EncodedData) -> None:
    base = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    hp = hyperparameters("lora")
    train(FineTuning(base, tiny_layers("bert"), data, hp, epochs=1, seed=0, workers=ALONE), 1)

    assert_same(base.state_dict(), before)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_results_say_what_happened(data: EncodedData) -> None:
    trial = fine_tuning(data, hyperparameters(learning_rate=0.5, warmup_ratio=0.0), epochs=2)
    first, second = trial.train_epoch(), trial.train_epoch()

    assert trial.history == [first, second] and trial.epoch == second.epoch == 2
    assert [point.step for point in (*first.curve, *second.curve)] == list(range(1, 13))  # 41 rows in batches of 8
    assert [point.learning_rate for point in second.curve] == pytest.approx(
        [0.5 * left / 12 for left in range(6, 0, -1)]
    )
    assert first.train_loss == pytest.approx(np.mean([point.loss for point in first.curve]))
    assert 0 < first.padding < 0.5
    assert first.seconds > 41 / first.samples_per_second > 0


def test_validation_sees_every_row_once(data: EncodedData) -> None:
    trial = fine_tuning(data, hyperparameters())
    model = trial.trained_model().eval()
    split = data.validation
    with torch.no_grad():
        logits = [
            model(input_ids=torch.tensor([split.ragged("input_ids", row).tolist()])).logits[0]
            for row in range(len(split))
        ]
    loss = torch.nn.functional.cross_entropy(torch.stack(logits), torch.tensor(split.labels))

    assert trial.evaluate(split)["loss"] == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_trial_in_a_process_equals_the_first(data: EncodedData, strategy: StrategyName) -> None:
    first = fine_tuning(data, hyperparameters(strategy))
    expected = train(first, 2)
    train(fine_tuning(data, hyperparameters("full", learning_rate=0.1), seed=5), 1)
    second = fine_tuning(data, hyperparameters(strategy))

    assert train(second, 2) == expected
    assert_same(weights(second), weights(first))


def test_a_trial_in_a_warm_process_equals_one_in_a_fresh_process(encoded_folder: Callable[[bool], Path]) -> None:
    folder = encoded_folder(True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        expected = pool.apply(train_in_fresh_process, (folder, "adversarial"))
    train_in_fresh_process(folder, "lora")

    assert train_in_fresh_process(folder, "adversarial") == expected


def test_another_seed_gives_another_trial(data: EncodedData) -> None:
    assert train(fine_tuning(data, hyperparameters(), seed=1), 1) != train(fine_tuning(data, hyperparameters()), 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resuming_equals_no_interruption(
    data_with_unlabeled: EncodedData, strategy: StrategyName, tmp_path: Path
) -> None:
    hp = hyperparameters(strategy, l2_sp=0.01, label_smoothing=0.1)
    whole = fine_tuning(data_with_unlabeled, hp)
    train(whole, 1)
    whole.pack().write(tmp_path / "checkpoint-1")
    train(whole, 2)
    seed_generators(seed=7, epoch=7, rank=7)  # a process that resumes may have them in any state
    resumed = fine_tuning(data_with_unlabeled, hp)
    resumed.resume(tmp_path / "checkpoint-1")
    train(resumed, 2)

    assert [numbers(result) for result in resumed.history] == [numbers(result) for result in whole.history]
    assert_same(weights(resumed), weights(whole))
    whole.pack().write(tmp_path / "whole")
    resumed.pack().write(tmp_path / "resumed")
    assert_same(read_checkpoint(tmp_path / "resumed").optimizer, read_checkpoint(tmp_path / "whole").optimizer)


def test_resuming_goes_back_as_well(data: EncodedData, tmp_path: Path) -> None:
    trial = fine_tuning(data, hyperparameters())
    train(trial, 1)
    trial.pack().write(tmp_path / "checkpoint-1")
    expected = train(trial, 1)
    trial.resume(tmp_path / "checkpoint-1")

    assert trial.epoch == 1
    assert train(trial, 1) == expected


def test_a_checkpoint_holds_what_trains_and_no_more(data: EncodedData, tmp_path: Path) -> None:
    trial = fine_tuning(data, hyperparameters("partial", freeze_depth=3))
    train(trial, 1)
    trial.pack().write(tmp_path / "checkpoint-1")

    held = set(read_checkpoint(tmp_path / "checkpoint-1").model)
    assert held == {*tiny_layers("bert").after_blocks, *tiny_layers("bert").head}


def test_a_checkpoint_of_another_strategy(data: EncodedData, tmp_path: Path) -> None:
    trial = fine_tuning(data, hyperparameters("lora"))
    train(trial, 1)
    trial.pack().write(tmp_path / "checkpoint-1")

    with pytest.raises(CheckpointError, match=r"is of another trial: .* strategy full differ in"):
        fine_tuning(data, hyperparameters("full")).resume(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("strategy", ["full", "adversarial"])
def test_a_loss_that_is_no_number_ends_the_trial(data: EncodedData, strategy: StrategyName) -> None:
    trial = fine_tuning(data, hyperparameters(strategy, learning_rate=1e30, max_grad_norm=None))

    with pytest.raises(DivergedError, match=r"is (nan|inf) at epoch 1, step \d"):
        train(trial, 1)


def test_l2_sp_holds_the_model_near_its_start(data: EncodedData) -> None:
    start = tiny_model("bert", len(LABEL_NAMES)).state_dict()

    def distances(l2_sp: float) -> tuple[float, float]:
        trial = fine_tuning(data, hyperparameters(l2_sp=l2_sp, max_grad_norm=None, weight_decay=0.0))
        train(trial, 3)
        moved = {name: float((w - start[name]).norm()) for name, w in weights(trial).items()}
        head = sum(moved.pop(name) for name in tiny_layers("bert").head)
        return sum(moved.values()), head

    (free, free_head), (held, held_head) = distances(0.0), distances(10.0)
    assert held < 0.7 * free
    assert held_head > 0.7 * free_head  # the head has no pretrained weights to be held to


def test_gradients_are_clipped(data: EncodedData) -> None:
    def moved(max_grad_norm: float | None) -> bool:
        # Adam undoes a constant factor, unless it makes the gradient vanish beside its epsilon.
        trial = fine_tuning(data, hyperparameters(max_grad_norm=max_grad_norm, weight_decay=0.0))
        before = weights(trial)
        train(trial, 1)
        after = weights(trial)
        return max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-4

    assert moved(None)
    assert not moved(1e-14)


def test_label_smoothing_raises_the_loss_of_sure_predictions(data: EncodedData) -> None:
    def final_loss(label_smoothing: float) -> float:
        hp = hyperparameters(learning_rate=3e-3, dropout=0.0, label_smoothing=label_smoothing)
        trial = fine_tuning(data, hp, epochs=6)
        train(trial, 6)
        return trial.history[-1].train_loss

    assert final_loss(0.3) > final_loss(0.0) + 0.1


def test_a_trained_model_is_plain_transformers(data: EncodedData) -> None:
    trial = fine_tuning(data, hyperparameters("lora"))
    train(trial, 1)
    exported: PreTrainedModel = trial.trained_model()

    assert exported.state_dict().keys() == tiny_model("bert").state_dict().keys()
    train(trial, 1)  # exporting a model doesn't end its training


@pytest.mark.parametrize("strategy", ["full", "layerwise", "adversarial"])
def test_rows_of_the_vocabulary_that_no_batch_holds_are_left_out_and_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_with_unlabeled: EncodedData, strategy: StrategyName
) -> None:
    torch.manual_seed(0)
    config = FAMILIES["bert"]()
    config.vocab_size, config.num_labels = 200, len(LABEL_NAMES)
    base = BertForSequenceClassification(config).eval()
    hp = hyperparameters(strategy, weight_decay=0.3, freeze_depth=0)
    parts = {"epochs": 2, "seed": 0, "workers": ALONE}
    compact = FineTuning(base, tiny_layers("bert"), data_with_unlabeled, hp, **parts)
    resumed = FineTuning(base, tiny_layers("bert"), data_with_unlabeled, hp, **parts)
    monkeypatch.setattr("rayft.models.compact_embedding.WORTHWHILE", 0.0)
    whole = FineTuning(base, tiny_layers("bert"), data_with_unlabeled, hp, **parts)
    name = "bert.embeddings.word_embeddings.weight"
    sizes = [len(dict(trial.trained_model().named_parameters())[name]) for trial in (compact, whole)]
    assert sizes[0] < 40 and sizes[1] == 200

    for trial in (compact, whole):
        train(trial, 1)
        trial.pack().write(tmp_path / f"{len(list(tmp_path.iterdir()))}")
    first, second = (read_checkpoint(tmp_path / number).model for number in ("0", "1"))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)  # names and shapes as well
    resumed.resume(tmp_path / "0")
    with pytest.raises(CheckpointError, match=r"word_embeddings.* must be of shape \[200, 32\], but is of shape"):
        whole.resume(tmp_path / "0")  # as after a change of what is left out
    whole.resume(tmp_path / "1")
    for trial in (compact, whole, resumed):
        train(trial, 1)
    assert compact.history[1].metrics == pytest.approx(whole.history[1].metrics, rel=1e-3)
    assert resumed.history[1].metrics == pytest.approx(whole.history[1].metrics, rel=1e-3)


def test_a_trial_that_goes_on_in_another_precision_says_so(
    data: EncodedData, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("rayft"), "propagate", True)
    low = fine_tuning(data, hyperparameters(), acceleration=Acceleration(torch.bfloat16))
    low.train_epoch()
    low.pack().write(tmp_path / "checkpoint-1")
    fine_tuning(data, hyperparameters(), acceleration=Acceleration(torch.bfloat16)).resume(tmp_path / "checkpoint-1")
    assert "was trained in" not in caplog.text
    fine_tuning(data, hyperparameters()).resume(tmp_path / "checkpoint-1")
    assert "was trained in bf16 up to epoch 1, and goes on in fp32" in caplog.text

"""Micro-batches, and running out of memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rayft.config import StrategyName
from rayft.data.encoded import EncodedData
from rayft.strategies import get_strategy
from rayft.strategies.adversarial import FeatureTap
from rayft.training.evaluation import predict
from rayft.training.failures import MemoryExhaustedError, is_out_of_memory
from rayft.training.gradients import BatchGradients, GlobalBatch
from rayft.training.loop import FineTuning
from tests.conftest import tiny_layers, tiny_model
from tests.texts import TEXTS
from tests.training.conftest import ALONE, LABEL_NAMES, gradients_of, hyperparameters, plain_forward

TRAIN_ROWS = np.arange(11)
UNLABELED_ROWS = np.arange(3, 10)
CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


class RowLimit:
    """Makes a model run out of memory above so many rows per pass, and counts how often it did."""

    def __init__(self, model: nn.Module, rows: int, error: RuntimeError) -> None:
        self.rows, self.error, self.hits = rows, error, 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > self.rows:
            self.hits += 1
            raise self.error

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowLimit":
        return self  # a trial works on a copy of the model, but memory is the process's


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
@pytest.mark.parametrize(("strategy", "unlabeled"), [("full", 0), ("adversarial", 0), ("adversarial", 7)])
def test_micro_batches_change_nothing(
    data_with_unlabeled: EncodedData, strategy: StrategyName, unlabeled: int, micro_batch: int
) -> None:
    batch = GlobalBatch(TRAIN_ROWS, UNLABELED_ROWS[:unlabeled])
    loss, gradients = gradients_of(data_with_unlabeled, strategy, batch, micro_batch=16)
    split_loss, split_gradients = gradients_of(data_with_unlabeled, strategy, batch, micro_batch)

    assert split_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(split_gradients, gradients, rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_mean_over_the_rows(data: EncodedData) -> None:
    hp = hyperparameters()
    model = tiny_model("bert", len(LABEL_NAMES)).eval()
    result = BatchGradients(plain_forward(model, data), data, hp, ALONE, None, micro_batch=3).compute(
        GlobalBatch(TRAIN_ROWS, UNLABELED_ROWS[:0])
    )

    rows = [torch.tensor([data.train.ragged("input_ids", row).tolist()]) for row in TRAIN_ROWS]
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row).logits for row in rows])
    expected = nn.functional.cross_entropy(logits, torch.tensor(data.train.labels[TRAIN_ROWS]))
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-5)
    assert result.tokens == sum(row.numel() for row in rows) < result.padded_tokens


def test_the_adversary_and_unlabeled_rows_change_the_gradient(data_with_unlabeled: EncodedData) -> None:
    found = [
        gradients_of(data_with_unlabeled, strategy, GlobalBatch(TRAIN_ROWS, UNLABELED_ROWS[:unlabeled]), micro_batch=8)
        for strategy, unlabeled in (("full", 0), ("adversarial", 0), ("adversarial", 7))
    ]

    assert len({loss for loss, _ in found}) == 1  # the loss that is shown is the labelled rows' alone
    heads = [gradients["classifier.weight"] for _, gradients in found]
    assert not torch.allclose(heads[0], heads[1]) and not torch.allclose(heads[1], heads[2])


def test_the_model_fools_the_adversary_with_all_that_it_predicts(data_with_unlabeled: EncodedData) -> None:
    data, hp = data_with_unlabeled, hyperparameters("adversarial", label_smoothing=0.1)
    model = tiny_model("bert", len(LABEL_NAMES)).eval()
    adversary = get_strategy("adversarial").adversary(model, len(LABEL_NAMES), hp, ALONE.device, seed=0)
    assert adversary is not None
    features, logits = [], []
    with FeatureTap(model) as tap:
        for split, rows in ((data.train, TRAIN_ROWS), (data.unlabeled, UNLABELED_ROWS)):
            inputs = TEXTS.collate(split, rows, data)
            inputs.pop("labels", None)
            logits.append(model(**inputs).logits)
            features.append(tap.features)
    loss = nn.functional.cross_entropy(logits[0], torch.tensor(data.train.labels[TRAIN_ROWS]), label_smoothing=0.1)
    fooling = adversary.fooling_loss(torch.cat(features), torch.cat(logits))
    (expected,) = torch.autograd.grad(loss + hp.adversarial_weight * fooling, model.classifier.weight)

    _, found = gradients_of(data, "adversarial", GlobalBatch(TRAIN_ROWS, UNLABELED_ROWS), micro_batch=4)
    torch.testing.assert_close(found["classifier.weight"], expected, rtol=1e-4, atol=1e-6)


def trial_with_limit(
    data: EncodedData, rows: int, error: RuntimeError, strategy: StrategyName = "full"
) -> tuple[FineTuning, RowLimit]:
    base = tiny_model("bert", len(LABEL_NAMES))
    limit = RowLimit(base, rows, error)
    hp = hyperparameters(strategy, dropout=0.0)
    layers = tiny_layers("bert")
    return FineTuning(base, layers, data, hp, epochs=2, seed=0, workers=ALONE), limit


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)])
@pytest.mark.parametrize("strategy", ["full", "adversarial"])
def test_a_step_that_runs_out_of_memory_is_taken_in_smaller_parts(
    data: EncodedData, error: RuntimeError, strategy: StrategyName
) -> None:
    limited, limit = trial_with_limit(data, rows=3, error=error, strategy=strategy)
    free, _ = trial_with_limit(data, rows=10**6, error=error, strategy=strategy)
    result, expected = limited.train_epoch(), free.train_epoch()

    assert limit.hits > 2  # training and validation
    assert (limited.micro_batch, free.micro_batch) == (2, 8)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
    assert result.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-3)


def test_a_smaller_micro_batch_is_kept_by_a_checkpoint(data: EncodedData, tmp_path: Any) -> None:
    limited, _ = trial_with_limit(data, rows=3, error=torch.OutOfMemoryError("CUDA out of memory."))
    limited.train_epoch()
    limited.pack().write(tmp_path / "checkpoint-1")
    resumed, limit = trial_with_limit(data, rows=3, error=torch.OutOfMemoryError("CUDA out of memory."))
    resumed.resume(tmp_path / "checkpoint-1")

    assert resumed.micro_batch == limited.micro_batch == 2
    assert limit.hits == 0


def test_a_row_that_does_not_fit_ends_the_trial(data: EncodedData) -> None:
    trial, _ = trial_with_limit(data, rows=0, error=torch.OutOfMemoryError("CUDA out of memory.\nMuch else."))

    with pytest.raises(
        MemoryExhaustedError, match=r"^out of memory with 1 row per pass and worker: CUDA out of memory\.$"
    ):
        trial.train_epoch()


def test_a_validation_row_that_does_not_fit_ends_the_trial(data: EncodedData) -> None:
    trial, _ = trial_with_limit(data, rows=0, error=torch.OutOfMemoryError("CUDA out of memory."))

    with pytest.raises(MemoryExhaustedError, match="out of memory with one row of validation: CUDA out of memory"):
        trial.evaluate(data.validation)


def test_validation_batches_that_do_not_fit_are_halved(data: EncodedData) -> None:
    model = tiny_model("bert", len(LABEL_NAMES))
    expected = predict(plain_forward(model, data), data.validation, data, ALONE)

    limit = RowLimit(model, 3, torch.OutOfMemoryError("CUDA out of memory."))
    found = predict(plain_forward(model, data), data.validation, data, ALONE)
    assert limit.hits > 0
    assert found == pytest.approx(expected, abs=1e-5)


def test_other_errors_are_not_taken_for_a_lack_of_memory(data: EncodedData) -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    trial, limit = trial_with_limit(data, rows=3, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trial.train_epoch()
    assert limit.hits == 1


def test_the_real_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)

    assert is_out_of_memory(caught.value)

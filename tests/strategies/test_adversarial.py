import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch.nn.functional import softplus

from rayft.config import Hyperparameters
from rayft.strategies.adversarial import AdversarialStrategy, Adversary, FeatureTap
from tests.conftest import FAMILIES, IMAGE_FAMILIES, IMAGE_SIZE, tiny_model
from tests.strategies.setups import batch, prepare

CPU = torch.device("cpu")


def adversary(seed: int = 0, learning_rate: float = 1e-2) -> Adversary:
    return Adversary(feature_size=8, num_labels=3, learning_rate=learning_rate, device=CPU, seed=seed)


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features that tell the label, uninformed logits, labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    features = torch.randn(count, 8, generator=generator) + 3 * torch.eye(3, 8)[labels]
    return features, torch.randn(count, 3, generator=generator), labels


def weights(of: Adversary) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.state_dict().items()}


def test_the_discriminator_learns_to_tell_and_is_not_fooled() -> None:
    tells = adversary()
    features, logits, labels = rows(64)
    losses = [tells.update(features, logits, labels) for _ in range(100)]
    assert losses[0] == pytest.approx(2 * 0.693, abs=0.3), "both sides start near log 2"
    assert losses[-1] < 0.5 * losses[0]

    unseen, wrong, true_labels = rows(64, seed=1)
    right = 5.0 * torch.eye(3)[true_labels]
    assert tells.fooling_loss(unseen, wrong) > 3 * tells.fooling_loss(unseen, right)


def test_fooling_teaches_the_labels_of_rows_whose_labels_it_never_saw() -> None:
    """The point of the strategy: predictions that look true are right."""
    tells = adversary()
    features, logits, labels = rows(64)
    for _ in range(100):
        tells.update(features, logits, labels)
    unseen, _, true_labels = rows(64, seed=1)
    predicted = torch.zeros(64, 3, requires_grad=True)
    optimizer = torch.optim.Adam([predicted], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        tells.fooling_loss(unseen, predicted).backward()
        optimizer.step()
    assert (predicted.argmax(dim=1) == true_labels).float().mean() > 0.9


def test_fooling_reaches_the_logits_alone() -> None:
    tells = adversary()
    features, logits, _ = (value.requires_grad_(value.is_floating_point()) for value in rows(4))
    before = weights(tells)
    tells.fooling_loss(features, logits).backward()
    assert logits.grad is not None and bool((logits.grad != 0).any())
    assert features.grad is None
    assert all(parameter.grad is None for parameter in tells.discriminator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tells.state_dict().items())


def test_an_update_reaches_the_discriminator_alone() -> None:
    tells = adversary()
    features, logits, labels = rows(4)
    features.requires_grad_()
    logits.requires_grad_()
    before = weights(tells)
    tells.update(features, logits, labels, features, logits)
    assert features.grad is None and logits.grad is None
    after = tells.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_unlabeled_rows_join_the_predicted_side() -> None:
    (features, logits, labels), (more_features, more_logits, _) = rows(8), rows(4, seed=1)
    tells = adversary()
    judged_true = tells.discriminator(features, 0.85 * torch.eye(3)[labels] + 0.05)
    predicted = torch.cat([logits, more_logits]).softmax(dim=-1)
    judged_predicted = tells.discriminator(torch.cat([features, more_features]), predicted)
    expected = softplus(-judged_true).mean() + softplus(judged_predicted).mean()
    assert tells.update(features, logits, labels, more_features, more_logits) == pytest.approx(expected.item())


def test_true_labels_are_smoothed_distributions() -> None:
    smoothed = adversary()._smoothed(torch.tensor([2, 0]))
    torch.testing.assert_close(smoothed, torch.tensor([[0.05, 0.05, 0.9], [0.9, 0.05, 0.05]]))


def test_the_seed_alone_draws_the_discriminator() -> None:
    torch.manual_seed(1)
    first = weights(adversary(seed=3))
    drawn = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(2)), "the global generator was left as it was"
    assert all(torch.equal(value, first[name]) for name, value in adversary(seed=3).state_dict().items())
    assert not torch.equal(adversary(seed=4).discriminator.hidden.weight, first["discriminator.hidden.weight"])


@pytest.mark.parametrize("steps", [0, 3])
def test_a_saved_adversary_goes_on_as_if_never_saved(tmp_path: Path, steps: int) -> None:
    original, restored = adversary(), adversary(seed=9)
    for step in range(steps):
        original.update(*rows(8, seed=step))
    save_file(original.state_dict(), tmp_path / "adversary.safetensors")
    restored.load_state_dict(load_file(tmp_path / "adversary.safetensors"))
    for step in range(3):
        assert original.update(*rows(8, seed=10 + step)) == restored.update(*rows(8, seed=10 + step))
    expected = original.state_dict()
    assert restored.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in restored.state_dict().items())


def test_a_loaded_adversary_shares_no_memory_with_its_source() -> None:
    source, loaded = adversary(), adversary()
    source.update(*rows(8))
    loaded.load_state_dict(source.state_dict())
    before = weights(source)
    loaded.update(*rows(8, seed=1))
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_mean_over_a_row_s_own_tokens(family: str) -> None:
    model = tiny_model(family).eval()
    inputs = batch()
    with FeatureTap(model) as tap, torch.no_grad():
        model(**inputs)
        features = tap.features
        hidden = model.base_model(**inputs)[0]
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        torch.testing.assert_close(features[row], hidden[row, :length].mean(dim=0))


def test_a_closed_tap_listens_no_more() -> None:
    model = tiny_model("bert")
    with FeatureTap(model) as tap:
        model(**batch())
    features = tap.features
    model(input_ids=torch.tensor([[5, 6]]))
    assert tap.features is features


def test_the_whole_model_can_train_on_it() -> None:
    setup = prepare("adversarial", "bert", freeze_depth=0)
    tells = setup.strategy.adversary(setup.module, 3, setup.hp, CPU, seed=0)
    assert tells is not None
    with FeatureTap(setup.module) as tap:
        logits = setup.module(**batch()).logits
    tells.fooling_loss(tap.features, logits).backward()
    tells.update(tap.features, logits, torch.tensor([0, 1, 2, 1]))
    assert all(parameter.grad is not None for parameter in setup.trainable().values())


SHARES = {"uneven": (slice(0, 5), slice(5, 8)), "one empty": (slice(0, 8), slice(8, 8))}


def updated(own: slice) -> dict[str, torch.Tensor]:
    """The state after three updates with one's own share of each batch."""
    tells = adversary()
    for step in range(3):
        labelled = (value[own] for value in rows(8, seed=step))
        unlabeled = (value[own] for value in rows(8, seed=10 + step)[:2])
        loss = tells.update(*labelled, *unlabeled)
    return {**tells.state_dict(), "loss": torch.tensor(loss)}


def _update_as_worker(rank: int, port: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for case, shares in SHARES.items():
        save_file(updated(shares[rank]), folder / f"{case} {rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_update_as_worker, (port, tmp_path), nprocs=2)
    alone = updated(slice(0, 8))
    for case in SHARES:
        first, second = (load_file(tmp_path / f"{case} {rank}.safetensors") for rank in (0, 1))
        for name, value in alone.items():
            assert torch.equal(first[name], second[name]), (case, name)
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_features_of_an_image_are_the_mean_over_its_places(family: str) -> None:
    model = tiny_model(family, task="image-classification").eval()
    pixels = torch.randn((2, 3, IMAGE_SIZE, IMAGE_SIZE), generator=torch.Generator().manual_seed(0))
    with FeatureTap(model) as tap, torch.no_grad():
        model(pixel_values=pixels)
        hidden = model.base_model(pixels)[0]
    assert hidden.ndim == (3 if family == "vit" else 4)
    expected = hidden.mean(dim=1) if family == "vit" else hidden.flatten(2).mean(dim=2)
    torch.testing.assert_close(tap.features, expected)

    hp = Hyperparameters(strategy="adversarial")
    tells = AdversarialStrategy().adversary(model, 3, hp, CPU, seed=0)
    assert tells.discriminator.hidden.in_features == expected.shape[1] + 3
    assert not any(module.training for module in model.modules())
    assert torch.isfinite(tells.fooling_loss(tap.features, torch.zeros(2, 3)))

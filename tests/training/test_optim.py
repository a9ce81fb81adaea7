import pytest
import torch
from torch import nn

from rayft.config import Hyperparameters
from rayft.training.optim import (
    StartingPoint,
    build_lr_scheduler,
    build_optimizer,
    clip_gradients,
    pack_optimizer,
    unpack_optimizer,
)


def small_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"below": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)})


FACTORS = {
    "below.weight": 0.5,
    "below.bias": 0.5,
    "norm.weight": 0.5,
    "norm.bias": 0.5,
    "head.weight": 1.0,
    "head.bias": 1.0,
}


def test_groups_are_by_rate_and_decay() -> None:
    module = small_module()
    optimizer = build_optimizer(module, FACTORS, Hyperparameters(learning_rate=0.1, weight_decay=0.02))

    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = {
        (group["lr"], group["weight_decay"]): {names[parameter] for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert groups == {
        (0.05, 0.02): {"below.weight"},
        (0.05, 0.0): {"below.bias", "norm.weight", "norm.bias"},
        (0.1, 0.02): {"head.weight"},
        (0.1, 0.0): {"head.bias"},
    }
    assert optimizer.defaults["fused"]


def test_only_matrices_decay() -> None:
    module = small_module()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = build_optimizer(module, FACTORS, Hyperparameters(learning_rate=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"below.weight", "head.weight"}


def test_a_rate_for_a_frozen_parameter_is_our_own_mistake() -> None:
    module = small_module()
    module.get_parameter("norm.weight").requires_grad_(False)
    with pytest.raises(AssertionError, match=r"norm\.weight"):
        build_optimizer(module, FACTORS, Hyperparameters())


def rates(hp: Hyperparameters, total_steps: int, finished_steps: int, steps: int) -> list[float]:
    optimizer = build_optimizer(small_module(), FACTORS, hp)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    scheduler = build_lr_scheduler(optimizer, hp, total_steps, finished_steps)
    found = []
    for _ in range(steps):
        found.append(max(scheduler.get_last_lr()))
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_rises_to_its_peak_and_falls_linearly() -> None:
    found = rates(Hyperparameters(learning_rate=1.0, warmup_ratio=0.2), total_steps=20, finished_steps=0, steps=20)

    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == pytest.approx([1 - step / 16 for step in range(16)])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert rates(Hyperparameters(learning_rate=1.0, warmup_ratio=0.0), 4, 0, 4) == [1.0, 0.75, 0.5, 0.25]


def test_a_schedule_that_is_all_warm_up() -> None:
    assert rates(Hyperparameters(learning_rate=1.0, warmup_ratio=0.9), 1, 0, 1) == [0.5]


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    hp = Hyperparameters(learning_rate=0.3, warmup_ratio=0.5)
    for finished in (3, 10, 15):
        assert rates(hp, 20, finished, 20 - finished) == rates(hp, 20, 0, 20)[finished:]


def test_l2_sp_is_the_gradient_of_the_squared_distance() -> None:
    module = small_module()
    held = [module.get_parameter("below.weight"), module.get_parameter("below.bias")]
    starting_point = StartingPoint(held, weight=0.3)
    pretrained = [parameter.detach().clone() for parameter in held]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    penalty = sum(0.3 * ((w - w0) ** 2).sum() for w, w0 in zip(held, pretrained, strict=True))
    expected = torch.autograd.grad(penalty, held)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)

    starting_point.add_gradient()

    for parameter, gradient in zip(held, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + gradient)
    assert torch.equal(module.get_parameter("head.weight").grad, torch.ones(2, 4))


def test_packed_state_continues_bit_for_bit() -> None:
    hp = Hyperparameters(learning_rate=0.1)
    module = small_module()
    optimizer = build_optimizer(module, FACTORS, hp)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step(module, optimizer, seed=1)
    packed = {name: tensor.clone() for name, tensor in pack_optimizer(optimizer, module).items()}
    assert {name.rpartition("/")[2] for name in packed} == {"step", "exp_avg", "exp_avg_sq"}
    other = small_module()
    other.load_state_dict(module.state_dict())
    resumed = build_optimizer(other, FACTORS, hp)
    unpack_optimizer(resumed, other, packed)

    step(module, optimizer, seed=2)
    step(other, resumed, seed=2)

    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_does(max_norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, torchs = ([nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))] for _ in range(2))
    for one, other in zip(ours, torchs, strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    before = [parameter.grad.clone() for parameter in ours]
    frozen = nn.Parameter(torch.zeros(2))  # without a gradient
    clip_gradients([*ours, frozen], max_norm)
    nn.utils.clip_grad_norm_([*torchs, frozen], max_norm)

    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in torchs])
    assert all(torch.equal(p.grad, b) for p, b in zip(ours, before, strict=True)) == (max_norm > 100)

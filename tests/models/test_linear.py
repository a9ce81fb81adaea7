import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rayft.models.linear import NARROWEST, OneDnnLinear, is_available, use_onednn
from tests.conftest import tiny_model

pytestmark = pytest.mark.skipif(not is_available(), reason="this build of torch is without oneDNN")


def both(features: tuple[int, int] = (96, 160), bias: bool = True) -> tuple[nn.Linear, OneDnnLinear]:
    """A layer of torch's and the same one of oneDNN's, with the same weights."""
    torch.manual_seed(0)
    plain = nn.Linear(*features, bias=bias)
    faster = copy.deepcopy(plain)
    use_onednn(faster)
    assert isinstance(faster, OneDnnLinear)
    return plain, faster


def gradients(layer: nn.Linear, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor | None]:
    inputs = inputs.detach().clone().requires_grad_(inputs.requires_grad)
    outputs = layer(inputs)
    outputs.backward(gradient)
    return {"outputs": outputs.detach(), "inputs": inputs.grad, **{n: p.grad for n, p in layer.named_parameters()}}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (37, 96), (4, 9, 96), (2, 3, 5, 96)])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    plain, faster = both(bias=bias)
    inputs, gradient = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 160)
    expected, found = gradients(plain, inputs, gradient), gradients(faster, inputs, gradient)
    assert expected.keys() == found.keys()
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_matrices_may_lie_in_memory_in_any_order() -> None:
    """What attention gives back is transposed."""
    plain, faster = both((96, 96))
    inputs = torch.randn(3, 8, 7, 12).transpose(1, 2).reshape(3, 7, 96).transpose(0, 1).requires_grad_()
    gradient = torch.randn(3, 7, 96).transpose(0, 1)
    assert not gradient.is_contiguous()
    assert_close(gradients(faster, inputs, gradient), gradients(plain, inputs, gradient), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 96), (2, 4, 96)])
def test_outputs_may_be_written_to(shape: tuple[int, ...]) -> None:
    """As Longformer does, for one."""
    found = []
    for layer in both():
        inputs = torch.linspace(-1, 1, 96).expand(shape).clone().requires_grad_()
        outputs = layer(inputs)
        outputs /= 3
        outputs.relu_()
        outputs.sum().backward()
        found.append([outputs, inputs.grad, layer.weight.grad, layer.bias.grad])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 96), (2, 0, 96)])
def test_there_may_be_no_rows(shape: tuple[int, ...]) -> None:
    _, faster = both()
    outputs = faster(torch.empty(shape))
    assert outputs.shape == (*shape[:-1], 160)
    outputs.sum().backward()
    assert faster.weight.grad is not None and not faster.weight.grad.any()


def test_a_frozen_layer_keeps_no_inputs_for_the_backward_pass() -> None:
    _, faster = both()
    faster.requires_grad_(False)
    inputs = torch.randn(5, 96, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        faster(inputs)
    assert [tensor.shape for tensor in kept] == [faster.weight.shape]


@pytest.mark.parametrize("trained", ["inputs", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(trained: str) -> None:
    plain, faster = both()
    for layer in (plain, faster):
        layer.weight.requires_grad_(trained == "weight")
        layer.bias.requires_grad_(trained == "bias")
    inputs, gradient = torch.randn(5, 96, requires_grad=trained == "inputs"), torch.randn(5, 160)
    expected, found = gradients(plain, inputs, gradient), gradients(faster, inputs, gradient)
    assert [name for name in found if found[name] is not None] == ["outputs", trained]
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_outputs_are_the_same() -> None:
    plain, faster = both()
    inputs = torch.randn(9, 4, 96)
    with torch.no_grad():
        assert_close(faster(inputs.transpose(0, 1)), plain(inputs.transpose(0, 1)), rtol=1e-5, atol=1e-5)


def test_other_precisions_are_torchs() -> None:
    plain, faster = both()
    inputs = torch.randn(9, 96)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(faster(inputs), plain(inputs))
    assert torch.equal(faster.double()(inputs.double()), plain.double()(inputs.double()))


def test_a_model_keeps_its_parameters_and_its_narrow_layers() -> None:
    model = nn.Sequential(nn.Linear(96, NARROWEST), nn.Linear(NARROWEST, 3), nn.Sequential(nn.Linear(NARROWEST, 96)))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    use_onednn(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [type(model.get_submodule(name)) for name in ("0", "1", "2.0")] == [OneDnnLinear, nn.Linear, OneDnnLinear]


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama"])
def test_a_whole_model_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayft.models.linear.NARROWEST", 1)  # tiny models have nothing wide
    plain = tiny_model(name, 3).eval()
    faster = copy.deepcopy(plain)
    use_onednn(faster)
    assert any(type(module) is OneDnnLinear for module in faster.modules())
    ids = torch.arange(5, 17).reshape(2, 6)
    outputs = {}
    for model in (plain, faster):
        logits = model(input_ids=ids).logits
        logits.square().sum().backward()
        outputs[model] = [logits, *(p.grad for p in model.parameters() if p.grad is not None)]
    assert_close(outputs[faster], outputs[plain], rtol=1e-4, atol=1e-5)

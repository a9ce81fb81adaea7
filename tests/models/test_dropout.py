import pytest
import torch
from torch import nn

from rayft.models.dropout import set_dropout
from tests.conftest import FAMILIES, tiny_model

TOKENS = torch.tensor([[2, 9, 5, 17, 12, 3]])


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_turns_all_dropout_off(family: str) -> None:
    model = tiny_model(family)
    set_dropout(model, 0.5)
    set_dropout(model, 0.0)
    with torch.no_grad():
        assert torch.equal(model.train()(input_ids=TOKENS).logits, model.eval()(input_ids=TOKENS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_drops_out(family: str) -> None:
    """Also where the model's own dropout is 0, as Llama's is."""
    model = tiny_model(family)
    set_dropout(model, 0.5)
    with torch.no_grad():
        first, second = (model.train()(input_ids=TOKENS).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_attention_dropout_is_a_number_in_llama() -> None:
    model = tiny_model("llama")
    set_dropout(model, 0.25)
    assert [m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")] == [0.25] * 3


def test_flags_with_dropout_in_their_name_stay() -> None:
    module = nn.Module()
    module.has_dropout, module.dropout = True, 0.1
    set_dropout(module, 0.25)
    assert module.has_dropout is True
    assert module.dropout == 0.25

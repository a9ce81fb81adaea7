import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW
from transformers import BertConfig, BertForSequenceClassification, GPT2LMHeadModel

from rayft.models.compact_embedding import CompactEmbedding, compact_embedding
from tests.conftest import FAMILIES, tiny_model

USED = np.array([0, 3, 4, 9])
VOCABULARY = 20


def embedding(padding: int | None = 0) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, 5, padding_idx=padding)


def train(module: nn.Module, steps: int, compact: bool) -> None:
    """Steps of a falling learning rate on the ids that are used."""
    optimizer = AdamW(module.parameters(), lr=0.1, weight_decay=0.3, fused=True)
    generator = torch.Generator().manual_seed(1)
    module.train()
    for step in range(steps):
        ids = torch.from_numpy(USED)[torch.randint(len(USED), (3, 4), generator=generator)]
        optimizer.zero_grad()
        (module(ids) * torch.randn(3, 4, 5, generator=generator)).sum().backward()
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
        if compact:
            module.decay_others(optimizer)
    module.eval()


@pytest.mark.parametrize("padding", [0, 7, None])
def test_it_becomes_what_the_whole_embedding_becomes(padding: int | None) -> None:
    whole, compact = embedding(padding), CompactEmbedding(embedding(padding), USED)
    train(whole, 5, compact=False)
    train(compact, 5, compact=True)

    assert compact.weight.shape == (4, 5)
    everything = torch.arange(VOCABULARY).reshape(4, 5)
    torch.testing.assert_close(compact(everything), whole(everything))
    torch.testing.assert_close(compact.whole(), whole.weight.detach())


def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped() -> None:
    first = CompactEmbedding(embedding(), USED)
    train(first, 3, compact=True)
    second = CompactEmbedding(embedding(), USED)
    second.load_whole(first.whole())

    everything = torch.arange(VOCABULARY)
    assert torch.equal(second.eval()(everything), first(everything))
    for module in (first, second):
        train(module, 2, compact=True)
    torch.testing.assert_close(second.whole(), first.whole())


def test_the_weight_that_it_stands_for_stays_as_it_is() -> None:
    original = embedding()
    before = original.weight.detach().clone()
    train(CompactEmbedding(original, USED), 3, compact=True)

    assert torch.equal(original.weight, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_with_it_and_keeps_its_names(family: str) -> None:
    model = tiny_model(family).eval()
    names = [name for name, _ in model.named_parameters()]
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=ids).logits
    compact = compact_embedding(model, np.array([0, 5, 6, 7]))

    assert compact is not None and model.get_input_embeddings() is compact
    assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
    torch.testing.assert_close(model(input_ids=ids).logits, expected)


def bert() -> BertForSequenceClassification:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes))


def test_embeddings_stay_where_it_would_not_be_the_same_or_not_worth_it() -> None:
    assert compact_embedding(bert(), USED) is not None
    frozen = bert()
    frozen.get_input_embeddings().weight.requires_grad_(False)
    assert compact_embedding(frozen, USED) is None
    assert compact_embedding(bert(), np.arange(VOCABULARY - 5)) is None, "most of the vocabulary is used"
    assert compact_embedding(GPT2LMHeadModel(FAMILIES["gpt2"]()), USED) is None, "tied to the output layer"
    limited = bert()
    limited.get_input_embeddings().max_norm = 1.0
    assert compact_embedding(limited, USED) is None
    assert compact_embedding(nn.Sequential(nn.Embedding(4, 2)), USED) is None

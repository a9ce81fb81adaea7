"""Token embeddings of which only the rows that training looks up are trained.

A row that no training batch looks up has no gradient, ever, and so no momentum: all that AdamW does to it is weight
decay, the same factor for all such rows. That factor is kept as one number, and the rows stay out of gradients,
momentum and clipping. Of a vocabulary of tens of thousands a data set uses a small part, while embeddings are a fifth
of BERT's parameters and two thirds of a multilingual model's.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from transformers import PreTrainedModel

WORTHWHILE = 0.5
"""The largest part of a vocabulary that is worth the detour."""


class CompactEmbedding(nn.Module):
    """Stands in for an `nn.Embedding` while it is trained, under the same parameter name.

    Args:
        embedding: What it stands for; its weight is left as it is.
        used: The token ids that training looks up, sorted, each once.

    Attributes:
        weight: The rows of these ids, [ids, size].
    """

    def __init__(self, embedding: nn.Embedding, used: np.ndarray) -> None:
        super().__init__()
        self._used = torch.from_numpy(used).to(embedding.weight.device)
        self._place = torch.full((embedding.num_embeddings,), -1, device=embedding.weight.device)
        self._place[self._used] = torch.arange(len(used), device=embedding.weight.device)
        self._padding: int | None = None
        if embedding.padding_idx is not None and (place := int(self._place[embedding.padding_idx])) >= 0:
            self._padding = place
        self._others = embedding.weight.detach()
        self._decay = 1.0
        self.weight = nn.Parameter(self._others[self._used])
        self.train(embedding.training)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings of any ids; in training mode of those that training looks up."""
        places = self._place[token_ids]
        if self.training:
            return functional.embedding(places, self.weight, self._padding)
        trained = functional.embedding(places.clamp(min=0), self.weight, self._padding)
        others = functional.embedding(token_ids, self._others) * self._decay
        return torch.where((places >= 0).unsqueeze(-1), trained, others)

    def decay_others(self, optimizer: Optimizer) -> None:
        """Does to the other rows what the optimiser's last step does where there is no gradient."""
        group = next(g for g in optimizer.param_groups if any(p is self.weight for p in g["params"]))
        self._decay *= 1 - group["lr"] * group["weight_decay"]

    def whole(self) -> Tensor:
        """The weight of an `nn.Embedding` that gives the same, [vocabulary, size]; a copy."""
        weight = self._others * self._decay
        weight[self._used] = self.weight.detach()
        return weight

    @torch.no_grad()
    def load_whole(self, weight: Tensor) -> None:
        """Takes back what `whole` gave."""
        self._others = weight.to(self.weight.device, copy=True)
        self._decay = 1.0
        self.weight.copy_(self._others[self._used])


def compact_embedding(model: nn.Module, used: np.ndarray) -> CompactEmbedding | None:
    """Replaces a model's token embeddings in place, if they are trained and that is worth it.

    Args:
        model: With `requires_grad` set.
        used: As for `CompactEmbedding`.

    Returns:
        What stands there now; None if the embeddings stay.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        return None
    is_plain = embedding.max_norm is None and not embedding.sparse and not embedding.scale_grad_by_freq
    elsewhere = [name for name, p in model.named_parameters(remove_duplicate=False) if p is embedding.weight][1:]
    if not is_plain or elsewhere or len(used) > WORTHWHILE * embedding.num_embeddings:
        return None
    compact = CompactEmbedding(embedding, used)
    model.set_input_embeddings(compact)
    return compact

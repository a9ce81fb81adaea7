"""Fine-tuning against a discriminator that tells predicted label distributions from true ones."""

import inspect
from typing import Any, Self

import torch
import torch.distributed
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm, leaky_relu, one_hot, softmax
from transformers import PreTrainedModel

from rayft.config import Hyperparameters
from rayft.models.layers import LayerMap, probe_inputs
from rayft.models.seeding import seeded
from rayft.strategies.base import Strategy, freeze_below

HIDDEN_SIZE = 128
"""Of the discriminator."""
TRUE_LABEL_PROBABILITY = 0.9
"""Of a smoothed true label. One-hot vectors would give themselves away by their zeros alone."""


class AdversarialStrategy(Strategy):
    """Trains as `partial` does, while the training loop adds the loss of fooling an `Adversary`."""

    name = "adversarial"

    def prepare(self, model: PreTrainedModel, layers: LayerMap, hp: Hyperparameters) -> nn.Module:
        """See `Strategy.prepare`."""
        return freeze_below(model, layers, hp.freeze_depth, hp.dropout)

    def frozen_blocks(self, hp: Hyperparameters) -> int:
        """See `Strategy.frozen_blocks`."""
        return hp.freeze_depth

    def adversary(
        self, model: nn.Module, num_labels: int, hp: Hyperparameters, device: torch.device, seed: int
    ) -> "Adversary":
        """See `Strategy.adversary`."""
        assert isinstance(model, PreTrainedModel)
        return Adversary(_feature_size(model), num_labels, hp.discriminator_learning_rate, device, seed)


class FeatureTap:
    """Keeps what the base model's last hidden state was in the latest forward pass, averaged over tokens or places.

    A context manager, or closed with `close()`.

    Attributes:
        features: Pooled features, rows x hidden size, with their graph; set by the model's forward pass.
    """

    features: Tensor

    def __init__(self, model: PreTrainedModel) -> None:
        self._signature = inspect.signature(model.base_model.forward)
        self._handle = model.base_model.register_forward_hook(self._pool, with_kwargs=True)

    def _pool(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = output[0].float()  # of lower precision under autocast
        if hidden.ndim == 4:  # of an image, [rows, channels, height, width]
            self.features = hidden.mean(dim=(2, 3))
            return
        mask = self._signature.bind(*args, **kwargs).arguments.get("attention_mask")
        if mask is None:
            self.features = hidden.mean(dim=1)
            return
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        self.features = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def close(self) -> None:
        """Stops listening."""
        self._handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@torch.no_grad()
def _feature_size(model: PreTrainedModel) -> int:
    if hasattr(model.config, "hidden_size"):
        return int(model.config.hidden_size)
    was_training = model.training
    hidden = model.eval().base_model(**probe_inputs(model))[0]
    model.train(was_training)
    return int(hidden.shape[1])


class Discriminator(nn.Module):
    """Tells from a row's features whether a label distribution is its true one, as one logit per row."""

    def __init__(self, feature_size: int, num_labels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_size + num_labels, HIDDEN_SIZE)
        self.output = nn.Linear(HIDDEN_SIZE, 1)

    def forward(self, features: Tensor, distribution: Tensor) -> Tensor:
        """Maps rows x features and rows x labels to rows."""
        # Families differ in the scale of their hidden states; unscaled, it could drown the distribution.
        scaled = layer_norm(features, features.shape[-1:])
        joint = torch.cat([scaled, distribution], dim=-1)
        logits: Tensor = self.output(leaky_relu(self.hidden(joint), negative_slope=0.2))
        return logits.squeeze(-1)


class Adversary:
    """A discriminator D(h, p) with its own optimiser.

    D learns to tell (features h of a row, its true label as a smoothed one-hot p) from (h, the predicted distribution
    p). The model, by the loss of fooling D, learns to predict distributions that look as if they were labels of this
    data, those of rows without labels included. After Luc et al. (2016), whose D sees the input beside the labels, and
    GAN-BERT (Croce et al. 2020), whose D works on pooled features. D is checkpointed and never exported.

    Features are a condition in both losses and get no gradient, as Luc et al.'s input gets none: the model is to change
    what it predicts, not to hide from D what the row is about.

    Args:
        feature_size: Size of the pooled features.
        num_labels: Number of labels.
        learning_rate: Of D's AdamW, constant.
        device: Where D lives.
        seed: Draws D's weights; the same on every worker.
    """

    def __init__(
        self, feature_size: int, num_labels: int, learning_rate: float, device: torch.device, seed: int
    ) -> None:
        with seeded(seed):
            self.discriminator = Discriminator(feature_size, num_labels).to(device)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=learning_rate)
        self.num_labels = num_labels

    def fooling_loss(self, features: Tensor, logits: Tensor) -> Tensor:
        """The mean loss of having D take predictions for true labels, differentiable into the logits.

        Args:
            features: Pooled features, rows x features; at least one row.
            logits: The model's logits, rows x labels.
        """
        constant = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, constant, (features.detach(), softmax(logits, dim=-1)))
        return binary_cross_entropy_with_logits(judged, torch.ones_like(judged))

    def update(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        unlabeled_features: Tensor | None = None,
        unlabeled_logits: Tensor | None = None,
    ) -> float:
        """Takes one step of D's optimiser. The model gets no gradient.

        Where `torch.distributed` runs with several ranks, each gives its share of the rows, which may be none, and the
        step is that of all rows together.

        Args:
            features: Pooled features of labelled rows, rows x features.
            logits: Their logits, rows x labels.
            labels: Their true label ids.
            unlabeled_features: Pooled features of rows without labels.
            unlabeled_logits: Their logits.

        Returns:
            D's loss before the step: the mean over true pairs plus the mean over predicted ones.
        """
        predicted_features, predicted_logits = features, logits
        if unlabeled_features is not None and unlabeled_logits is not None:
            predicted_features = torch.cat([features, unlabeled_features])
            predicted_logits = torch.cat([logits, unlabeled_logits])
        true = self.discriminator(features.detach(), self._smoothed(labels))
        predicted = self.discriminator(predicted_features.detach(), softmax(predicted_logits.detach(), dim=-1))

        rows = _sum_over_ranks(torch.tensor([len(true), len(predicted)], dtype=torch.float32, device=true.device))
        loss = (
            binary_cross_entropy_with_logits(true, torch.ones_like(true), reduction="sum") / rows[0]
            + binary_cross_entropy_with_logits(predicted, torch.zeros_like(predicted), reduction="sum") / rows[1]
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.discriminator.parameters():
            assert parameter.grad is not None, "every parameter of D is used"
            _sum_over_ranks(parameter.grad)
        self.optimizer.step()
        return float(_sum_over_ranks(loss.detach()))

    def state_dict(self) -> dict[str, Tensor]:
        """D and its optimiser's moments, as one flat dict of tensors that safetensors can hold."""
        state = {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        for name, parameter in self.discriminator.named_parameters():
            moments = self.optimizer.state.get(parameter, {})  # empty before the first step
            state |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        self.discriminator.load_state_dict(_under(state, "discriminator."))
        moments = {
            index: found
            for index, (name, _) in enumerate(self.discriminator.named_parameters())
            if (found := _under(state, f"optimizer.{name}."))
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _smoothed(self, labels: Tensor) -> Tensor:
        rest = (1 - TRUE_LABEL_PROBABILITY) / (self.num_labels - 1)
        return one_hot(labels, self.num_labels) * (TRUE_LABEL_PROBABILITY - rest) + rest


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Copies of the entries under a prefix, without it."""
    return {key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)}


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, in place; on its own a process is its only rank."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values

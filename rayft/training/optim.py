"""The optimiser, its learning rate schedule, and the pull back to the pretrained weights."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from rayft.config import Hyperparameters
from rayft.errors import CheckpointError


def build_optimizer(module: nn.Module, factors: Mapping[str, float], hp: Hyperparameters) -> AdamW:
    """AdamW with a parameter group per learning rate, weight decay and none.

    Args:
        module: On its device already, since fused AdamW keeps its state there.
        factors: The learning rate's factor for each trainable parameter of `module`, by name.
        hp: For `learning_rate` and `weight_decay`.
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable.keys() == factors.keys(), f"rates don't match parameters: {trainable.keys() ^ factors.keys()}"
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trainable.items():
        groups[factors[name], is_decayed(name, parameter)].append(parameter)
    return AdamW(
        [
            {"params": members, "lr": hp.learning_rate * factor, "weight_decay": hp.weight_decay if decayed else 0.0}
            for (factor, decayed), members in groups.items()
        ],
        fused=True,
    )


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, nor to norms, whose weights have one dimension."""
    return parameter.ndim > 1 and not name.endswith("bias")


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scales the gradients down to a total norm of at most `max_norm`.

    Unlike `torch.nn.utils.clip_grad_norm_` it doesn't multiply by one: on a CPU that is a pass over all gradients, but
    on a GPU it would be a wait to know.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.is_cuda or norm > max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def build_lr_scheduler(optimizer: AdamW, hp: Hyperparameters, total_steps: int, finished_steps: int = 0) -> LambdaLR:
    """Linear warm-up and decay over `total_steps`, from where `finished_steps` left it.

    The horizon is the trial's longest possible training, so that a trial which is stopped early and one which isn't
    have the same learning rates up to there.
    """
    warmup_steps = round(hp.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)  # from above 0, which would waste the first step
        return max(0, total_steps - step) / max(1, total_steps - warmup_steps)

    return LambdaLR(optimizer, factor, last_epoch=finished_steps - 1)


class StartingPoint:
    """L2-SP (Xuhong et al. 2018, section 3): the penalty `weight * sum((w - w_pretrained) ** 2)`.

    Its gradient is added to the parameters' own, once per optimiser step. This is exact, and leaves micro-batches and
    distributed averaging out of it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Takes the parameters' present values as the pretrained ones."""
        self._weight = weight
        self._pretrained = [(parameter, parameter.detach().clone()) for parameter in parameters] if weight > 0 else []

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Adds `2 * weight * (w - w_pretrained)` wherever there is a gradient."""
        for parameter, pretrained in self._pretrained:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - pretrained, alpha=2 * self._weight)


def pack_optimizer(optimizer: AdamW, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, `<parameter>/<key>`: names stay right where positions might not."""
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def unpack_optimizer(optimizer: AdamW, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `pack_optimizer` took, on each parameter's device.

    Raises:
        KeyError: A tensor is of a parameter that the module lacks.
        CheckpointError: A tensor hasn't its parameter's shape, which the fused optimiser would not notice.
    """
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        if tensor.ndim > 0 and tensor.shape != parameter.shape:
            found, expected = list(tensor.shape), list(parameter.shape)
            raise CheckpointError(f"the optimiser's {path} must be of shape {expected}, but is of shape {found}")
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)

"""One neutral map of a model's layers, found from its module tree and one small forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rayft.errors import Fault, ModelError

DEFAULT_IMAGE_SIZE = 64
"""Pixels a side, of a model that takes any size."""


@dataclass(frozen=True)
class LayerMap:
    """A model's parameters in the order of depth; every parameter's name is in exactly one place.

    Attributes:
        embeddings: Parameters outside the blocks that the last block's output depends on.
        blocks: The parameters of each block, from the input to the output.
        after_blocks: The base model's other parameters, such as a pooler or a last norm.
        head: Parameters outside the base model; none if the head is the token embeddings.
        block_path: Path of the module list that holds the blocks, such as `bert.encoder.layer`.
        input_modules: Paths of the dropout and batch norm modules that run before the first block.
    """

    embeddings: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    after_blocks: tuple[str, ...]
    head: tuple[str, ...]
    block_path: str
    input_modules: tuple[str, ...]

    def frozen(self, freeze_depth: int) -> frozenset[str]:
        """The parameters that are frozen at a depth: none at 0, else the embeddings and the first blocks.

        Raises:
            ModelError: If the model has fewer blocks.
        """
        self._check_depth(freeze_depth)
        if freeze_depth == 0:
            return frozenset()
        return frozenset(self.embeddings).union(*self.blocks[:freeze_depth])

    def frozen_modules(self, freeze_depth: int) -> tuple[str, ...]:
        """Paths of the modules that stay as they are at a depth: the first blocks, and the input modules.

        Raises:
            ModelError: If the model has fewer blocks.
        """
        self._check_depth(freeze_depth)
        if freeze_depth == 0:
            return ()
        return (*self.input_modules, *(f"{self.block_path}.{index}" for index in range(freeze_depth)))

    def _check_depth(self, freeze_depth: int) -> None:
        if not 0 <= freeze_depth <= len(self.blocks):
            rule = f"must lie in 0 to {len(self.blocks)}, the number of the model's blocks, but got {freeze_depth}"
            raise ModelError([Fault(where=self.block_path, key="freeze_depth", rule=rule)])


def map_layers(model: PreTrainedModel) -> LayerMap:
    """Finds the layers of any model whose base is one stack of blocks, or of stages.

    The blocks are the base model's one module list of modules of one class. A forward pass of a few tokens, or of a
    black image, checks that they run once each and in order; its graph tells what the last block's output depends on
    from what comes after it. The model ends as it was, and may be on the meta device, since only the graph matters.

    Raises:
        ModelError: If the architecture is not such a stack.
    """
    base_path = model.base_model_prefix
    if model.base_model is model:
        raise _unmappable(model, "it has no base model apart from its head")
    names = [name for name, _ in model.named_parameters()]
    head = tuple(name for name in names if not name.startswith(f"{base_path}."))
    if not head and not _shares_embeddings(model):
        raise _unmappable(model, f"it has no parameters outside its base model {base_path!r}, so no head")

    block_path, count = _find_blocks(model)
    blocks = tuple(tuple(n for n in names if n.startswith(f"{block_path}.{index}.")) for index in range(count))
    around = [n for n in names if n not in head and not n.startswith(f"{block_path}.")]
    trace = _probe(model, block_path, count)
    upstream = _names_upstream(model, around, trace.last_output)
    return LayerMap(
        embeddings=tuple(name for name in around if name in upstream),
        blocks=blocks,
        after_blocks=tuple(name for name in around if name not in upstream),
        head=head,
        block_path=block_path,
        input_modules=tuple(trace.input_modules),
    )


def _unmappable(model: PreTrainedModel, reason: str) -> ModelError:
    name = type(model).__name__
    rule = f"{name} can't be mapped to embeddings, blocks and head: {reason}"
    return ModelError([Fault(where=model.name_or_path or name, key="model", rule=rule)])


def _find_blocks(model: PreTrainedModel) -> tuple[str, int]:
    """The path and length of the one outermost module list whose entries are of one class."""
    found: dict[str, int] = {}
    for path, module in model.base_model.named_modules(prefix=model.base_model_prefix):
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if len({type(entry) for entry in module}) == 1 and next(module.parameters(), None) is not None:
            found[path] = len(module)
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise _unmappable(model, f"its base must have one list of blocks of one class, but has {listed}")
    return next(iter(found.items()))


@dataclass
class _Trace:
    """What one forward pass went through."""

    order: list[int] = field(default_factory=list)
    input_modules: list[str] = field(default_factory=list)
    last_output: torch.Tensor | None = None

    def enter_block(self, index: int, *_: Any) -> None:
        self.order.append(index)

    def leave_last_block(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.last_output = output if isinstance(output, torch.Tensor) else output[0]

    def enter_module(self, path: str, *_: Any) -> None:
        if not self.order:
            self.input_modules.append(path)


def _probe(model: PreTrainedModel, block_path: str, count: int) -> _Trace:
    """Runs a few tokens through the base model, and checks that each block runs once and in order."""
    trace = _Trace()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
                stack.callback(module.register_forward_pre_hook(partial(trace.enter_module, path)).remove)
        for index in range(count):
            block = model.get_submodule(f"{block_path}.{index}")
            stack.callback(block.register_forward_pre_hook(partial(trace.enter_block, index)).remove)
        stack.callback(block.register_forward_hook(trace.leave_last_block).remove)
        stack.enter_context(_differentiable_evaluation(model))
        try:
            model.base_model(**probe_inputs(model))
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            what = "pixels" if model.main_input_name == "pixel_values" else "token ids"
            raise _unmappable(model, f"it can't be run on {what} alone ({error})") from error
    if trace.order != list(range(count)):
        ran = ", ".join(map(str, trace.order))
        reason = f"its blocks {block_path} must run once each and in order, without sharing weights, but ran as {ran}"
        raise _unmappable(model, reason)
    return trace


def probe_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The least that a model can be run on: a row of four token ids, none of them padding, or a black image."""
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", DEFAULT_IMAGE_SIZE)
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        return {"pixel_values": torch.zeros((1, model.config.num_channels, height, width), device=model.device)}
    ids = [token for token in range(1, 6) if token != getattr(model.config, "pad_token_id", None)][:4]
    return {"input_ids": torch.tensor([ids], device=model.device)}


def _shares_embeddings(model: PreTrainedModel) -> bool:
    """Whether the head is the token embeddings, as that of GPT-2."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


@contextmanager
def _differentiable_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and with a graph to every parameter whether it trains or not."""
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    model.eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(was_training)
        for parameter, required in trains:
            parameter.requires_grad_(required)


def _names_upstream(model: PreTrainedModel, names: list[str], output: torch.Tensor | None) -> set[str]:
    """Those of the named parameters that the output depends on, by a walk of its graph: no gradient is computed."""
    assert output is not None and output.grad_fn is not None, "the last block ran, with a graph"
    leaves: set[int] = set()
    seen = {output.grad_fn}
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # a parameter's AccumulateGrad
            leaves.add(id(node.variable))
        inputs = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= inputs
        waiting += inputs
    return {name for name in names if id(model.get_parameter(name)) in leaves}

"""A forward pass that ends after some of a model's blocks, or that starts there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayft.models.layers import LayerMap, probe_inputs


class PrefixInput:
    """Makes a model's forward pass start at a block: the first `depth` blocks hand on what is given.

    All else is the model's own, such as its masks, its position embeddings, and what it does between blocks. Outside
    `feeding` the model is untouched, so it may be copied, pickled or wrapped at any time.

    Args:
        model: The model, also if a DistributedDataParallel around it is what is called.
        layers: Its layer map.
        depth: How many blocks are passed over, at least 1.

    Raises:
        TypeError: If its blocks hand on something other than a tensor, or a tuple that starts with one.
    """

    def __init__(self, model: PreTrainedModel, layers: LayerMap, depth: int) -> None:
        assert 1 <= depth <= len(layers.blocks), f"depth {depth} of {len(layers.blocks)} blocks"
        blocks = [model.get_submodule(f"{layers.block_path}.{index}") for index in range(depth)]
        self._passed_over, self._last = blocks[:-1], blocks[-1]
        # What comes before the blocks costs next to nothing where it looks up tokens, and much where it is a
        # convolution over all pixels.
        self._stem = _stem(model, layers) if model.main_input_name == "pixel_values" else []
        self._others = _values_beside_hidden(model, layers)

    @contextmanager
    def feeding(self, hidden: Tensor) -> Iterator[None]:
        """Within it, one forward pass or several on the same rows start with the given hidden states.

        Args:
            hidden: What the last of the first blocks gives for the rows, of shape [rows, length, hidden size], or of
                any shape for images. Padded places may hold any finite values.

        Raises:
            ValueError: From the forward pass, if its rows and length are not those of `hidden`.
        """
        with ExitStack() as stack:
            for module in self._stem:
                stack.enter_context(_replaced_forward(module, lambda *_, **__: hidden))
            for block in self._passed_over:
                stack.enter_context(_replaced_forward(block, self._hand_on))
            stack.enter_context(_replaced_forward(self._last, partial(self._give, hidden)))
            yield

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        return self._as_output(_entering(args, kwargs))

    def _give(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        expected = _entering(args, kwargs).shape
        if expected != hidden.shape:
            raise ValueError(f"hidden must be of shape {list(expected)}, but got {list(hidden.shape)}")
        return self._as_output(hidden)

    def _as_output(self, hidden: Tensor) -> Any:
        return hidden if self._others is None else (hidden, *(None,) * self._others)


def block_output(model: PreTrainedModel, layers: LayerMap, depth: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """The hidden states that leave the first `depth` blocks; the later ones are not run.

    Args:
        model: The model.
        layers: Its layer map.
        depth: How many blocks to run, at least 1.
        inputs: Of the model, without labels.

    Returns:
        As the block gives it, for all architectures that the cache takes of shape [rows, length, hidden size].

    Raises:
        TypeError: If the blocks hand on something other than a tensor, or a tuple that starts with one.
    """
    return _hidden_of(_raw_output(model, layers, depth, inputs))


def _stem(model: PreTrainedModel, layers: LayerMap) -> list[nn.Module]:
    """The base model's own modules that all run before the blocks."""
    before = set(layers.embeddings)
    found = []
    for name, module in model.base_model.named_children():
        path = f"{model.base_model_prefix}.{name}"
        parameters = [f"{path}.{parameter}" for parameter, _ in module.named_parameters()]
        if parameters and before.issuperset(parameters):
            found.append(module)
    return found


class _Reached(Exception):
    """Ends a forward pass at the block whose output it carries."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _raw_output(model: PreTrainedModel, layers: LayerMap, depth: int, inputs: Mapping[str, Tensor]) -> Any:
    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output)

    handle = model.get_submodule(f"{layers.block_path}.{depth - 1}").register_forward_hook(stop)
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise AssertionError(f"block {depth - 1} was not run")


def _hidden_of(output: Any) -> Tensor:
    hidden = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(hidden, Tensor):
        raise TypeError(f"a block must give a tensor or a tuple that starts with one, but gave {type(output).__name__}")
    return hidden


@torch.no_grad()
def _values_beside_hidden(model: PreTrainedModel, layers: LayerMap) -> int | None:
    """How many values follow the hidden states in a block's tuple; None if a block gives a bare tensor.

    They are attention weights or the like, which nothing after the block reads.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # dropout would draw random numbers, and all later ones would be others than without the cache
    try:
        output = _raw_output(model, layers, 1, probe_inputs(model))
    finally:
        for module, was_training in modes:
            module.training = was_training
    _hidden_of(output)
    return len(output) - 1 if isinstance(output, tuple | list) else None


def _entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states among a block's arguments: they come first."""
    hidden = args[0] if args else kwargs["hidden_states"]
    assert isinstance(hidden, Tensor)
    return hidden


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for this one module; its hooks still run around it."""
    attributes = vars(module)
    own = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del attributes["forward"]
        else:
            attributes["forward"] = own

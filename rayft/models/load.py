"""Loading a pretrained model and its tokenizer, or saying what is wrong with them."""

import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from rayft.errors import Fault, ModelError
from rayft.models.layers import map_layers
from rayft.models.seeding import seeded
from rayft.tasks.base import Preprocessor, Task

Loaded = TypeVar("Loaded")

LOAD_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    ImportError,
    EOFError,
    StrictDataclassError,
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
)
"""What transformers and the readers below it raise on a missing, damaged or unsuitable file."""


def load_preprocessor(name: str, task: Task) -> Preprocessor:
    """Loads what turns rows into what a model reads: its tokenizer or its image processor.

    Args:
        name: Local folder or Hub id.
        task: What it is for.

    Raises:
        ModelError: If there is no usable one.
    """
    _load_config(name, task)  # a model that isn't there is a better message than its missing tokenizer
    return load_tokenizer(name) if task.preprocessor == "tokenizer" else load_image_processor(name)


def load_image_processor(name: str) -> Any:
    """Loads a model's image processor.

    Raises:
        ModelError: If there is none.
    """
    return _reading(name, "image processor", lambda: AutoImageProcessor.from_pretrained(name, trust_remote_code=False))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer, which pads on the right and has a pad token.

    A tokenizer without a pad token, as decoders' often are, pads with its end-of-text token.

    Args:
        name: Local folder or Hub id.

    Raises:
        ModelError: If there is no usable tokenizer.
    """
    tokenizer = _reading(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    # Without any vocabulary file transformers makes a tokenizer of special tokens, which knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise _fault(name, "must come with a tokenizer, but its tokenizer files are missing or hold no vocabulary")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise _fault(name, "must come with a tokenizer that has a pad_token or an eos_token, but it has neither")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    name: str, task: Task, label_names: Sequence[str], pad_token_id: int | None, seed: int
) -> PreTrainedModel:
    """Loads a pretrained model for a task in float32, in evaluation mode and on the CPU.

    No code that comes with a model is run, and a pickle is read as bare weights only. A head in the model's files is
    kept if it is of this many labels; all that the files lack is drawn from the seed.

    Args:
        name: Local folder or Hub id.
        task: What it is for.
        label_names: The labels in the order of their ids.
        pad_token_id: The tokenizer's; None if there is none.
        seed: Draws the head; torch's global generator is left as it was.

    Raises:
        ModelError: If there is no such model, it can't be read, isn't of the task's kind, or weights are missing.
    """
    config = _load_config(name, task)
    task.configure(config, label_names, pad_token_id)

    def read() -> tuple[PreTrainedModel, dict[str, Any]]:
        return getattr(transformers, task.auto_class).from_pretrained(  # type: ignore[no-any-return]
            name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,  # of the head; others are refused below
            output_loading_info=True,
        )

    with seeded(seed), quiet():
        model, info = _reading(name, "model", read)
    _check_loaded(name, task, model, info)
    return model.eval()


def load_skeleton(name: str, task: Task, label_names: Sequence[str]) -> PreTrainedModel:
    """The model's architecture without its weights, to map its layers before anything large is read.

    On the meta device where its layers can be mapped there, else with random weights on the CPU.

    Args:
        name: Local folder or Hub id.
        task: What it is for.
        label_names: The labels in the order of their ids.

    Raises:
        ModelError: If there is no such model or it isn't of the task's kind.
    """
    config = _load_config(name, task)
    task.configure(config, label_names, None)

    def build() -> PreTrainedModel:
        model = getattr(transformers, task.auto_class).from_config(config, trust_remote_code=False)
        return model.eval()  # so that what checks it sees no dropout

    with torch.device("meta"):
        skeleton = _reading(name, "model", build)
    try:
        map_layers(skeleton)
    except ModelError:  # some forward passes read values, which meta tensors don't have
        return build()
    return skeleton


def _load_config(name: str, task: Task) -> PretrainedConfig:
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise _fault(name, "must be a model folder, but has no config.json")
    raw, _ = _reading(name, "config", lambda: PretrainedConfig.get_config_dict(name))
    model_type = raw.get("model_type")
    known = getattr(modeling_auto, task.model_types)
    if model_type not in known:
        if "auto_map" in raw:
            raise _fault(name, f"brings code of its own for model type {model_type!r}, which rayft never runs")
        near = ", ".join(get_close_matches(str(model_type), known, n=3) or sorted(known)[:4])
        rule = f"must be of a model type for {task.name}, but has model_type {model_type!r} in its config.json"
        raise _fault(name, f"{rule}; among the {len(known)} that transformers has are {near}")
    return _reading(name, "config", lambda: AutoConfig.from_pretrained(name, trust_remote_code=False))


def _reading(name: str, what: str, read: Callable[[], Loaded]) -> Loaded:
    """Reads something, and turns what goes wrong into a fault that names the model."""
    try:
        return read()
    except LOAD_ERRORS as error:
        if not Path(name).exists() and what == "config":
            rule = "must be a local folder or the id of a model on the Hugging Face Hub, but there is no such folder"
        else:
            rule = f"its {what} can't be read"
        cause = str(error).strip().partition("\n")[0]
        raise _fault(name, f"{rule} ({type(error).__name__}: {cause})") from error


def _check_loaded(name: str, task: Task, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuses a model whose embeddings or blocks were not all in its files: they would be random."""
    layers = map_layers(model)
    needed = layers.frozen(len(layers.blocks))
    if not task.has_new_head:
        needed = needed.union(layers.after_blocks, layers.head)
    wrong = {key: "is missing" for key in info["missing_keys"] if key in needed}
    for key, found, wanted in info["mismatched_keys"]:
        if key not in layers.head or not task.has_new_head:
            wrong[key] = f"is {tuple(found)} and not {tuple(wanted)}"
    if wrong:
        key = min(wrong)
        rule = f"its files must hold the weights that its config.json asks for, but {key} {wrong[key]}"
        raise _fault(name, rule if len(wrong) == 1 else f"{rule}, and {len(wrong) - 1} more are missing or misshapen")


def _fault(name: str, rule: str) -> ModelError:
    return ModelError([Fault(where=name, key="model", rule=rule)])


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar and its report on the new head, which every fine-tuning has."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()

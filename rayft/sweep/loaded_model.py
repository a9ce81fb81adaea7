"""What a worker of a group holds of each model: its weights, its rows, and how it computes."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedModel

from rayft.cache_folder import cache_folder
from rayft.data.encoded import EncodedData
from rayft.models.layers import LayerMap, map_layers
from rayft.models.linear import use_onednn
from rayft.models.load import load_model
from rayft.models.prefix_cache import PrefixCache
from rayft.sweep.protocol import GroupSpec
from rayft.sweep.run_folder import RunFolder
from rayft.tasks import get_task
from rayft.training.acceleration import Acceleration, choose_autocast, choose_onednn
from rayft.training.workers import Workers

logger = logging.getLogger(__name__)

SPARE = 0.25
"""The share of memory that must be free for the model of an earlier trial to be kept beside the one that is wanted."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that trials start from.

    Attributes:
        base: The pretrained model with its new head, on the workers' device.
        layers: Its layer map.
        data: The rows as it reads them.
        acceleration: How to compute.
    """

    base: PreTrainedModel
    layers: LayerMap
    data: EncodedData
    acceleration: Acceleration


class LoadedModels:
    """The models of a sweep, each loaded when a trial first wants it, and kept while there is memory.

    Args:
        spec: The group's.
        workers: This process among the group's.
    """

    def __init__(self, spec: GroupSpec, workers: Workers) -> None:
        self._spec, self._workers = spec, workers
        self._run = RunFolder.at(spec.run)
        self._loaded: dict[str, LoadedModel] = {}
        obtain_data(self._run)

    def get(self, model: str) -> LoadedModel:
        """A model of the sweep; the same one on all workers at the same time, since loading it may ask all of them.

        Raises:
            ModelError: It can't be loaded, or gives wrong results for the task.
            RunError: Its rows are unfinished or damaged.
        """
        if model not in self._loaded:
            short = torch.tensor(int(not self._has_room()), device=self._workers.device)
            if self._workers.sum(short):  # on any node: all workers of a trial must hold the same models
                self._loaded.clear()
            self._loaded[model] = self._load(model)
        return self._loaded[model]

    def head(self, model: str, seed: int) -> dict[str, Tensor]:
        """A model's new head as another seed draws it, by parameter name; empty where heads aren't drawn anew."""
        loaded = self.get(model)
        task = get_task(loaded.data.task)
        if not task.has_new_head:
            return {}
        other = self._read(model, loaded.data, self._spec.seed + seed)
        return {name: other.get_parameter(name).detach() for name in loaded.layers.head}

    def _read(self, model: str, data: EncodedData, seed: int) -> PreTrainedModel:
        padding = data.pad_token_id if data.train.has_tokens else None
        read = load_model(model_here(model), get_task(data.task), data.label_names, padding, seed)
        return read.to(self._workers.device)

    def _has_room(self) -> bool:
        device = self._workers.device
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        else:
            memory = psutil.virtual_memory()
            free, total = memory.available, memory.total
        return bool(free > SPARE * total)

    def _load(self, model: str) -> LoadedModel:
        spec, workers = self._spec, self._workers
        data = EncodedData.open(self._run.path / spec.encoded[model])
        task = get_task(data.task)
        base = self._read(model, data, spec.seed)
        task.check_model(base)
        layers = map_layers(base)
        autocast = choose_autocast(spec.precision, workers)
        if choose_onednn(Acceleration(autocast, compiled=spec.compiled), workers):
            use_onednn(base)
            logger.info("products in float32 are left to oneDNN, which was measured to be faster here")
        cache = None
        if spec.cache_bytes:
            cache = PrefixCache(
                base,
                layers,
                partial(task.collate, data=data),
                cache_folder("prefix"),
                spec.cache_bytes,
                workers.device,
                autocast,
                row_tokens=task.row_tokens(data),
                pulse=workers.pulse,
            )
        return LoadedModel(base, layers, data, Acceleration(autocast, cache, spec.compiled))


def model_here(model: str) -> str:
    """The model on this node: one that was sent with a job is in the job's folder, where Ray starts its workers."""
    sent = Path.cwd() / Path(model).name
    return str(sent) if Path(model).is_absolute() and not Path(model).exists() and sent.is_dir() else model


def obtain_data(run: RunFolder) -> None:
    """Copies the encoded data to this node, once for all of its workers, if it isn't there."""
    run.path.mkdir(parents=True, exist_ok=True)
    with FileLock(run.path / ".encoded.lock"):
        run.obtain("encoded")

"""What can be wrong with the model, found before any trial runs."""

from collections.abc import Sequence

from rayft.config import MODEL, Categorical, SweepConfig, as_list
from rayft.errors import SWEEP_FILE, Fault, ModelError
from rayft.models.layers import LayerMap, map_layers
from rayft.models.load import load_skeleton
from rayft.tasks import get_task


def check_model(config: SweepConfig, model: str, label_names: Sequence[str]) -> LayerMap:
    """Maps a model's layers and holds every possible `freeze_depth` against them, and the model against the task.

    Raises:
        ModelError: The model can't be read or mapped, gives wrong results for the task, or has fewer blocks than may
            be frozen.
    """
    task = get_task(config.task)
    skeleton = load_skeleton(model, task, label_names)
    task.check_model(skeleton)
    layers = map_layers(skeleton)
    blocks = len(layers.blocks)
    key, depth = _deepest(config, model)
    if depth > blocks:
        way_out = "; freeze_fraction says it as a share of each model's blocks" if len(config.models) > 1 else ""
        rule = f"must be <= {blocks}, the number of blocks of {model}, but got {depth}{way_out}"
        raise ModelError([Fault(SWEEP_FILE, rule, key)])
    return layers


def _deepest(config: SweepConfig, model: str) -> tuple[str, int]:
    """The key of the largest `freeze_depth` that a trial of this model may have, and the depth."""
    domain = config.search_space.get("freeze_depth")
    if domain is None or model not in as_list(domain.when.get(MODEL, model)):
        return "training.freeze_depth", config.training.freeze_depth
    if isinstance(domain, Categorical):
        return "search_space.freeze_depth", max(choice for choice in domain.choices if isinstance(choice, int))
    return "search_space.freeze_depth.high", int(domain.high)

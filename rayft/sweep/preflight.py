"""What can be wrong with the model, found before any trial runs."""

from collections.abc import Sequence

from rayft.config import Categorical, SweepConfig
from rayft.errors import SWEEP_FILE, Fault, ModelError
from rayft.models.layers import LayerMap, map_layers
from rayft.models.load import load_skeleton
from rayft.tasks import get_task


def check_model(config: SweepConfig, label_names: Sequence[str]) -> LayerMap:
    """Maps the model's layers and holds every possible `freeze_depth` against them, and the model against the task.

    Raises:
        ModelError: The model can't be read or mapped, gives wrong results for the task, or has fewer blocks than may
            be frozen.
    """
    task = get_task(config.task)
    skeleton = load_skeleton(config.model, task, label_names)
    task.check_model(skeleton)
    layers = map_layers(skeleton)
    blocks = len(layers.blocks)
    domain = config.search_space.get("freeze_depth")
    depths: dict[str, object]
    if domain is None:
        depths = {"training.freeze_depth": config.training.freeze_depth}
    elif isinstance(domain, Categorical):
        depths = {"search_space.freeze_depth": max(choice for choice in domain.choices if isinstance(choice, int))}
    else:
        depths = {"search_space.freeze_depth.high": domain.high}
    rule = f"must be <= {blocks}, the number of blocks of {config.model}, but got "
    faults = [
        Fault(SWEEP_FILE, f"{rule}{depth}", key)
        for key, depth in depths.items()
        if isinstance(depth, int) and depth > blocks
    ]
    if faults:
        raise ModelError(faults)
    return layers

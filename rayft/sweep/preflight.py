"""What can be wrong with the model, found before any trial runs."""

from rayft.config import Categorical, SweepConfig
from rayft.errors import SWEEP_FILE, Fault, ModelError
from rayft.models.layers import LayerMap, map_layers
from rayft.models.load import load_skeleton


def check_model(config: SweepConfig, num_labels: int) -> LayerMap:
    """Maps the model's layers and holds every possible `freeze_depth` against them.

    Raises:
        ModelError: The model can't be read or mapped, or has fewer blocks than may be frozen.
    """
    layers = map_layers(load_skeleton(config.model, num_labels))
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

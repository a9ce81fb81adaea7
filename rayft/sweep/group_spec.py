"""What a sweep's configuration asks of a worker group."""

from rayft.config import SweepConfig
from rayft.sweep.protocol import GroupSpec


def group_spec(config: SweepConfig, run: str, threads: int) -> GroupSpec:
    """What its workers need to know.

    Args:
        config: The sweep.
        run: The run's address.
        threads: CPU threads per worker.
    """
    return GroupSpec(
        encoded={model: config.encoded_folder(model) for model in config.models},
        run=run,
        epochs=config.training.epochs,
        seed=config.search.seed,
        threads=threads,
        metric=config.metric,
        mode=config.mode,
        objectives=config.objectives,
        precision=config.training.precision,
        cache_bytes=int(config.training.cache_gb * 1e9) if config.training.cache == "auto" else 0,
        compiled=config.training.compile,
        stall_seconds=config.cluster.stall_timeout,
        histograms=config.training.histograms,
    )

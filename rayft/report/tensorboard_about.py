"""What TensorBoard is told once in a run's life: the search space, the layout of its curves, and the sweep itself."""

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import summary_v2
from tensorboard.plugins.text import metadata as text_metadata

from rayft.config import Categorical, Domain, SweepConfig, Value
from rayft.report.tables import format_value
from rayft.sweep_file import dump_sweep

LOSSES = ("loss/train", "loss/validation")


def about(config: SweepConfig) -> Summary:
    """All of it, as one summary."""
    parts = (
        _experiment(config),
        _layout(config),
        _text("sweep.yaml", f"```yaml\n{dump_sweep(config, defaults=True)}\n```"),
    )
    return Summary(value=[value for part in parts for value in part.value])


def hparam_value(domain: Domain, value: Value) -> str | int | float | bool:
    """The value as the HParams tab can hold it: a domain has one type there, so choices of several become text."""
    if isinstance(domain, Categorical):
        if all(isinstance(choice, bool) for choice in domain.choices):
            return bool(value)
        if any(isinstance(choice, bool) or not isinstance(choice, int | float) for choice in domain.choices):
            return format_value(value)
    assert isinstance(value, int | float)
    return float(value)


def _experiment(config: SweepConfig) -> Summary:
    """The search space and the metrics for the HParams tab, the searched one first."""
    hparams = [summary_v2.HParam(name, _domain(domain)) for name, domain in config.space.items()]
    names = dict.fromkeys((*config.objectives, *config.rules.metrics))
    metrics = [
        summary_v2.Metric(f"best/{name}", display_name=name, dataset_type=summary_v2.Metric.VALIDATION)
        for name in names
    ]
    return summary_v2.hparams_config_pb(hparams, metrics)


def _domain(domain: Domain) -> summary_v2.Domain:
    if isinstance(domain, Categorical):
        return summary_v2.Discrete([hparam_value(domain, choice) for choice in domain.choices])
    if domain.is_int:
        return summary_v2.IntInterval(domain.low, domain.high)
    return summary_v2.RealInterval(float(domain.low), float(domain.high))


def _layout(config: SweepConfig) -> Summary:
    """Charts for the Custom Scalars tab: train against validation, what is searched for, and each class's F1."""
    charts = [
        ("loss, train against validation", LOSSES),
        (config.metric, (f"validation/{config.metric}",)),
        ("F1 by class", ("f1/.*",)),
    ]
    made = [
        layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags)) for title, tags in charts
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="rayft", chart=made)])
    return _tensor(
        layout_metadata.CONFIG_SUMMARY_TAG, layout_metadata.create_summary_metadata(), layout.SerializeToString()
    )


def _text(tag: str, markdown: str) -> Summary:
    return _tensor(tag, text_metadata.create_summary_metadata(display_name=tag, description=""), markdown.encode())


def _tensor(tag: str, about: SummaryMetadata, content: bytes) -> Summary:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=shape)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)])

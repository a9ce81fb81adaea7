import io
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler as ListSessionGroups

from rayft.config import SweepConfig
from rayft.config_tasks import TASK_RULES
from rayft.report.confusion import CELL, MARGIN
from rayft.report.tensorboard import TrialEvents
from rayft.sweep.trial_record import TrialRecord
from rayft.sweep_file import dump_sweep
from rayft.training.results import CurvePoint, EpochResult, Histogram

METRICS = TASK_RULES["text-classification"].metrics

PARAMS = {"strategy": "partial", "learning_rate": 3e-4, "batch_size": 32, "freeze_depth": 2, "max_grad_norm": None}


def epoch_result(epoch: int, value: float) -> EpochResult:
    curve = tuple(CurvePoint(10 * (epoch - 1) + step, 1.0 / (10 * (epoch - 1) + step), 1e-4 * step) for step in (5, 10))
    return EpochResult(
        epoch=epoch,
        metrics=dict.fromkeys(METRICS, value),
        train_loss=0.5,
        curve=curve,
        seconds=8.0,
        samples_per_second=40.0,
        padding=0.1,
    )


def complete(number: int) -> TrialRecord:
    metrics = {"loss": 0.25, **dict.fromkeys(METRICS[1:], 0.75)}
    return TrialRecord(
        number=number, state="complete", params=PARAMS, value=0.75, best_epoch=2, epochs=3, metrics=metrics
    )


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def plugin_data(folder: Path, tag: str) -> plugin_data_pb2.HParamsPluginData:
    content = read(folder).SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in read(folder).Scalars(tag)]


def test_curves_have_optimiser_steps_and_metrics_have_epochs(tmp_path: Path, config: SweepConfig) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(4, PARAMS)
        events.epoch(4, epoch_result(1, 0.5))
        events.epoch(4, epoch_result(2, 0.75))
        folder = tmp_path / "trials/4"
        # read while the trial still runs
        assert scalars(folder, "train/loss") == [(5, 1 / 5), (10, 1 / 10), (15, 1 / 15), (20, 1 / 20)]
        assert scalars(folder, "train/learning_rate") == [(5, 5e-4), (10, 1e-3), (15, 5e-4), (20, 1e-3)]
        assert scalars(folder, "train/samples_per_second") == [(1, 40.0), (2, 40.0)]
        assert [step for step, _ in scalars(folder, "train/padding")] == [1, 2]
        for metric in METRICS:
            assert scalars(folder, f"validation/{metric}") == [(1, 0.5), (2, 0.75)]


def test_points_of_a_curve_are_spread_over_the_time_of_their_epoch(tmp_path: Path, config: SweepConfig) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(0, PARAMS)
        events.epoch(0, epoch_result(1, 0.5))
    first, last = read(tmp_path / "trials/0").Scalars("train/loss")
    assert last.wall_time - first.wall_time == pytest.approx(4.0)


def test_final_metrics_are_those_of_the_best_epoch(tmp_path: Path, config: SweepConfig) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(0, PARAMS)
        events.epoch(0, epoch_result(1, 0.5))
        events.trial_ended(complete(0))
    assert scalars(tmp_path / "trials/0", "best/macro_f1") == [(2, 0.75)]
    assert scalars(tmp_path / "trials/0", "best/loss") == [(2, 0.25)]


def test_losses_of_an_epoch_share_a_chart_and_the_sweep_is_there_to_read(tmp_path: Path, config: SweepConfig) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(0, PARAMS)
        events.epoch(0, epoch_result(1, 0.25))
    assert scalars(tmp_path / "trials/0", "loss/train") == [(1, 0.5)]
    assert scalars(tmp_path / "trials/0", "loss/validation") == [(1, 0.25)]
    told = read(tmp_path / "trials")
    (content,) = told.Tensors(layout_metadata.CONFIG_SUMMARY_TAG)[0].tensor_proto.string_val
    (category,) = layout_pb2.Layout.FromString(content).category
    assert [list(chart.multiline.tag) for chart in category.chart] == [
        ["loss/train", "loss/validation"],
        ["validation/macro_f1"],
        ["f1/.*"],
    ]
    (text,) = told.Tensors("sweep.yaml")[0].tensor_proto.string_val
    assert text.decode() == f"```yaml\n{dump_sweep(config, defaults=True)}\n```"
    assert told.SummaryMetadata("sweep.yaml").plugin_data.plugin_name == "text"


def test_classes_have_an_f1_each_and_the_best_epoch_a_confusion_matrix(tmp_path: Path, config: SweepConfig) -> None:
    (tmp_path / "encoded").mkdir()
    (tmp_path / "encoded/manifest.json").write_text(json.dumps({"label_names": ["no", "yes", "never"]}))
    counts = {1: [[1, 3, 0], [0, 4, 0], [0, 0, 0]], 2: [[4, 0, 0], [1, 3, 0], [0, 0, 0]]}
    with TrialEvents(tmp_path, config) as events:
        for epoch, confusion in counts.items():
            events.trial_started(0, PARAMS)
            events.epoch(0, replace(epoch_result(epoch, 0.5), confusion=confusion))
        events.trial_ended(complete(0))
    assert scalars(tmp_path / "trials/0", "f1/no") == [(1, 2 / 5), (2, 8 / 9)]
    assert scalars(tmp_path / "trials/0", "f1/yes") == [(1, 8 / 11), (2, 6 / 7)]
    assert scalars(tmp_path / "trials/0", "f1/never") == [(1, 0.0), (2, 0.0)]
    (shown,) = read(tmp_path / "trials/0").Images("validation/confusion")
    assert shown.step == 2
    picture = Image.open(io.BytesIO(shown.encoded_image_string)).convert("L")
    first = MARGIN + CELL // 4
    shades = [[picture.getpixel((first + CELL * column, first + CELL * row)) for column in (0, 1)] for row in (0, 1)]
    assert shades[0][0] < shades[1][1] < shades[1][0] < shades[0][1] == 255


def test_hparams_tab_gets_the_search_space_once(tmp_path: Path, config: SweepConfig) -> None:
    for _ in range(2):  # a resumed run describes it no second time
        TrialEvents(tmp_path, config).close()
    assert len(list((tmp_path / "trials").glob("events.out.tfevents.*"))) == 1
    experiment = plugin_data(tmp_path / "trials", metadata.EXPERIMENT_TAG).experiment
    infos = {info.name: info for info in experiment.hparam_infos}
    assert list(infos) == list(config.search_space)
    assert list(infos["strategy"].domain_discrete) == ["full", "partial"]
    assert list(infos["batch_size"].domain_discrete) == [16, 32]
    assert list(infos["max_grad_norm"].domain_discrete) == ["1", "null"]
    assert infos["max_grad_norm"].type == api_pb2.DATA_TYPE_STRING
    assert infos["learning_rate"].domain_interval.max_value == 1e-3
    assert infos["freeze_depth"].domain_interval.min_value == 1
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags[0] == "best/macro_f1"  # the searched one
    assert sorted(tags) == sorted(f"best/{name}" for name in METRICS)


@pytest.mark.parametrize(
    ("state", "status"),
    [("complete", api_pb2.STATUS_SUCCESS), ("pruned", api_pb2.STATUS_SUCCESS), ("failed", api_pb2.STATUS_FAILURE)],
)
def test_hparams_tab_gets_every_searched_parameter_and_the_status(
    tmp_path: Path, config: SweepConfig, state: str, status: int
) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(3, PARAMS)
        events.trial_ended(replace(complete(3), state=state))  # type: ignore[arg-type]
    start = plugin_data(tmp_path / "trials/3", metadata.SESSION_START_INFO_TAG).session_start_info
    assert start.group_name == "3"
    values = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert values == {
        "strategy": "partial",
        "learning_rate": 3e-4,
        "batch_size": 32,
        "freeze_depth": 2,
        "max_grad_norm": "null",
    }
    end = plugin_data(tmp_path / "trials/3", metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == status
    assert end.end_time_secs >= start.start_time_secs


def test_a_trial_that_fails_before_its_first_epoch_is_shown_without_metrics(
    tmp_path: Path, config: SweepConfig
) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_ended(TrialRecord(number=0, state="failed", params=PARAMS, reason="out of memory"))
    assert read(tmp_path / "trials/0").Tags()["scalars"] == []
    end = plugin_data(tmp_path / "trials/0", metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == api_pb2.STATUS_FAILURE


def test_steps_that_are_done_again_replace_the_lost_ones(tmp_path: Path, config: SweepConfig) -> None:
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(0, PARAMS)
        for epoch in (1, 2, 2):  # a worker was lost, its second epoch is done again
            events.epoch(0, epoch_result(epoch, 0.5))
        events.trial_started(0, PARAMS)
        events.epoch(0, epoch_result(3, 0.5))
    with TrialEvents(tmp_path, config) as events:  # the driver was killed before it knew of the third
        events.trial_started(0, PARAMS)
        events.epoch(0, epoch_result(3, 0.5))
    assert [step for step, _ in scalars(tmp_path / "trials/0", "train/loss")] == [5, 10, 15, 20, 25, 30]


def test_open_files_take_no_threads(tmp_path: Path, config: SweepConfig) -> None:
    before = threading.active_count()
    with TrialEvents(tmp_path, config) as events:
        for number in range(4):
            events.trial_started(number, PARAMS)
        assert threading.active_count() == before


def test_files_are_read_in_the_order_in_which_they_were_written(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)  # many within one second
    for number in range(1, 13):
        with TrialEvents(tmp_path, config) as events:
            events.trial_started(0, PARAMS)
            events.epoch(0, epoch_result(number, number / 20))
    found = scalars(tmp_path / "trials/0", "validation/loss")
    assert found == [(number, number / 20) for number in range(1, 13)]


def test_writing_events_loads_no_torch() -> None:
    code = "import sys, rayft.report.tensorboard, rayft.report.progress; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hparams_tab_lists_each_trial_with_its_parameters_and_final_metric(
    tmp_path: Path, config: SweepConfig
) -> None:
    with TrialEvents(tmp_path, config) as events:
        for number in (0, 1):
            events.trial_started(number, PARAMS)
            events.epoch(number, epoch_result(1, 0.5))
            events.trial_ended(replace(complete(number), metrics=dict.fromkeys(METRICS, 0.6 + number / 10)))
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    tab = Context(TBContext(data_provider=provider))
    column = api_pb2.ColParams(metric=api_pb2.MetricName(tag="best/macro_f1"), order=api_pb2.ORDER_DESC)
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS], col_params=[column], slice_size=10
    )
    groups = ListSessionGroups(RequestContext(), tab, "", request).run().session_groups
    assert [group.name for group in groups] == ["1", "0"]  # as a click on the column's title sorts them
    for group, value in zip(groups, (0.7, 0.6), strict=True):
        assert set(group.hparams) == set(PARAMS)
        shown = {metric.name.tag: metric.value for metric in group.metric_values}
        assert shown == {f"best/{name}": pytest.approx(value) for name in METRICS}


def test_histograms_are_what_tensorboard_draws(tmp_path: Path, config: SweepConfig) -> None:
    one = Histogram(-1.0, 2.0, (1, 0, 5), 6.5, 13.25)
    constant = Histogram(1.0, 1.0, (4,), 4.0, 4.0)
    with TrialEvents(tmp_path, config) as events:
        events.trial_started(0, PARAMS)
        for epoch in (1, 2):
            result = epoch_result(epoch, 0.5)
            events.epoch(0, replace(result, histograms={"weights/head": one, "gradients/norm": constant}))
    found = EventAccumulator(str(tmp_path / "trials/0"), size_guidance={"histograms": 0})  # all of them
    found.Reload()
    assert found.Tags()["histograms"] == ["weights/head", "gradients/norm"]
    first, second = found.Histograms("weights/head")
    assert (first.step, second.step) == (1, 2)
    drawn = first.histogram_value
    assert (drawn.min, drawn.max, drawn.num, drawn.sum, drawn.sum_squares) == (-1.0, 2.0, 6, 6.5, 13.25)
    assert (drawn.bucket_limit, drawn.bucket) == ([0.0, 1.0, 2.0], [1, 0, 5])
    assert found.Histograms("gradients/norm")[0].histogram_value.bucket == [4]


def test_a_repeat_of_the_last_stage_has_curves_and_no_row_among_the_hyperparameters(
    tmp_path: Path, config: SweepConfig
) -> None:
    with TrialEvents(tmp_path, config, lambda number: "final" if number == 1 else "search") as events:
        for number in (0, 1):
            events.trial_started(number, PARAMS)
            events.epoch(number, epoch_result(1, 0.5))
            events.trial_ended(replace(complete(number), role="final" if number == 1 else "search"))
    plugins = [read(tmp_path / "trials" / str(number)).Tags() for number in (0, 1)]
    assert all("validation/accuracy" in tags["scalars"] for tags in plugins)
    hparams = [read(tmp_path / "trials" / str(number)).summary_metadata.keys() & HPARAM_TAGS for number in (0, 1)]
    assert hparams == [HPARAM_TAGS, set()]


HPARAM_TAGS = {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}

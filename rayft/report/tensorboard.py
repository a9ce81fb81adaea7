"""TensorBoard events of every trial: curves, and the HParams tab.

Written with TensorBoard's own writer and messages, so that the process that writes them needs no torch.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.summary.writer.record_writer import RecordWriter

from rayft.config import SweepConfig, Value
from rayft.data.encoded import MANIFEST
from rayft.report.confusion import confusion_png
from rayft.report.tensorboard_about import LOSSES, about, hparam_value
from rayft.sweep.trial_record import Role
from rayft.training.results import EpochResult, Histogram

if TYPE_CHECKING:
    from rayft.sweep.trial_record import TrialRecord

_unique = count()


class _EventFile:
    """A new event file.

    TensorBoard's own writer has a thread for each file, which every event has to be handed to, and waited for before a
    reader sees it. Here events come in a bunch after each epoch, and are written at once.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The order of names is the order of reading, for a trial that goes on in a second file.
        name = f"events.out.tfevents.{int(time.time()):010}.{platform.node()}.{os.getpid()}.{next(_unique):06}"
        self._records = RecordWriter((folder / name).open("wb"))
        source = SourceMetadata(writer="rayft.report.tensorboard")
        self.write(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))

    def write(self, *events: Event) -> None:
        """Adds events, which a reader sees at once."""
        for event in events:
            self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Ends the file."""
        self._records.close()


@dataclass
class _Session:
    """The open event file of a running trial, the epoch that it has come to, and who was taken for whom in each."""

    file: _EventFile
    epoch: int | None = None
    confusions: dict[int, list[list[int]]] = field(default_factory=dict)


class TrialEvents:
    """Writes `trials/<number>/events.out.tfevents.*` of one run.

    Per optimiser step `train/loss` and `train/learning_rate`; per epoch `validation/<metric>`, `loss/train` and
    `loss/validation`, which share a chart, `train/samples_per_second`, `train/padding`, the fraction of tokens that is
    padding, where there are classes `f1/<class>`, and with `training.histograms` those of `weights/<tensor>` and
    `gradients/<tensor>`; at a trial's end `best/<metric>`, the metrics of its best epoch,
    which are also the HParams tab's, and the confusion matrix of that epoch as a picture.
    """

    def __init__(self, run: Path, config: SweepConfig, role_of: Callable[[int], Role] = lambda _: "search") -> None:
        """Describes the sweep to TensorBoard, once in a run's life.

        Args:
            run: The run folder.
            config: Its sweep.
            role_of: Whether a trial is of the search; others have curves, and no row in the HParams tab.
        """
        self._role_of = role_of
        self._trials = run / "trials"
        self._manifest = run / config.encoded_folder(config.models[0]) / MANIFEST
        self._space = config.space
        self._sessions: dict[int, _Session] = {}
        if not any(self._trials.glob("events.out.tfevents.*")):
            file = _EventFile(self._trials)
            file.write(Event(wall_time=time.time(), step=0, summary=about(config)))
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Opens the trial's event file, or goes on in the one that is open."""
        if number in self._sessions:
            return
        session = self._sessions[number] = _Session(_EventFile(self._trials / str(number)))
        if self._role_of(number) == "search":
            values = {name: hparam_value(self._space[name], value) for name, value in params.items()}
            summary = summary_v2.hparams_pb(values, trial_id=str(number))
            session.file.write(Event(wall_time=time.time(), step=0, summary=summary))

    def epoch(self, number: int, result: EpochResult) -> None:
        """Writes an epoch's curve and metrics; what an earlier, lost attempt wrote for the same steps gives way."""
        session = self._sessions[number]
        now = time.time()
        events: list[Event] = []
        if session.epoch != result.epoch - 1:  # a new file, or an epoch that is done again after a worker was lost
            restart = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=result.curve[0][0], session_log=restart))
        for index, (step, loss, rate) in enumerate(result.curve, start=1):
            wall_time = now - result.seconds * (1 - index / len(result.curve))
            events.append(_scalars(step, {"train/loss": loss, "train/learning_rate": rate}, wall_time))
        values = {f"validation/{name}": value for name, value in result.metrics.items()}
        values |= dict(zip(LOSSES, (result.train_loss, result.metrics["loss"]), strict=True))
        values |= {"train/samples_per_second": result.samples_per_second, "train/padding": result.padding}
        if result.confusion is not None:
            values |= {f"f1/{name}": f1 for name, f1 in zip(self._classes, _class_f1(result.confusion), strict=True)}
            session.confusions[result.epoch] = result.confusion
        drawn = [_histogram(result.epoch, name, one) for name, one in (result.histograms or {}).items()]
        session.file.write(*events, _scalars(result.epoch, values, now), *drawn)
        session.epoch = result.epoch

    def trial_ended(self, record: "TrialRecord") -> None:
        """Writes the trial's metrics for the HParams tab and closes its file."""
        self.trial_started(record.number, record.params)
        session = self._sessions.pop(record.number)
        file = session.file
        if record.best_epoch is not None:
            values = {f"best/{name}": value for name, value in record.measured.items()}
            file.write(_scalars(record.best_epoch, values, time.time()))
            if counts := session.confusions.get(record.best_epoch):
                file.write(_picture(record.best_epoch, "validation/confusion", confusion_png(counts, self._classes)))
        if record.role == "search":
            file.write(Event(wall_time=time.time(), step=0, summary=_session_end(record.state == "failed")))
        file.close()

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return tuple(json.loads(self._manifest.read_text(encoding="utf-8"))["label_names"])

    def close(self) -> None:
        """Closes the files of trials that are still running."""
        while self._sessions:
            self._sessions.popitem()[1].file.close()


def _scalars(step: int, values: Mapping[str, float], wall_time: float) -> Event:
    pairs = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=pairs))


def _histogram(step: int, tag: str, histogram: Histogram) -> Event:
    low, high, counts, total, squares = histogram
    width = (high - low) / len(counts)
    proto = HistogramProto(min=low, max=high, num=sum(counts), sum=total, sum_squares=squares)
    proto.bucket_limit.extend([low + width * index for index in range(1, len(counts))] + [high])
    proto.bucket.extend(counts)
    value = Summary.Value(tag=tag, histo=proto)
    return Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))


def _picture(step: int, tag: str, png: bytes) -> Event:
    value = Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=png))
    return Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))


def _class_f1(confusion: list[list[int]]) -> list[float]:
    """Each class's F1; 0 for a class that is neither true nor predicted of any row."""
    true, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    hits = [row[index] for index, row in enumerate(confusion)]
    return [2 * hit / max(1, one + other) for hit, one, other in zip(hits, true, predicted, strict=True)]


def _session_end(failed: bool) -> Summary:
    # summary_v2 has no message for it, and the older module that has one needs tensorflow
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    end = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    return Summary(value=[end])

"""`rayft predict`: a file's rows through an exported model, chunk by chunk, into a new file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayft.config import Columns, TaskName
from rayft.data.cells import BadRow
from rayft.data.check import quoted, row_count
from rayft.data.chunks import Chunk, ChunkedFile, open_chunked
from rayft.data.formats import MAX_PLACES, first_line, first_places, suffix_rule
from rayft.data.load import no_such_file
from rayft.errors import DataError, Fault, UserError
from rayft.export.record import ModelRecord, read_record
from rayft.predict.base import Answer, Predictor, Row
from rayft.predict.model import find_model, load_pipeline
from rayft.predict.next_tokens import NextTokens
from rayft.predict.output import WRITERS, writing
from rayft.predict.progress import RowProgress
from rayft.predict.whole import ImageClasses, Numbers, SeveralLabels, TextClasses
from rayft.predict.words import Tags
from rayft.tasks import get_task

if TYPE_CHECKING:
    from rayft.tasks.base import Task

PREDICTORS: dict[TaskName, type[Predictor]] = {
    "text-classification": TextClasses,
    "multi-label-classification": SeveralLabels,
    "regression": Numbers,
    "token-classification": Tags,
    "causal-lm": NextTokens,
    "image-classification": ImageClasses,
}


@dataclass
class Predicted:
    """What has been written.

    Attributes:
        to: The file.
        rows: How many rows it has.
        bad: How many of them have no prediction.
        places: Where the first of these are, and why; one more than is shown.
    """

    to: Path
    rows: int = 0
    bad: int = 0
    places: list[str] = field(default_factory=list)

    def add_bad(self, place: str, bad: BadRow) -> None:
        """Counts a row without a prediction."""
        self.bad += 1
        if len(self.places) <= MAX_PLACES:
            self.places.append(f"{place} ({bad})")

    def __str__(self) -> str:
        without = f", {self.bad} of them without a prediction: {first_places(self.places)}" if self.bad else ""
        return f"wrote {self.to}: {row_count(self.rows)}{without}"


def predict(
    model: str,
    file: str,
    to: Path | None,
    columns: Sequence[str],
    batch_size: int,
    generate: int | None,
    *,
    overwrite: bool,
) -> Predicted:
    """Writes a file's rows and what a model says about them.

    Args:
        model: A model folder or a run folder.
        file: A file of a kind that the model's task reads, or a folder of images.
        to: The new file; one beside `file` if None.
        columns: The columns of the model's inputs, if not those of its sweep.
        batch_size: Rows that go through the model at once.
        generate: How many tokens texts are continued by, if they are.
        overwrite: Whether to replace an earlier file.

    Raises:
        UserError: Something is wrong with what was given; nothing is written.
    """
    path = Path(file).expanduser()
    folder, target, _ = _together(
        lambda: find_model(model), lambda: _target(path, to, overwrite), lambda: _check_exists(path, file)
    )
    record = read_record(folder)
    task, kind = get_task(record.task), PREDICTORS[record.task]
    inputs, _ = _together(lambda: _input_columns(task, record, columns), lambda: _check_generate(record, generate))
    source = _opened(path, file, inputs, record, task, kind.rows_per_chunk)
    import torch

    from rayft.models.load import quiet  # loads transformers, which typos needn't wait for

    with quiet():
        pipe = load_pipeline(folder, task)
        predictor = NextTokens(pipe, "messages" in inputs, generate) if kind is NextTokens else kind(pipe)
        _check_new(source, predictor)
        try:
            return _predict(source, list(inputs.values()), task, predictor, batch_size, target)
        except torch.OutOfMemoryError as error:
            rule = f"must be less, as {row_count(batch_size)} at once don't fit the GPU's memory"
            raise UserError([Fault("--batch-size", rule)]) from error


def _predict(
    source: ChunkedFile, inputs: Sequence[str], task: "Task", predictor: Predictor, batch_size: int, to: Path
) -> Predicted:
    done = Predicted(to)
    with writing(to, source, predictor.columns, _word_columns(source, task)) as writer, RowProgress(source.rows) as bar:
        for chunk in source.read():
            answers = _answers(chunk, inputs, task, predictor, batch_size, bar)
            done.rows += len(chunk)
            for row, answer in enumerate(answers):
                if isinstance(answer, BadRow):
                    done.add_bad(chunk.part.place(row), answer)
            nothing = (None,) * len(predictor.columns)
            values = zip(*(nothing if isinstance(one, BadRow) else one for one in answers), strict=True)
            writer.write(chunk, dict(zip(predictor.columns, map(list, values), strict=True)))
        if done.bad == done.rows:
            rule = f"must have a row to predict, but all {done.rows} are bad: {first_places(done.places)}"
            raise DataError([Fault(source.name, rule)])
    return done


def _answers(
    chunk: Chunk, inputs: Sequence[str], task: "Task", predictor: Predictor, batch_size: int, bar: RowProgress
) -> list[Answer | BadRow]:
    """An answer for each row, in their order; batches are of rows of like length."""
    read: list[Row | BadRow] = []
    for cells in zip(*map(chunk.cells, inputs), strict=True):
        try:
            read.append(task.read_inputs(cells, chunk.part))
        except BadRow as bad:
            read.append(bad)
    answers: dict[int, Answer | BadRow] = {row: one for row, one in enumerate(read) if isinstance(one, BadRow)}
    sound = {row: one for row, one in enumerate(read) if not isinstance(one, BadRow)}
    # The longest come first, so that what is too large for the memory is found at once.
    order = sorted(sound, key=lambda row: predictor.size(sound[row]), reverse=True)
    bar.advance(len(answers))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers |= zip(batch, predictor.answers([sound[row] for row in batch]), strict=True)
        bar.advance(len(batch))
    return [answers[row] for row in range(len(read))]


def _together(*checks: Callable[[], Any]) -> list[Any]:
    """What each check gives.

    Raises:
        UserError: What is wrong with all of them.
    """
    results: list[Any] = []
    faults: list[Fault] = []
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    return results


def _check_exists(path: Path, name: str) -> None:
    if not path.exists():
        raise DataError([Fault(name, no_such_file(path))])


def _target(path: Path, to: Path | None, overwrite: bool) -> Path:
    if to is None:
        whole = path.resolve()
        suffix = whole.suffix if whole.suffix.lower() in WRITERS and not whole.is_dir() else ".csv"
        to = path.parent / f"{whole.name if whole.is_dir() else whole.stem}-predictions{suffix}"
    rule = None
    if to.suffix.lower() not in WRITERS:
        rule = suffix_rule(to, WRITERS)
    elif to.is_dir():
        rule = "must be a file, but is a folder"
    elif to.exists() and path.exists() and to.samefile(path):
        rule = "must be another file than the one that is read"
    elif to.exists() and not overwrite:
        rule = "is there already; --overwrite replaces it, --to writes elsewhere"
    elif not to.parent.is_dir():
        rule = f"there is no folder {to.parent}"
    if rule is not None:
        raise DataError([Fault(str(to), rule, "--to")])
    return to


def _input_columns(task: "Task", record: ModelRecord, columns: Sequence[str]) -> dict[str, str]:
    """The column of each of the model's inputs."""
    inputs = task.input_columns(record.columns or Columns())
    if record.columns is None and len(columns) == 2:  # an old export doesn't say whether it is for pairs
        inputs = task.input_columns(Columns(text=(columns[0], columns[1])))
    if columns and (len(columns) != len(inputs) or len(set(columns)) < len(columns)):
        how_many = "a column" if len(inputs) == 1 else f"{len(inputs)} different columns"
        rule = f"the model reads {how_many} ({quoted(list(inputs.values()))} in its sweep), but got {quoted(columns)}"
        raise DataError([Fault("--column", rule)])
    return dict(zip(inputs, columns or inputs.values(), strict=True))


def _check_generate(record: ModelRecord, generate: int | None) -> None:
    if generate is not None and record.task != "causal-lm":
        raise UserError([Fault("--generate", f"is for models of task causal-lm, but this one's is {record.task}")])


def _opened(
    path: Path, name: str, inputs: Mapping[str, str], record: ModelRecord, task: "Task", rows: int
) -> ChunkedFile:
    others = [name for name in task.label_columns(record.columns or Columns()) if name not in inputs.values()]
    try:
        return open_chunked(path, name, list(inputs.values()), others, task, rows, "--column")
    except OSError as error:
        raise DataError([Fault(name, f"can't be read: {error.strerror or first_line(error)}")]) from error


def _check_new(source: ChunkedFile, predictor: Predictor) -> None:
    there = [name for name in predictor.columns if name in source.columns]
    if there:
        rule = f"must have no columns of the names of predictions, but has {quoted(there)}; rename them"
        raise DataError([Fault(source.name, rule)])


def _word_columns(source: ChunkedFile, task: "Task") -> frozenset[str]:
    """The columns that csv has as words with spaces between them: those of files that had no other way either."""
    if task.name != "token-classification":
        return frozenset()
    of_source = source.columns if source.path.suffix.lower() not in WRITERS else ()
    return frozenset({"prediction", "probability", *of_source})

"""From `data.train` and its like to rows: files, globs, lists, saved data sets and data sets of the hub."""

import difflib
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayft.config import Source, as_list
from rayft.data.formats import Part, first_line, read_file, table_part
from rayft.errors import DataError, Fault

if TYPE_CHECKING:
    from datasets import Dataset

    from rayft.tasks.base import Task

SplitName = Literal["train", "validation", "test", "unlabeled"]

SPLITS_OF_SAVED: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("test",),
    "unlabeled": ("unlabeled", "unsupervised", "train"),
}
"""Which split of a saved data set, or one of the hub, is taken for what: the first that it has."""

HUB = "hub:"
SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")


def read_source(
    source: Source, split: SplitName, wanted: Sequence[str], task: "Task"
) -> tuple[list[Part], list[Fault]]:
    """Reads everything that a source names.

    Args:
        source: The value of `data.train`, `data.validation`, `data.test` or `data.unlabeled`; paths are relative to
            the current working directory.
        split: Which of these it is.
        wanted: The columns to keep.
        task: What the rows are for, and so which files may hold them.

    Returns:
        What could be read, in order, and the faults of what couldn't.
    """
    parts: list[Part] = []
    names, faults = resolve_source(source, f"data.{split}")
    for name in names:
        try:
            parts.append(_read_one(name, split, wanted, task))
        except DataError as error:
            faults += error.faults
        except OSError as error:
            faults.append(Fault(name, f"can't be read: {error.strerror or first_line(error)}", f"data.{split}"))
    return parts, faults


def source_name(source: Source) -> str:
    """What messages call a source as a whole."""
    items = as_list(source)
    return items[0] if len(items) == 1 else f"{items[0]} and {len(items) - 1} more"


def resolve_source(source: Source, key: str) -> tuple[list[str], list[Fault]]:
    """The files, folders and hub names of a source, each once; a glob's files sorted by name."""
    names: list[str] = []
    faults: list[Fault] = []
    if not source:
        faults.append(Fault(key, "must name a file, a glob, a saved dataset folder or hub:NAME"))
        return names, faults
    for item in as_list(source):
        if item.startswith(HUB) or Path(item).expanduser().exists():
            names.append(item)
        elif glob.has_magic(item):
            matches = glob.glob(str(Path(item).expanduser()), recursive=True)  # noqa: PTH207, Path.glob refuses absolute ones
            files = sorted(name for name in matches if Path(name).is_file())
            names += files
            if not files:
                faults.append(Fault(item, f"no file matches, seen from {Path.cwd()}", key))
        else:
            faults.append(Fault(item, no_such_file(Path(item).expanduser()), key))
    return list(dict.fromkeys(names)), faults


def no_such_file(path: Path) -> str:
    """That a file is missing, and which may have been meant."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}, seen from {Path.cwd()}"
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else f", seen from {Path.cwd()}"
    return f"there is no such file{hint}"


def _read_one(name: str, split: SplitName, wanted: Sequence[str], task: "Task") -> Part:
    if name.startswith(HUB):
        return _read_hub(name, split, wanted)
    path = Path(name).expanduser()
    if not path.is_dir():
        return read_file(path, name, wanted, task.readers)
    if not any((path / file).is_file() for file in SAVED_DATASET_FILES):
        if part := task.read_folder(path, name, wanted, split):
            return part
        rule = "a folder must be one that datasets' save_to_disk wrote"
        raise DataError([Fault(name, f"{rule}; for the files in it, give a glob: {path / '*.csv'}", f"data.{split}")])
    return _read_saved(path, name, split, wanted)


def _read_saved(path: Path, name: str, split: SplitName, wanted: Sequence[str]) -> Part:
    import datasets  # takes over a second, and most sweeps read plain files

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError([Fault(name, f"can't be read as a saved data set: {first_line(error)}")]) from error
    return _dataset_part(saved, name, split, wanted)


def _read_hub(name: str, split: SplitName, wanted: Sequence[str]) -> Part:
    import datasets

    repository, _, config = name.removeprefix(HUB).partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError([Fault(name, f"can't be loaded: {first_line(error)}", f"data.{split}")]) from error
    return _dataset_part(loaded, name, split, wanted)


def _dataset_part(loaded: Any, name: str, split: SplitName, wanted: Sequence[str]) -> Part:
    if isinstance(loaded, dict):
        chosen = next((candidate for candidate in SPLITS_OF_SAVED[split] if candidate in loaded), None)
        if chosen is None:
            rule = f"must have a split {SPLITS_OF_SAVED[split][0]}, but has {', '.join(loaded)}"
            raise DataError([Fault(name, rule, f"data.{split}")])
        loaded, name = loaded[chosen], f"{name} {chosen}"
    kept = [column for column in wanted if column in loaded.column_names]
    table = loaded.select_columns(kept).with_format("arrow")[:]
    part = table_part(table, name, loaded.column_names, wanted)
    for column in kept:
        part.cells[column][:] = _class_names(loaded, column, part.cells[column])
    return part


def _class_names(dataset: "Dataset", column: str, cells: list[Any]) -> list[Any]:
    """A ClassLabel column's names instead of its numbers; the hub's -1 means that the label is withheld."""
    feature: Any = dataset.features[column]
    names = getattr(feature, "names", None)
    if names is not None:
        return [None if cell is None or cell < 0 else names[cell] for cell in cells]
    names = getattr(getattr(feature, "feature", None), "names", None)  # lists of them, such as a sentence's tags
    if names is not None:
        return [None if cell is None else [names[index] for index in cell] for cell in cells]
    return cells

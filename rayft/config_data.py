"""The data section of a sweep file: where the rows come from and how they become what the model reads."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from rayft.config_faults import must_be
from rayft.config_space import StrictModel, is_number


def _is_source(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _is_text_columns(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and len(value) == 2 and _is_source([*value]))


def _is_label_columns(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and len(value) >= 2 and _is_source([*value]))


_FILES = "a file, a glob, a list of files, a saved dataset folder or hub:NAME[:CONFIG]"
Source = Annotated[str | list[str], must_be(_FILES, _is_source)]
SourceOrFraction = Annotated[
    float | str | list[str],
    must_be(f"a fraction between 0 and 1, or {_FILES}", lambda v: _is_source(v) or (is_number(v) and 0 < v < 1)),
]
TextColumns = Annotated[
    str | Annotated[tuple[str, str], Strict(False)],  # YAML has lists only
    must_be("a column, or a list of two columns", _is_text_columns),
]
LabelColumns = Annotated[
    str | Annotated[tuple[str, ...], Strict(False)],
    must_be("a column, or a list of at least two columns of 0 and 1", _is_label_columns),
]


class Columns(StrictModel):
    """Which columns hold what; each task reads some of these."""

    text: TextColumns = "text"
    """The text column, or a list of two for pairs."""
    label: LabelColumns = "label"
    """The label column, a number's for regression; or one column of 0 and 1 for each of several labels."""
    tokens: str = "tokens"
    """Lists of words."""
    tags: str = "tags"
    """Lists of tags, one for each word."""
    messages: str | None = None
    """Chats, as lists of {role, content}, in place of text."""
    image: str = "image"
    """Images, as bytes or as paths from the file that names them."""


class DataConfig(StrictModel):
    """Where the rows come from and how they become what the model reads."""

    train: Source
    """A file, a glob, a list of files, a saved dataset folder, a folder of class folders, or hub:NAME[:CONFIG]."""
    validation: SourceOrFraction = 0.15
    """Files, or the fraction of train that is held out, stratified by label and seeded."""
    test: SourceOrFraction | None = None
    """Scored once, for the winner only."""
    unlabeled: Source | None = None
    """Rows without labels, which the adversarial strategy uses beside the labelled ones."""
    columns: Columns = Columns()
    max_length: int = Field(128, ge=4)
    """Tokens per row; what is longer is cut."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do where a row can't be used; dropped ones are counted."""
    sampling: Literal["shuffled", "stratified"] = "shuffled"
    """stratified gives each batch its share of every class; its price is more padding, from rows of unlike lengths."""
    class_weights: Literal["balanced"] | None = None
    """balanced gives each class the same weight in the loss, however few rows it has."""

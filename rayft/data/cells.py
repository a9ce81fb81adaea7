"""What a cell of a file may hold, and the words in which a bad one is refused."""

import math
import re
from typing import Any

EMPTY_TEXT, MISSING_LABEL, UNDECODABLE = "empty text", "missing label", "undecodable bytes"

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class BadRow(Exception):
    """Why a row can't be used.

    Attributes:
        reason: In a few words.
        detail: What it is about, such as a file.
        droppable: Whether it may befall single rows. If not, the column is not what the user thinks, and nothing but
            mending it helps.
    """

    def __init__(self, reason: str, detail: str = "", *, droppable: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.droppable = reason, detail, droppable

    def __str__(self) -> str:
        return f"{self.reason} {self.detail}".rstrip()


def text_of(cell: Any) -> str:
    """A text cell.

    Raises:
        BadRow: It is empty, no text, or holds bytes that are not UTF-8.
    """
    if is_missing(cell):
        raise BadRow(EMPTY_TEXT)
    if not isinstance(cell, str):
        raise BadRow(f"text is not a string, but {type(cell).__name__}", droppable=False)
    if LONE_SURROGATE.search(cell):
        raise BadRow(UNDECODABLE)
    return cell


def label_of(cell: Any) -> str:
    """A label's name; whole numbers are names too.

    Raises:
        BadRow: It is missing, or neither a name nor a whole number.
    """
    if is_missing(cell):
        raise BadRow(MISSING_LABEL)
    if isinstance(cell, str):
        if LONE_SURROGATE.search(cell):
            raise BadRow(UNDECODABLE)
        return cell.strip()
    if isinstance(cell, int) or (isinstance(cell, float) and cell.is_integer()):
        return str(
            int(cell) if isinstance(cell, float) else cell
        )  # pandas turns integers into floats if one is missing
    raise BadRow(f"label {str(cell)[:40]!r} is neither a name nor a whole number", droppable=False)


def number_of(cell: Any) -> float:
    """A number's cell.

    Raises:
        BadRow: It is missing, or no finite number.
    """
    if is_missing(cell):
        raise BadRow(MISSING_LABEL)
    if not is_number(cell) or not math.isfinite(float(cell)):
        raise BadRow(f"label {str(cell)[:40]!r} is not a number", droppable=False)
    return float(cell)


def is_missing(cell: Any) -> bool:
    """Whether there is nothing in it."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def is_number(cell: Any) -> bool:
    """Whether it is a number, or text that is one."""
    if isinstance(cell, str):
        return NUMBER.fullmatch(cell.strip()) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)

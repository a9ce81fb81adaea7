"""What the page is made of: sections of paragraphs, tables and figures, all as plain values.

Colours are names that begin with @, which the page's script replaces by those of the light or dark scheme.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Trace = dict[str, Any]
Layout = dict[str, Any]

SERIES = ("@c0", "@c1", "@c2", "@c3", "@c4", "@c5")
"""Colours that stay apart for those who don't see all of them (Okabe and Ito 2008)."""
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
STATE_COLORS = {"complete": "@c0", "pruned": "@c1", "failed": "@c3", "running": "@c2"}
STATE_SYMBOLS = {"complete": "circle", "pruned": "x", "failed": "triangle-down", "running": "diamond"}

NONE_SCORED = "No trial has finished an epoch without failing afterwards, so there is no score to show."

_LONGEST_LABEL = 32
_LOG_RATIO = 30.0
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( %)?|\d+[smh]\w*|-")


@dataclass(frozen=True)
class View:
    """One of several things that a figure can show, such as one metric of several.

    Attributes:
        name: What the reader chooses it by.
        data: The figure's traces.
        layout: What differs in the layout.
    """

    name: str
    data: list[Trace]
    layout: Layout = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure of plotly's.

    Attributes:
        id: Of the element that holds it.
        label: What it shows, for those who don't see it.
        data: Its traces.
        layout: Its layout, but for what the colour scheme decides.
        height: In pixels.
        min_width: In pixels; on a narrower screen it scrolls in its own box.
        views: What else it can show; its own traces are those of the first.
        choice: What is chosen among the views.
    """

    id: str
    label: str
    data: list[Trace]
    layout: Layout = field(default_factory=dict)
    height: int = 380
    min_width: int = 0
    views: tuple[View, ...] = ()
    choice: str = ""

    @classmethod
    def of_views(cls, id: str, label: str, views: Sequence[View], choice: str, layout: Layout, **size: int) -> "Figure":
        """A figure that shows the first of some views until the reader chooses another."""
        return cls(id, label, views[0].data, layout, views=tuple(views), choice=choice, **size)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: Titles.
        rows: Cells.
        title: What it shows; empty if that is clear.
        folded: Whether it opens on demand, such as a figure's values.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    folded: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only, and so are set flush right."""
        cells = zip(*self.rows, strict=True) if self.rows else (() for _ in self.columns)
        columns = zip(self.columns, cells, strict=True)
        return [bool(title and own) and all(map(_NUMBER.fullmatch, own)) for title, own in columns]


@dataclass(frozen=True)
class Section:
    """A part of the page with a title of its own.

    Attributes:
        id: What links lead to.
        title: Its heading.
        text: Paragraphs.
        missing: Why there is nothing to show, in one sentence.
        cards: Figures in large print: what it is, the value, and a remark.
        figures: Figures.
        tables: Tables.
        raw: Files to show as they are, by name.
    """

    id: str
    title: str
    text: Sequence[str] = ()
    missing: str = ""
    cards: Sequence[tuple[str, str, str]] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    raw: Sequence[tuple[str, str]] = ()


def plain(text: object) -> str:
    """Text that plotly shows as it is: its labels may hold tags otherwise."""
    return html.escape(str(text), quote=False)


def short(text: object, longest: int = _LONGEST_LABEL) -> str:
    """As `plain`, and too long a label without its middle: names of a kind differ at either end."""
    whole = str(text)
    if len(whole) <= longest:
        return plain(whole)
    end = (longest - 1) // 2
    return plain(f"{whole[: longest - 1 - end]}…{whole[-end:]}")


def number(value: float | None) -> str:
    """A score for people: four decimals, fewer of a large one, and of a tiny or huge one its digits."""
    if value is None:
        return "-"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"


def count(n: int, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def score_axis(title: str, values: Sequence[float], lower_is_better: bool) -> Layout:
    """The axis of a score, a loss of very unlike sizes on a logarithmic one."""
    return axis(title, **(log_ticks(values) if lower_is_better and is_wide(values) else {}))


def is_wide(values: Sequence[float]) -> bool:
    """Whether values differ so much that a linear axis would show the largest ones only."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO


def log_ticks(values: Sequence[float]) -> Layout:
    """A logarithmic axis with whole labels: plotly's own are 2 and 5 between the powers of ten, whichever these are."""
    low, high = min(values), max(values)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.4g}" for tick in ticks]}


def dot_size(dots: int) -> int:
    """Pixels of each of so many."""
    return 8 if dots <= 200 else 5


def axis(title: str, **more: Any) -> Layout:
    """An axis with a title."""
    return {"title": {"text": plain(title)}, "automargin": True, **more}

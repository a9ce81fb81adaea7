"""Writes docs/sweep-file.md, every key of a sweep file with its default, from the classes that read it."""

import ast
import inspect
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rayft.config import (
    ClusterConfig,
    Columns,
    DataConfig,
    EarlyStoppingConfig,
    FinalConfig,
    Hyperparameters,
    SearchConfig,
    SweepConfig,
    TrainingConfig,
)
from rayft.config_tasks import TASK_RULES

PAGE = Path(__file__).with_name("sweep-file.md")
SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("The file", SweepConfig, "Sections have keys of their own, below."),
    ("data", DataConfig, ""),
    ("data.columns", Columns, "Each task reads some of these."),
    ("training", TrainingConfig, "Beside these, every hyperparameter that isn't searched."),
    (
        "Hyperparameters, under training or search_space",
        Hyperparameters,
        "Under `training` a value is fixed. Under `search_space` it is searched: `[a, b]`, or `{low: , high: }` with "
        "`log: true` or `step:`; `when: {strategy: partial}` makes it conditional.",
    ),
    ("search", SearchConfig, ""),
    ("early_stopping", EarlyStoppingConfig, "`null` lets every trial train to its end."),
    ("final", FinalConfig, "`auto`, `off`, or a mapping of these."),
    ("cluster", ClusterConfig, ""),
)


def main() -> None:
    """Writes the page; with --check only says whether it is what would be written."""
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == text else f"{PAGE} is old; run: python docs/keys.py")
    PAGE.write_text(text, encoding="utf-8")


def page() -> str:
    """All of it, as Markdown."""
    parts = ["# Every key of a sweep file", "`python docs/keys.py` writes this page from the code that reads the file."]
    for title, model, remark in SECTIONS:
        shown = title if " " in title else f"`{title}`"
        parts += [f"## {shown}", *([remark] if remark else []), _table(model)]
    tasks = [
        [f"`{task}`", ", ".join(f"`{name}`" for name in rules.metrics), f"`{rules.default_metric}`"]
        for task, rules in TASK_RULES.items()
    ]
    parts += ["## Metrics of each task", _rows(["task", "measures", "searched for by default"], tasks)]
    return "\n\n".join(parts) + "\n"


def _table(model: type[BaseModel]) -> str:
    notes = _notes(model)
    inherited = {name for base in model.__mro__[1:] for name in getattr(base, "model_fields", {})}
    rows = []
    for name, field in model.model_fields.items():
        if name in inherited:
            continue
        default = field.get_default(call_default_factory=True)
        choices = ", ".join(f"`{choice}`" for choice in _choices(field.annotation))
        about = " ".join(part for part in (notes.get(name), choices and f"One of {choices}.") if part)
        rows.append([f"`{name}`", _default(default), about])
    return _rows(["key", "default", ""], rows)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "must be given"
    if isinstance(value, BaseModel):
        return "see below"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    return f"`{value}`"


def _choices(annotation: Any) -> list[str]:
    """What a key that takes a few words may be; nothing where it may be something else as well."""
    args = get_args(annotation)
    if get_origin(annotation) is Literal and len(args) > 1:
        return [str(choice) for choice in args]
    return []


def _notes(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field; Python itself keeps none."""
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(before.target, ast.Name)
            found[before.target.id] = inspect.cleandoc(str(after.value.value)).replace("\n", " ").replace("|", "\\|")
    return found


def _rows(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *rows))


if __name__ == "__main__":
    main()

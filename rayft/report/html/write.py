"""Writes the page: the template, the figures as JSON, and plotly.js once."""

import base64
import hashlib
import json
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import rayft
from rayft.config import MODEL, SweepConfig
from rayft.imports import swiftly
from rayft.report.html import (
    classes,
    compare,
    curves,
    front,
    parallel,
    residuals,
    search_figures,
    space_figures,
    summary,
    surroundings,
)
from rayft.report.html.facts import Facts, collect
from rayft.report.html.parts import Figure, Section, plain
from rayft.sweep.run_folder import write_atomically
from rayft.sweep.study import SweepStudy

REPORT = "report.html"


def write_report(run: Path, name: str, config: SweepConfig, study: SweepStudy, to: Path | None = None) -> Path:
    """Writes a run's report as it stands now.

    Args:
        run: The run folder.
        name: The run's name.
        config: Its sweep.
        study: Its study.
        to: The file; `report.html` in the run folder if None.

    Returns:
        The file.

    Raises:
        OSError: It can't be written.
    """
    target = to or run / REPORT
    write_atomically(target, page(collect(run, name, config, study)))
    return target


def page(facts: Facts) -> str:
    """The whole page."""
    sections = make_sections(facts)
    figures = {figure.id: _specification(figure) for section in sections for figure in section.figures}
    with swiftly():
        from plotly.offline import get_plotlyjs
    # What follows a tag's end would be markup, whatever a label holds.
    content = {
        "figures": figures,
        "trials": {record.number: plain(facts.trial_text(record)) for record in facts.records},
    }
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    plotly, script = get_plotlyjs().replace("\r\n", "\n"), _text("page.js")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(_text("page.html")).render(
        facts=facts,
        sections=sections,
        policy=_policy(plotly, script),
        style=Markup(_text("page.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        figures=Markup(data),
        model=", ".join(facts.shown(MODEL, model) for model in facts.config.models),
        version=rayft.__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def make_sections(facts: Facts) -> list[Section]:
    """All that the page tells, in its order."""
    shares = search_figures.importances(facts)
    sections = [
        summary.winner(facts),
        search_figures.history(facts),
        search_figures.importance(facts, shares),
        parallel.parallel(facts),
        space_figures.slices(facts, shares),
        space_figures.contour(facts, shares),
        compare.choices(facts, "strategy", "Strategy against strategy"),
        compare.cost(facts),
        curves.intermediate(facts),
        curves.leaders_curves(facts),
        residuals.residuals(facts) if facts.config.task == "regression" else classes.classes(facts),
        summary.failures(facts),
        summary.trials(facts),
        surroundings.surroundings(facts),
    ]
    if MODEL in facts.config.space:
        sections.insert(7, compare.choices(facts, MODEL, "Model against model"))
    repeated = summary.repeats(facts)
    chosen = [section for section in (repeated, front.front(facts)) if section is not None]
    return [sections[0], *chosen, *sections[1:]]


def _specification(figure: Figure) -> dict[str, Any]:
    views = [{"data": view.data, "layout": view.layout} for view in figure.views]
    return {"layout": figure.layout, "views": views or [{"data": figure.data, "layout": {}}]}


def _policy(*scripts: str) -> str:
    """What the page may do: run these very scripts, and reach nothing.

    plotly.js sets styles of elements, which has no hash; it makes pictures to save as data: and blob:.
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _text(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")

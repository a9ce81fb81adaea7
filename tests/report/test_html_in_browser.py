from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, chromium
from tests.report.runs import HOSTILE, Trial, best_of, classes, make_run, report_of
from tests.sweep.conftest import SPACE, sweep

pytestmark = pytest.mark.slow  # half a minute in all

DRAWN = """
return [...document.querySelectorAll(".js-plotly-plot")].map((plot) => {
  const drawn = plot.querySelector("svg.main-svg").getBoundingClientRect();
  const marks = plot.querySelectorAll(".point, .points path, .lines path, .hm image, .hm rect, .boxes path");
  return [plot.id, drawn.width, drawn.height, marks.length];
});
"""
TEXT_COLOR = "return getComputedStyle(document.querySelector('#history-figure .xtick text')).fill"
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as window:
        yield window


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every kind of figure, of a run whose names are long or markup."""
    models = ["/a/long/path/to/models/" + "x" * 80, HOSTILE]
    space = {**SPACE, "max_grad_norm": [None, 1.0]}
    config = sweep(epochs=9, space=space, search={"trials": 40}).model_copy(update={"model": models})
    lengths = (9, 1, 3)
    curves = [[0.5 + 0.01 * i - 0.2 / epoch for epoch in range(1, lengths[i % 3] + 1)] for i in range(36)]
    trials = [Trial(curve, seconds=1 + index) for index, curve in enumerate(curves)]
    trials += [Trial([0.4], "diverged", HOSTILE), Trial([], "error", "y" * 300), Trial([0.6], "running")]
    own = classes([HOSTILE, "a", "class of a long name that goes on", *"bcdefgh"])
    best = best_of(33, 9, {"accuracy": curves[33][-1], "loss": 0.1}, classes={"validation": own, "test": own})
    folder = make_run(tmp_path_factory.mktemp("whole") / "run", config, trials, best)
    return _written(folder)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a regression for two objectives whose best were trained again: figures that others don't have."""
    config = sweep(epochs=3, task="regression", search={"metric": ["spearman", "train_seconds"], "trials": 12})
    trials = [Trial([0.5, 0.6 + 0.02 * index, 0.6], seconds=1.0 + index % 5) for index in range(12)]
    own = [
        {"trial": number, "params": {}, "values": [0.7, 0.75], "mean": 0.725, "searched": 0.8} for number in (11, 10)
    ]
    default = {"trial": None, "params": {}, "values": [0.5, 0.6], "mean": 0.55, "searched": None}
    final = {"trial": 11, "configurations": own, "default": default, "words": ["trained again, and so on"]}
    pairs = [[index / 50, index / 60 + 0.1] for index in range(100)]
    best = best_of(12, 2, {"spearman": 0.75, "loss": 0.1}, final=final, pairs={"validation": pairs, "test": pairs})
    return _written(make_run(tmp_path_factory.mktemp("numbers") / "run", config, trials, best))


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on rows with several labels."""
    config = sweep(epochs=1, task="multi-label-classification")
    own = classes(["a", "b", "c"], predicted=False)
    best = best_of(0, 1, {"micro_f1": 0.9, "loss": 0.1}, classes={"validation": own, "test": own})
    folder = make_run(tmp_path_factory.mktemp("labels") / "run", config, [Trial([0.9]), Trial([0.8])], best)
    return _written(folder)


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that has just begun."""
    return _written(make_run(tmp_path_factory.mktemp("least") / "run", sweep(), [Trial([], "running")]))


def _written(folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(report_of(folder), encoding="utf-8")
    return path


def figures_of(browser: Browser) -> int:
    count: int = browser.run("return document.querySelectorAll('figure .plot').length")
    return count


OWN_FIGURES = {
    "whole": {"confusion-figure", "models-score"},
    "numbers": {"residuals-figure", "front-train_seconds", "repeats-figure"},
    "labels": {"scores-figure"},
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", OWN_FIGURES)
def test_every_figure_is_drawn_without_errors_requests_or_a_wide_page(
    browser: Browser, page: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(page), width, scheme=scheme)
    drawn = browser.run(DRAWN)
    assert len(drawn) == figures_of(browser) >= (17 if page == "whole" else 5)
    assert {name for name, *_ in drawn} >= OWN_FIGURES[page]
    for name, own_width, height, marks in drawn:
        assert own_width > 200 and height > 150 and marks > 0, name
    assert browser.errors() == []
    assert all(url.startswith(("file:///", "data:", "blob:")) for url in browser.requests())
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return window.hacked") is None


def test_a_run_that_has_just_begun_has_a_page_too(browser: Browser, least: Path) -> None:
    browser.open(least, 390)
    assert browser.errors() == [] and figures_of(browser) == 0
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.run("return document.querySelectorAll('section').length") == 14


def test_figures_follow_the_scheme_and_the_width_while_they_are_looked_at(browser: Browser, whole: Path) -> None:
    browser.open(whole, 1280, scheme="light")
    light = browser.run(TEXT_COLOR), browser.run(BACKGROUND)
    browser.prefer("dark")
    browser.wait(lambda: browser.run(TEXT_COLOR) != light[0])
    assert browser.run(BACKGROUND) != light[1]
    wide = {name: size for name, size, *_ in browser.run(DRAWN)}
    browser.resize(700)
    browser.wait(
        lambda: {name: size for name, size, *_ in browser.run(DRAWN)}["history-figure"] < wide["history-figure"]
    )
    assert browser.run("return document.documentElement.scrollWidth") <= 700
    assert browser.errors() == []


def test_each_metric_and_split_can_be_chosen(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    choose = (
        "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    title = "return document.querySelector('#curves-figure .ytitle').textContent"
    assert browser.run(title) == "accuracy"
    browser.run(choose, "select[data-figure=curves-figure]", "1")
    browser.wait(lambda: browser.run(title) == "loss")
    browser.run(choose, "select[data-figure=confusion-figure]", "1")
    assert browser.errors() == []


def test_what_is_chosen_stays_when_the_scheme_changes(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    browser.run("const s = document.querySelector('select'); s.value = '1'; s.dispatchEvent(new Event('change'))")
    browser.prefer("dark")
    title = "return document.querySelector('#curves-figure .ytitle').textContent"
    browser.wait(lambda: browser.run(title) == "loss")


def test_labels_that_are_markup_are_read_as_they_are(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    ticks = browser.run("return document.querySelector('#confusion-figure').textContent")
    assert "<img src=…" in ticks and "&lt;" not in ticks
    assert browser.run("return document.querySelectorAll('img').length") == 0


def test_contents_lead_to_each_section(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    links = browser.run("return [...document.querySelectorAll('nav a')].map((link) => link.hash)")
    assert links == browser.run("return [...document.querySelectorAll('section')].map((own) => '#' + own.id)")


def test_without_scripts_all_values_can_still_be_read(whole: Path) -> None:
    text = whole.read_text(encoding="utf-8")
    assert "The figures need JavaScript; their values are in the tables." in text
    assert text.count("<table>") >= 12

import base64
import hashlib
import json
import logging
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rayft import cli, commands
from rayft.config import SweepConfig
from rayft.report.html import write
from rayft.report.html.compare import pareto
from rayft.report.html.facts import Facts
from rayft.report.html.parts import is_wide, number, short
from rayft.report.html.search_figures import importances
from rayft.report.html.view import distributions, study_of
from rayft.sweep.run_folder import RunFolder
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord
from tests.report.runs import HOSTILE, Trial, best_of, classes, make_run, report_of
from tests.sweep.conftest import quality, sweep

RATE = {"low": 1e-5, "high": 1e-3, "log": True}
IDS = ["winner", "history", "importance", "parallel", "slices", "contour", "strategies", "cost", "epochs", "curves"]
IDS += ["classes", "failures", "trials", "data"]


class Page(HTMLParser):
    """What a browser would make of the page, without running anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.scripts: list[str] = []
        self._within = self._last = ""
        self.feed(text)
        self.content = json.loads(self.scripts[0])
        self.figures: dict[str, Any] = self.content["figures"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append((tag, own))
        self._last = f"{tag}.{own.get('class')}"
        if tag == "section":
            self._within = own["id"] or ""
            self.sections[self._within] = ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = "" if tag == "section" else self._within
        self._last = ""

    def handle_data(self, data: str) -> None:
        if self._last.startswith("script"):
            self.scripts[-1] += data
        elif self._within:
            self.sections[self._within] += data
            if self._last == "p.missing":
                self.missing[self._within] = data

    def ids(self, kind: str) -> list[str]:
        return [own["id"] or "" for _, own in self.tags if own.get("class") == kind]


def parsed(folder: Path) -> Page:
    return Page(report_of(folder))


def spread(count: int) -> list[Trial]:
    """Trials of every kind."""
    kinds = [Trial([0.3, 0.5, 0.6, 0.7]), Trial([0.2]), Trial([0.4, 0.3]), Trial([0.5], "diverged"), Trial([], "error")]
    return [
        replace(kind, values=[value + 0.003 * index for value in kind.values], seconds=1 + index % 4)
        for index in range(count)
        for kind in [kinds[index % len(kinds)]]
    ]


# --- what it says


@pytest.mark.parametrize(
    ("metric", "best", "words"),
    [
        ("accuracy", "0.9000", "0.2000 higher than the second best, trial 0, and 0.2500 higher than the median"),
        ("loss", "0.5000", "0.1000 lower than the second best, trial 0, and 0.1000 lower than the median"),
    ],
)
def test_it_says_what_won_and_by_how_much(tmp_path: Path, metric: str, best: str, words: str) -> None:
    config = sweep(search={"metric": metric, "trials": 8})
    values = [[0.6, 0.7], [0.9, 0.8], [0.6], [0.5]]
    page = parsed(make_run(tmp_path / "run", config, [Trial(own) for own in values]))
    winner = page.sections["winner"]
    assert f"leads with {metric} {best} on validation after epoch 1: {words} of 4 trials." in winner
    assert "4 of 8 trials started: 2 complete, 2 pruned." in winner
    assert "12s" in winner  # six epochs of two seconds


def test_the_exported_winner_has_its_test_scores(tmp_path: Path) -> None:
    best = best_of(1, 2, {"accuracy": 0.8, "loss": 0.2})
    folder = make_run(tmp_path / "run", sweep(), [Trial([0.5, 0.6]), Trial([0.7, 0.8])], best)
    winner = parsed(folder).sections["winner"]
    assert "Trial 1 won with accuracy 0.8000" in winner and "accuracy, test" in winner and "0.7900" in winner
    assert "scored once, for the winner" in winner
    assert "1,200 rows" in parsed(folder).sections["data"]

    (folder / "best/rayft.json").write_text(json.dumps(best | {"interval": {"split": "test", "95%": [0.71, 0.86]}}))
    assert "95 % interval 0.7100 to 0.8600" in parsed(folder).sections["winner"]

    (folder / "best/rayft.json").write_text(json.dumps(best | {"trial": 0}))
    winner = parsed(folder).sections["winner"]
    assert "Trial 1 leads" in winner and "0.7900" not in winner
    assert "The model in best/ is an earlier leader, trial 0." in winner


def test_what_was_trained_again_decides_and_is_shown(tmp_path: Path) -> None:
    def configuration(trial: int | None, values: list[float], searched: float | None) -> dict[str, Any]:
        return {"trial": trial, "values": values, "mean": sum(values) / len(values), "searched": searched, "params": {}}

    both = [configuration(0, [0.7, 0.72], 0.75), configuration(1, [0.6, 0.62], 0.8)]
    final = {"words": ["trained again, trial 0 has more"], "trial": 0, "configurations": both}
    final |= {"default": configuration(None, [0.5, 0.5], None)}
    best = best_of(5, 2, {"accuracy": 0.72, "loss": 0.28}, final=final)
    folder = make_run(tmp_path / "run", sweep(), [Trial([0.7, 0.75]), Trial([0.7, 0.8]), Trial([0.1, 0.2])], best)
    page = parsed(folder)
    assert "Trial 0 won" in page.sections["winner"] and "0.0500 lower than the search's best" in page.sections["winner"]
    assert "Trained again, trial 0 has more." in page.sections["winner"]
    assert "untuned default" in page.sections["repeats"] and "0.7100" in page.sections["repeats"]
    assert "repeats-figure" in page.figures


def test_trials_of_the_last_stage_are_no_points_of_the_search(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sweep(), [Trial([0.5, 0.6]), Trial([0.1, 0.2])])
    config = RunFolder(folder).config()
    study = SweepStudy.of_run(RunFolder(folder), config)
    number, _ = study.ask()
    study._trial(number).set_user_attr("final", {"of": 0, "params": {}, "seed": 1})
    study.record_epoch(number, 1, {"accuracy": 0.9, "loss": 0.1}, seconds=1)
    page = parsed(folder)
    assert "2 of 16 trials started" in page.sections["winner"]
    assert list(page.content["trials"]) == ["0", "1"]


def test_states_causes_and_stops_are_told_apart(tmp_path: Path) -> None:
    trials = [Trial([0.5, 0.6]), Trial([0.4]), Trial([0.3], reason="stopped by search.time_limit")]
    trials += [Trial([0.2], "diverged", "loss is nan"), Trial([], "out_of_memory"), Trial([], "out_of_memory")]
    page = parsed(make_run(tmp_path / "run", sweep(), [*trials, Trial([0.1], "running")]))
    names = [trace["name"] for trace in page.figures["epochs-figure"]["views"][0]["data"]]
    assert names[-3:] == ["stopped by ASHA", "stopped by the time limit", "failed after it"]
    assert "it stopped 1 trial." in page.sections["epochs"]
    failures = page.sections["failures"]
    assert "out of memory24, 5" in failures  # the cells: two, trials 4 and 5
    assert failures.index("out of memory") < failures.index("diverged: the loss was no finite number")
    assert "loss is nan" in failures
    assert re.search(r"1 complete, 2 pruned, 3 failed, 1 running", page.sections["winner"])


def test_every_value_of_every_trial_is_there_as_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sweep(), spread(10))
    page = parsed(folder)
    for record in SweepStudy.of_run(RunFolder(folder), sweep()).records():
        assert number(record.value) in page.sections["trials"]
        for value in record.params.values():
            assert (f"{value:.3g}" if isinstance(value, float) else str(value)) in page.sections["trials"]


# --- odd runs


def condition_of_all() -> dict[str, Any]:
    """A space of which no trial has everything."""
    space: dict[str, Any] = {"strategy": ["partial", "layerwise"]}
    space["freeze_depth"] = {"low": 1, "high": 6, "when": {"strategy": "partial"}}
    space["layer_decay"] = {"low": 0.6, "high": 0.9, "when": {"strategy": "layerwise"}}
    return space


ODD: dict[str, tuple[SweepConfig, list[Trial], set[str]]] = {
    "no trial": (sweep(), [], set(IDS) - {"strategies", "data"} | {"strategies"}),
    "a single trial": (sweep(), [Trial([0.5, 0.6])], {"importance", "contour", "classes", "failures"}),
    "a single epoch": (sweep(epochs=1), [Trial([0.5])] * 12, {"contour", "importance", "classes", "failures"}),
    "one runs": (sweep(), [Trial([], "running")], set(IDS) - {"trials", "data"}),
    "none has ended": (sweep(), [Trial([0.5], "running")], {"importance", "contour", "classes", "failures"}),
    "only failures": (
        sweep(),
        [Trial([], "error")] * 3 + [Trial([0.5], "diverged")],
        set(IDS) - {"epochs", "failures", "trials", "data"},
    ),
    "no search space": (
        sweep(space={}),
        [Trial([0.5, 0.6])] * 2,
        {"importance", "parallel", "slices", "contour", "strategies", "classes", "failures"},
    ),
    "no early stopping": (
        sweep(early_stopping=None, space={"learning_rate": RATE}),
        spread(20),
        {"strategies", "contour", "classes"},
    ),
    "nothing common": (sweep(epochs=4, space=condition_of_all()), spread(25), {"contour", "classes"}),
    "none and booleans": (
        sweep(epochs=4, space={"dropout": [None, 0.1], "max_grad_norm": [None, 1.0], "batch_size": [8, 16]}),
        spread(25),
        {"strategies", "contour", "classes"},
    ),
    "lower is better": (
        sweep(epochs=4, search={"metric": "loss", "trials": 30}),
        [Trial([10.0**-index, 0.5]) for index in range(6)] + spread(20),
        {"classes"},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_every_section_shows_something_or_says_why_not(tmp_path: Path, name: str) -> None:
    config, trials, missing = ODD[name]
    page = parsed(make_run(tmp_path / "run", config, trials))
    assert list(page.sections) == IDS
    if name == "a single epoch":  # whether any of its values are alike is chance
        page.missing.pop("importance", None), page.missing.pop("contour", None)
        missing = missing - {"importance", "contour"}
    assert {*page.missing} == missing, page.missing
    for sentence in page.missing.values():
        assert re.fullmatch(r"[^.\n]{5,120}\.", sentence.replace("best/rayft.json", ""))
    assert sorted(page.figures) == sorted(page.ids("plot"))
    for figure in page.figures.values():
        for view in figure["views"]:
            assert view["data"], figure


def test_a_boolean_and_a_null_are_categories(tmp_path: Path) -> None:
    space = {"flip": [True, False], "dropout": [None, 0.1], "learning_rate": RATE}
    images = {"model": "m", "task": "image-classification", "data": {"train": "images"}, "training": {"epochs": 2}}
    config = SweepConfig.model_validate({**images, "search_space": space})
    page = parsed(make_run(tmp_path / "run", config, [Trial([0.5, 0.6 + 0.01 * index]) for index in range(12)]))
    ticks = [mark["text"] for mark in page.figures["parallel-figure"]["layout"]["annotations"]]
    assert {"true", "false", "null", "0.1"} <= {*ticks}
    slices = [figure["layout"]["xaxis"] for id, figure in page.figures.items() if id.startswith("slice")]
    by_title = {own["title"]["text"]: own for own in slices}
    assert set(by_title["flip"]["categoryarray"]) == {"true", "false"}
    assert set(by_title["dropout"]["categoryarray"]) == {"null", "0.1"}


def test_of_models_the_folders_name_is_shown_and_more_where_names_are_alike(tmp_path: Path) -> None:
    models = ["/a/very/long/path/of/models/small", "/another/long/path/large/v1", "/another/long/path/tiny/v1", "hub/x"]
    config = sweep(space={"learning_rate": RATE}).model_copy(update={"model": models})
    folder = make_run(tmp_path / "run", config, [Trial([0.5, 0.5 + 0.01 * index]) for index in range(12)])
    page = parsed(folder)
    assert "models" in page.sections and "strategies" in page.missing
    ticks = {mark["text"] for mark in page.figures["parallel-figure"]["layout"]["annotations"]}
    assert {"small", "large/v1", "tiny/v1", "x"} <= ticks
    assert "/a/very/long" not in page.sections["trials"]
    assert "/a/very/long/path/of/models/small" in page.sections["data"]


def test_values_out_of_the_range_that_the_file_has_now_are_shown_too(tmp_path: Path) -> None:
    config = sweep(space={"learning_rate": RATE, "batch_size": [16, 32]})
    folder = make_run(tmp_path / "run", config, [Trial([0.5, 0.6])] * 12)
    narrow = sweep(space={"learning_rate": {"low": 4e-5, "high": 5e-5}, "batch_size": [8], "dropout": [0.1]})
    RunFolder(folder).write_config(narrow)
    assert "importance" not in parsed(folder).figures


# --- figures


def record(value: float, seconds: float = 1.0, number: int = 0, **params: Any) -> TrialRecord:
    metrics = {"accuracy": value, "loss": 1 - value}
    return TrialRecord(number, "complete", params, value, 1, 1, {1: value}, metrics, seconds)


def facts_of(config: SweepConfig, records: list[TrialRecord]) -> Facts:
    return Facts(config, "run", records, {r.number: {1: r.metrics} for r in records})


def test_what_decides_the_score_is_what_mattered() -> None:
    config = sweep(space={"learning_rate": RATE, "dropout": {"low": 0.0, "high": 0.5}})
    points = [(10 ** (-5 + 2 * (index % 37) / 36), (index * 7 % 50) / 100) for index in range(90)]
    records = [
        record(quality({"learning_rate": rate}), number=index, learning_rate=rate, dropout=dropout)
        for index, (rate, dropout) in enumerate(points)
    ]
    shares = importances(facts_of(config, records))
    assert list(shares) == ["learning_rate", "dropout"] and shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importances(facts_of(config, records[:9])) == {}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_pareto_front_is_of_all_that_no_other_beats_in_both(mode: str) -> None:
    config = sweep(search={"mode": mode})
    records = [record((index * 37 % 101) / 101, (index * 53 % 97) + 1.0, index) for index in range(60)]
    records += [record(0.5, 1.0, 60), record(0.5, 1.0, 61)]
    sign = 1 if mode == "max" else -1

    def beats(one: TrialRecord, other: TrialRecord) -> bool:
        a, b = (sign * (r.value or 0) for r in (one, other))
        return one.seconds <= other.seconds and a >= b and (one.seconds < other.seconds or a > b)

    front = {(r.seconds, r.value) for r in records if not any(beats(other, r) for other in records)}
    found = pareto(facts_of(config, records))
    assert {(r.seconds, r.value) for r in found} == front
    assert len(found) == len(front)


def test_optunas_study_holds_every_score_that_can_win(tmp_path: Path) -> None:
    records = [record(0.1 * index, number=index, learning_rate=1e-4, strategy="full") for index in range(4)]
    records[1] = replace(records[1], state="pruned")
    records[2] = replace(records[2], state="failed")
    facts = facts_of(sweep(), records)
    assert [trial.state.name for trial in study_of(facts, records).trials] == [
        "COMPLETE",
        "COMPLETE",
        "FAIL",
        "COMPLETE",
    ]
    assert {*distributions(facts)} == {"strategy", "learning_rate"}


def test_the_curves_of_the_leaders_have_every_metric(tmp_path: Path) -> None:
    page = parsed(make_run(tmp_path / "run", sweep(epochs=4), spread(20)))
    views = page.figures["curves-figure"]["views"]
    assert [view["layout"]["yaxis"]["title"]["text"] for view in views] == ["accuracy", "loss"]
    assert all(len(view["data"]) == 5 for view in views)
    top = views[0]["data"][0]
    assert [a + b for a, b in zip(top["y"], views[1]["data"][0]["y"], strict=True)] == pytest.approx([1.0] * 4)


def test_a_thousand_trials_take_seconds_and_few_traces(tmp_path: Path) -> None:
    config = sweep(epochs=9, search={"trials": 1000})
    epochs = {epoch: 0.5 + 0.01 * epoch for epoch in range(1, 10)}
    records = []
    for index in range(1000):
        params = {"strategy": "partial", "learning_rate": 10 ** (-5 + 2 * index / 1000), "freeze_depth": 1 + index % 6}
        one = record(quality(params) + 0.001 * (index % 7), 1.0 + index % 50, index, **params)
        values = {epoch: value + 0.0001 * index for epoch, value in epochs.items()}
        records.append(replace(one, values=values, epochs=9, state="pruned" if index % 3 else "complete"))
    facts = Facts(config, "run", records, {r.number: {e: {"accuracy": v, "loss": 1 - v} for e, v in r.values.items()}
                                           for r in records})  # fmt: skip
    began = time.process_time()
    text = write.page(facts)
    assert time.process_time() - began < 10
    assert len(text) < 9e6
    assert all(len(view["data"]) < 20 for figure in Page(text).figures.values() for view in figure["views"])


# --- several objectives


def test_the_front_of_several_objectives_is_ringed_and_listed(tmp_path: Path) -> None:
    config = sweep(epochs=1, search={"metric": ["accuracy", "train_seconds", "loss"]})
    points = {0: (0.9, 9.0, 0.1), 1: (0.8, 2.0, 0.2), 2: (0.7, 3.0, 0.3), 3: (0.7, 3.0, 0.05)}
    records = [
        replace(
            record(value, seconds, number, strategy="full"),
            further={1: {"train_seconds": seconds, "loss": loss}},
            best_epoch=1,
        )
        for number, (value, seconds, loss) in points.items()
    ]
    page = Page(write.page(Facts(config, "run", records)))
    text = page.sections["front"]
    assert "Ringed are the 3 trials" in text and "best accuracy is in best/" in text
    for name, index in (("train_seconds", 1), ("loss", 2)):
        *_, ringed = page.figures[f"front-{name}"]["views"][0]["data"]
        expected = sorted((points[number][index], points[number][0]) for number in (0, 1, 3))
        assert [*zip(ringed["x"], ringed["y"], strict=True)] == expected
    assert "accuracy (higher is better), train_seconds (lower is better), loss (lower is better)" in " ".join(
        page.sections["data"].split()
    )
    assert "front" not in parsed(make_run(tmp_path / "run", sweep(), [Trial([0.9])])).sections


# --- by class


def with_classes(folder: Path, own: dict[str, Any], task: str = "text-classification") -> Page:
    config = sweep(epochs=1, task=task)
    best = best_of(0, 1, {config.metric: 0.9, "loss": 0.1}, classes=own)
    return parsed(make_run(folder, config, [Trial([0.9])], best))


def test_the_confusion_matrix_is_of_every_split_test_first(tmp_path: Path) -> None:
    page = with_classes(tmp_path / "run", {"validation": classes(["no", "yes"]), "test": classes(["no", "yes"])})
    views = page.figures["confusion-figure"]["views"]
    assert len(views) == 2
    assert views[0]["data"][0]["text"] == [[9, 1], [1, 9]]
    assert views[0]["data"][0]["z"] == [[0.9, 0.1], [0.1, 0.9]]
    assert re.search(r"By class, on test.*By class, on validation", page.sections["classes"], re.S)


def test_many_classes_are_listed_by_confusion(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(90)]
    page = with_classes(tmp_path / "run", {"validation": classes(names)})
    assert "confusion-figure" not in page.figures
    assert "class 17" in page.sections["classes"] and "10.0%" in page.sections["classes"]


def test_several_labels_have_scores_and_numbers_have_none(tmp_path: Path) -> None:
    own = {"validation": classes(["a", "b", "c"], predicted=False), "test": {}}
    page = with_classes(tmp_path / "several", own, "multi-label-classification")
    assert [trace["name"] for trace in page.figures["scores-figure"]["views"][0]["data"]] == [
        "precision",
        "recall",
        "F1",
    ]
    assert "0.9000" in page.sections["classes"]
    missing = with_classes(tmp_path / "causal", {"validation": {}}, "causal-lm").missing
    assert "there are no classes" in missing["classes"]


def test_a_regression_has_the_errors_of_its_winner(tmp_path: Path) -> None:
    config = sweep(epochs=1, task="regression")
    pairs = {"validation": [[1.0, 1.5], [2.0, 1.0]], "test": [[3.0, 3.0], [4.0, 3.75]]}
    best = best_of(0, 1, {"mse": 0.9, "loss": 0.1}, pairs=pairs)
    page = parsed(make_run(tmp_path / "run", config, [Trial([0.9])], best))
    validation = page.figures["residuals-figure"]["views"][1]["data"][0]
    assert (validation["x"], validation["y"]) == ([1.0, 2.0], [0.5, -1.0])
    text = page.sections["residuals"]
    assert "On validation, over 2 rows: mean error -0.25" in text and "median distance 0.75" in text
    assert text.index("On test") < text.index("On validation")


# --- safety


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """The report of a run in which all that a user may name is markup."""
    config = sweep(epochs=1, space={"learning_rate": RATE}).model_copy(update={"model": [HOSTILE, "other"]})
    own = {"validation": classes([HOSTILE, "b"])}
    best = best_of(0, 1, {"accuracy": 0.9, "loss": 0.1}, labels=[HOSTILE], classes=own, model=HOSTILE)
    trials = [Trial([0.9], reason=HOSTILE), Trial([0.5]), Trial([0.2], "error", HOSTILE)]
    folder = make_run(tmp_path / "<b>run & more", config, trials, best)
    (folder / "environment.json").write_text(json.dumps({"study": "x", "platform": HOSTILE}))
    return report_of(folder)


def test_text_stays_text(hostile: str) -> None:
    page = Page(hostile)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "b", "form", "base")]
    assert [own.get("type") for tag, own in page.tags if tag == "script"] == ["application/json", None, None]
    assert not [name for _, own in page.tags for name in own if name.startswith("on")]
    assert (
        HOSTILE in page.sections["failures"]
        and HOSTILE in page.sections["data"]
        and HOSTILE in page.sections["classes"]
    )
    texts = json.dumps(page.content)
    assert "<img" not in texts and "&lt;img" in texts  # plotly would make tags of some


def test_nothing_is_asked_of_a_network(hostile: str) -> None:
    page = Page(hostile)
    asked = [
        own[key] for _, own in page.tags for key in ("src", "href", "action", "srcset", "data", "poster") if key in own
    ]
    assert asked and all(re.fullmatch(r"#[a-z]+|data:,", address or "") for address in asked)
    style = re.findall(r"<style>(.*?)</style>", hostile, re.S)
    assert len(style) == 1 and "url(" not in style[0] and "@import" not in style[0]
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", page.scripts[2])


def test_only_the_pages_own_scripts_may_run(hostile: str) -> None:
    page = Page(hostile)
    (policy,) = [own["content"] for tag, own in page.tags if own.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    before = hostile[: hostile.index("Content-Security-Policy")]
    assert "<script" not in before and "<style" not in before


@pytest.mark.parametrize(
    ("value", "shown"), [(0.12345, "0.1235"), (373.977, "373.98"), (1e-7, "1e-07"), (0.0, "0.0000")]
)
def test_scores_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_labels_are_cut_before_they_are_escaped() -> None:
    assert short("<" * 50, 5) == "&lt;&lt;…&lt;&lt;"
    assert is_wide([1, 100]) and not is_wide([0, 100]) and not is_wide([])


# --- commands


def test_the_command_writes_it_while_the_sweep_runs_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "runs/one", sweep(), [Trial([0.5, 0.6]), Trial([0.4], "running")])
    with RunFolder(folder).lock():
        ended = CliRunner().invoke(cli.app, ["report", "runs/one"])
    assert (ended.exit_code, ended.output.strip()) == (0, "runs/one/report.html")
    assert "while 1 of its trials ran" in " ".join((folder / "report.html").read_text().split())
    assert [path.name for path in folder.iterdir() if path.name.startswith(".report")] == []

    ended = CliRunner().invoke(cli.app, ["report", "runs/one", "--to", "here.html"])
    assert ended.output.strip() == "here.html" and (tmp_path / "here.html").stat().st_size > 1e6


def test_a_run_in_remote_storage_is_fetched_to_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "cache"))
    best = best_of(0, 2, {"accuracy": 0.6, "loss": 0.4})
    make_run(tmp_path / "far/one", sweep(), [Trial([0.5, 0.6])], best)
    ended = CliRunner().invoke(cli.app, ["report", f"file://{tmp_path}/far/one"])
    assert ended.exit_code == 0, ended.output
    path = Path(ended.output.strip())
    assert path.is_relative_to(tmp_path / "cache") and "Trial 0 won" in path.read_text()


class Notes:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyError("trial"), ImportError("no plotly")])
def test_a_sweep_does_not_fail_for_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def failing(*_: Any) -> None:
        raise error

    folder = make_run(tmp_path / "run", sweep(), [Trial([0.5, 0.6])])
    run, notes = RunFolder(folder), Notes()
    study = SweepStudy.of_run(run, sweep())
    monkeypatch.setattr(logging.getLogger("rayft"), "propagate", True)
    commands._report(sweep(), run, study, notes)  # type: ignore[arg-type]
    assert notes.said == [f"report {folder}/report.html"]
    monkeypatch.setattr(write, "write_report", failing)
    commands._report(sweep(), run, study, notes)  # type: ignore[arg-type]
    assert "there is no report" in notes.said[1] and f"rayft report {folder}" in notes.said[1]
    assert "the report failed" in caplog.text

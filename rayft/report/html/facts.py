"""What the report tells of: all that is on record of a run, read once."""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePath
from statistics import median
from typing import Any

from rayft.config import MODEL, Categorical, SweepConfig, Value
from rayft.data.encoded import MANIFEST
from rayft.export.record import RECORD
from rayft.report.html.parts import number, short
from rayft.report.tables import format_value
from rayft.sweep.ranking import ranking
from rayft.sweep.run_folder import ENVIRONMENT
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord

Json = dict[str, Any]

LONGEST_LABEL = 20


@dataclass(frozen=True)
class Facts:
    """A run as it stands.

    Attributes:
        config: The sweep.
        name: The run's name.
        records: Every trial of the search that was started, by number.
        epochs: Every validation metric by trial and epoch.
        failures: Why trials failed, by number: a kind such as `diverged`.
        began: When the first trial began.
        ended: When the last one that has ended did.
        best: What `best/rayft.json` holds, if a model was exported.
        environment: What `environment.json` holds.
        manifest: What was said of the data when it was encoded.
        repeating: How many trials of the last stage, which trains the best ones again, run.
    """

    config: SweepConfig
    name: str
    records: list[TrialRecord]
    epochs: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    began: datetime | None = None
    ended: datetime | None = None
    best: Json | None = None
    environment: Json | None = None
    manifest: Json | None = None
    repeating: int = 0

    @property
    def lower_is_better(self) -> bool:
        """Of the search's metric."""
        return self.config.mode == "min"

    @property
    def searched_for(self) -> str:
        """`accuracy (higher is better), latency_ms (lower is better)`."""
        pairs = zip(self.config.objectives, self.config.modes, strict=True)
        return ", ".join(f"{name} ({'lower' if mode == 'min' else 'higher'} is better)" for name, mode in pairs)

    @cached_property
    def scored(self) -> list[TrialRecord]:
        """The trials that can win, best first."""
        return ranking(self.records, self.config.modes)

    @cached_property
    def states(self) -> Counter[str]:
        """How many trials stand how."""
        return Counter(record.state for record in self.records)

    @property
    def median_score(self) -> float:
        """Of the trials that can win."""
        return median(record.value for record in self.scored if record.value is not None)

    @cached_property
    def param_names(self) -> list[str]:
        """All that any trial has searched, model and strategy first."""
        names = {name: None for record in self.records for name in record.params}
        return sorted(names, key=lambda name: (name != MODEL, name != "strategy"))

    @cached_property
    def _models(self) -> dict[str, str]:
        """A name for each model: its folder's, with those above it where that isn't enough to tell it from others."""
        parts = {model: PurePath(model).parts for model in map(str, self._values(MODEL))}
        shown = {}
        for model, own in parts.items():
            length = 1
            while length < len(own) and any(o[-length:] == own[-length:] for m, o in parts.items() if m != model):
                length += 1
            shown[model] = str(PurePath(*own[-length:])) if own else model
        return shown

    def _values(self, name: str) -> list[Value]:
        given = self.config.models if name == MODEL else []
        return [*given, *(record.params[name] for record in self.records if name in record.params)]

    def shown(self, name: str, value: Value) -> str:
        """A hyperparameter's value as it is listed."""
        return self._models.get(str(value), str(value)) if name == MODEL else format_value(value)

    @cached_property
    def _labels(self) -> dict[str, dict[str, str]]:
        """By hyperparameter, a short text for each of its values, a different one for each."""
        found: dict[str, dict[str, str]] = {}
        for name in self.param_names:
            domain = self.config.space.get(name)
            choices = domain.choices if isinstance(domain, Categorical) else []
            own = found[name] = {}
            for value in (*choices, *self._values(name)):
                shown = self.shown(name, value)
                cut = short(shown, LONGEST_LABEL)
                taken = cut in own.values() and shown not in own
                own.setdefault(shown, f"{cut} ({len(own) + 1})" if taken else cut)
        return found

    def label(self, name: str, value: Value) -> str:
        """A value as an axis of a figure names it."""
        return self._labels[name][self.shown(name, value)]

    def params_text(self, record: TrialRecord) -> str:
        """`strategy=partial learning_rate=2.1e-05 ...`."""
        return " ".join(f"{n}={self.shown(n, record.params[n])}" for n in self.param_names if n in record.params)

    def trial_text(self, record: TrialRecord) -> str:
        """What there is to say of a trial where it is pointed at."""
        score = "" if record.value is None else f", {self.config.metric} {number(record.value)}"
        return f"trial {record.number}, {record.state}{score}: {self.params_text(record)}"

    @cached_property
    def winner(self) -> TrialRecord:
        """The trial that wins as things stand: what the last stage decided for, else the one with the best score."""
        final = None if self.exported is None else self.exported.get("final")
        return self.scored[0] if final is None else next(r for r in self.scored if r.number == final["trial"])

    @cached_property
    def exported(self) -> Json | None:
        """What was exported, unless the sweep has gone on since then and another trial leads now."""
        if self.best is None or not self.scored:
            return None
        leader, final = self.scored[0], self.best.get("final")
        if final is not None:
            repeated = {one["trial"] for one in final["configurations"]}
            numbers = {record.number for record in self.scored}
            return self.best if leader.number in repeated and final["trial"] in numbers else None
        return self.best if (self.best["trial"], self.best["epoch"]) == (leader.number, leader.best_epoch) else None


def collect(run: Path, name: str, config: SweepConfig, study: SweepStudy) -> Facts:
    """Reads what is on record of a run.

    Args:
        run: Its folder; of what it lacks, such as an exported model, the report says so.
        name: Its name.
        config: Its sweep.
        study: Its study.
    """
    trials = {trial.number: trial for trial in study.trials()}
    everything = study.records()
    records = [record for record in everything if record.role == "search"]
    own = [trials[record.number] for record in everything]
    return Facts(
        config,
        name,
        records,
        epochs={
            trial.number: {int(e): entry["metrics"] for e, entry in trial.user_attrs.get("epochs", {}).items()}
            for trial in own
        },
        failures={
            record.number: trials[record.number].user_attrs.get("failure", "error")
            for record in records
            if record.state == "failed"
        },
        began=min((trial.datetime_start for trial in own if trial.datetime_start), default=None),
        ended=max((trial.datetime_complete for trial in own if trial.datetime_complete), default=None),
        best=_read(run / "best" / RECORD),
        environment=_read(run / ENVIRONMENT),
        manifest=_read(run / config.encoded_folder(config.models[0]) / MANIFEST),
        repeating=sum(record.role == "final" and record.state == "running" for record in everything),
    )


def _read(path: Path) -> Json | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none yet, and a report is no place to fail for one that is damaged
        return None
    return content if isinstance(content, dict) else None

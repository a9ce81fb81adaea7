"""What the report says in words and tables: the winner, all trials, and failures."""

from statistics import median

from rayft.report.html.facts import Facts, Json
from rayft.report.html.parts import NONE_SCORED, Figure, Section, Table, axis, count, number
from rayft.report.tables import STATE_STYLES, format_duration, format_value, ranked
from rayft.sweep.trial_record import TrialRecord

_CAUSES = {
    "out_of_memory": "out of memory",
    "diverged": "diverged: the loss was no finite number",
    "error": "an error in the training",
    "stalled": "stalled: a worker computed nothing for too long",
    "infrastructure": "a worker or node was lost too often",
    "storage": "files could not be read or written",
}


def winner(facts: Facts) -> Section:
    """What won and by how much."""
    title = "What won"
    if not facts.scored:
        return Section("winner", title, [_standing(facts)], missing=_why_none(facts), cards=_cards(facts))
    best = facts.winner
    ended = not facts.states["running"] and not facts.repeating and facts.exported is not None
    verb = "won" if ended else "leads"
    text = f"Trial {best.number} {verb} with {facts.config.metric} {number(best.value)}"
    text += f" on validation after epoch {best.best_epoch}{_margin(facts)}."
    notes = [text, *_last_stage(facts), _standing(facts)]
    if facts.best is not None and facts.exported is None:
        notes.append(f"The model in best/ is an earlier leader, trial {facts.best['trial']}.")
    return Section("winner", title, notes, cards=_cards(facts), tables=[_params(facts, best), _metrics(facts)])


def _last_stage(facts: Facts) -> list[str]:
    """What training again said of the winner."""
    final = None if facts.exported is None else facts.exported.get("final")
    return [] if final is None else [f"{sentence[0].upper()}{sentence[1:]}." for sentence in final["words"]]


def repeats(facts: Facts) -> Section | None:
    """The best configurations trained again with other seeds, if the sweep did that."""
    final = None if facts.exported is None else facts.exported.get("final")
    if final is None:
        return None
    metric, title = facts.config.metric, "Trained again"
    rows = [(f"trial {one['trial']}", one) for one in final["configurations"]]
    default = final["default"]  # None if its training failed
    if default is not None and all(one["trial"] != default["trial"] for one in final["configurations"]):
        rows.append(("untuned default", default))
    table = Table(
        ["configuration", f"mean {metric}", "of each seed", "as searched"],
        [[n, number(o["mean"]), ", ".join(map(number, o["values"])), number(o["searched"])] for n, o in rows],
    )
    seeds = {"name": "with other seeds", "marker": {"color": "@c0", "symbol": "circle", "size": 10, "opacity": 0.8}}
    seeds |= {"x": [v for _, one in rows for v in one["values"]], "y": [n for n, one in rows for _ in one["values"]]}
    searched = {"name": "as searched", "marker": {"color": "@c1", "symbol": "x", "size": 10}}
    searched |= {"x": [one["searched"] for _, one in rows], "y": [name for name, _ in rows]}
    means = {"name": "mean", "marker": {"color": "@ink", "symbol": "line-ns-open", "size": 20, "line": {"width": 2}}}
    means |= {"x": [one["mean"] for _, one in rows], "y": [name for name, _ in rows]}
    dots = [{"type": "scatter", "mode": "markers", **one} for one in (searched, seeds, means)]
    layout = {"xaxis": axis(metric), "yaxis": {"automargin": True, "autorange": "reversed"}}
    figure = Figure("repeats-figure", f"{metric} of each repeat", dots, layout, 130 + 44 * len(rows))
    text = "The best score of a search is lucky in part. These are the best configurations again, with other seeds."
    return Section("repeats", title, [text], figures=[figure], tables=[table])


def _why_none(facts: Facts) -> str:
    if not facts.records:
        return "No trial has started."
    if facts.states["failed"] == len(facts.records):
        return f"All {len(facts.records)} trials failed." if len(facts.records) > 1 else "The only trial failed."
    return NONE_SCORED


def _margin(facts: Facts) -> str:
    if len(facts.scored) < 2:
        return "; there is no other trial to compare it with"
    value, second = facts.winner.value, _second(facts)
    assert value is not None and second.value is not None
    # A winner by the mean over seeds need not lead the search.
    against = f"{_by(facts, value - second.value)} the {_rank(facts)}, trial {second.number}"
    return f": {against}, and {_by(facts, value - facts.median_score)} the median of {len(facts.scored)} trials"


def _rank(facts: Facts) -> str:
    """What the best trial but for the winner is in the search."""
    return "second best" if facts.winner.number == facts.scored[0].number else "search's best"


def _second(facts: Facts) -> TrialRecord:
    """The best trial but for the winner."""
    return next(record for record in facts.scored if record.number != facts.winner.number)


def _by(facts: Facts, difference: float) -> str:
    if difference == 0:
        return "the same as"
    return f"{number(abs(difference))} {'lower' if difference < 0 else 'higher'} than"


def _standing(facts: Facts) -> str:
    by_state = [f"{facts.states[state]:,} {state}" for state in STATE_STYLES if facts.states[state]]
    text = f"{len(facts.records):,} of {count(facts.config.search.trials, 'trial')} started"
    return f"{text}: {', '.join(by_state)}." if by_state else f"{text}."


def _cards(facts: Facts) -> list[tuple[str, str, str]]:
    cards = []
    best = facts.exported
    metric = facts.config.metric
    if facts.scored:
        value, run = _shown(facts)
        cards.append((f"{metric}, validation", number(value), run))
        if best is not None and best["test"] is not None:
            cards.append((f"{metric}, test", number(best["test"].get(metric)), _interval(best)))
        if len(facts.scored) > 1:
            second = _second(facts)
            cards.append((f"{_rank(facts)} trial", number(second.value), f"trial {second.number}, as searched"))
            cards.append(("median", number(facts.median_score), f"of {len(facts.scored)} trials"))
    cards.append(("trials", f"{len(facts.records):,}", f"of {facts.config.search.trials:,}"))
    trained = sum(record.seconds for record in facts.records)
    wall = "" if facts.began is None or facts.ended is None else format_duration(_seconds(facts))
    cards.append(("training time", format_duration(trained), f"of all trials; {wall} by the clock" if wall else ""))
    return cards


def _shown(facts: Facts) -> tuple[float | None, str]:
    """The winner's value and where it is from: that of the exported run, where the winner was trained again."""
    first, best = facts.winner, facts.exported
    if best is None or best.get("final") is None:
        return first.value, f"trial {first.number}, epoch {first.best_epoch}"
    again = f"trial {first.number} trained again as {best['trial']}"
    return best["validation"].get(facts.config.metric), again


def _interval(best: Json) -> str:
    """How sure the test score is, if the export says so."""
    bounds = (best.get("interval") or {}).get("95%")
    return f"95 % interval {number(bounds[0])} to {number(bounds[1])}" if bounds else "scored once, for the winner"


def _seconds(facts: Facts) -> float:
    return 0.0 if facts.began is None or facts.ended is None else (facts.ended - facts.began).total_seconds()


def _params(facts: Facts, record: TrialRecord) -> Table:
    best = facts.exported
    rows = [[name, _exact(facts, name, record), "searched"] for name in facts.param_names if name in record.params]
    fixed = facts.config.training.model_dump(include=facts.config.training.model_fields_set - {"epochs"})
    rows += [[name, format_value(value), "fixed"] for name, value in fixed.items()]
    if best is not None and "model" not in record.params:
        rows.insert(0, ["model", str(best["model"]), "fixed"])
    return Table(["hyperparameter", "value", ""], rows, f"Parameters of trial {record.number}")


def _exact(facts: Facts, name: str, record: TrialRecord) -> str:
    """The winner's value to the last digit, for those who copy it."""
    value = record.params[name]
    return repr(value) if isinstance(value, float) else facts.shown(name, value)


def _metrics(facts: Facts) -> Table:
    """Every metric of the winner's best epoch beside that of others."""
    first, best = facts.winner, facts.exported
    test = None if best is None else best["test"]
    repeated = best is not None and best.get("final") is not None
    own = best["validation"] if best is not None and repeated else first.metrics
    columns = ["metric", f"trial {best['trial']}" if best is not None and repeated else "validation"]
    columns += ["test"] if test is not None else []
    others = ([first] if repeated else []) + ([_second(facts)] if len(facts.scored) > 1 else [])
    columns += [f"trial {other.number} as searched" for other in others]
    columns += ["median"] if len(facts.scored) > 1 else []
    rows = []
    for name in sorted(own, key=lambda name: name != facts.config.metric):
        row = [name, number(own[name])] + ([number(test.get(name))] if test is not None else [])
        row += [number(other.metrics.get(name)) for other in others]
        if len(facts.scored) > 1:
            row.append(number(median(record.metrics[name] for record in facts.scored if name in record.metrics)))
        rows.append(row)
    return Table(columns, rows, "Scores, on validation but for test" if test is not None else "Scores on validation")


def trials(facts: Facts) -> Section:
    """Every trial as text."""
    if not facts.records:
        return Section("trials", "All trials", missing="No trial has started.")
    columns = ["trial", "state", facts.config.metric, "best epoch", "epochs", "time", "parameters"]
    with_reasons = any(record.reason for record in facts.records)
    columns += ["why it ended"] if with_reasons else []
    rows = [
        [
            str(record.number),
            record.state,
            number(record.value),
            "-" if record.best_epoch is None else str(record.best_epoch),
            str(record.epochs),
            format_duration(record.seconds),
            facts.params_text(record),
            *([record.reason or ""] if with_reasons else []),
        ]
        for record in ranked(facts.records, facts.config.modes)
    ]
    return Section("trials", "All trials", ["Best first."], tables=[Table(columns, rows)])


def failures(facts: Facts) -> Section:
    """Failed trials by cause."""
    failed = [record for record in facts.records if record.state == "failed"]
    if not failed:
        return Section("failures", "Failed trials", missing="No trial failed.")
    kinds = sorted(set(facts.failures.values()), key=lambda kind: -list(facts.failures.values()).count(kind))
    causes = [
        [_CAUSES.get(kind, kind), str(len(own)), ", ".join(str(record.number) for record in own)]
        for kind in kinds
        if (own := [record for record in failed if facts.failures.get(record.number) == kind])
    ]
    rows = [
        [str(r.number), facts.failures.get(r.number, ""), str(r.epochs), r.reason or "", facts.params_text(r)]
        for r in failed
    ]
    each = Table(["trial", "cause", "epochs before", "what happened", "parameters"], rows, "Each of them", folded=True)
    return Section("failures", "Failed trials", tables=[Table(["cause", "trials", "which"], causes), each])

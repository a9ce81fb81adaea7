"""The data, the search, the machine and the versions that a run was made with."""

import json

from rayft.config import as_list
from rayft.report.html.facts import Facts
from rayft.report.html.parts import Section, Table
from rayft.report.tables import format_duration
from rayft.sweep_file import dump_sweep

_MOST_LABELS = 50
_MACHINE = ("platform", "processor", "cpus", "memory_gb")


def surroundings(facts: Facts) -> Section:
    """The data, the versions, the machine, and the files that hold them."""
    best, environment = facts.best or {}, facts.environment or {}
    tables = [_data(facts), *_class_counts(facts), Table(["", ""], _search(facts), "Search")]
    versions = {**environment.get("packages", {}), **best.get("versions", {})}
    if "python" in environment:
        versions.setdefault("python", environment["python"])
    machine = [[name, str(environment[name])] for name in _MACHINE if name in environment]
    rows = [*machine, *([name, str(version)] for name, version in versions.items())]
    tables += [Table(["", ""], rows, "Machine and versions")] if rows else []
    raw = [("sweep.yaml", dump_sweep(facts.config))]
    raw += [
        (name, json.dumps(content, indent=2, ensure_ascii=False))
        for name, content in (("best/rayft.json", facts.best), ("environment.json", facts.environment))
        if content is not None
    ]
    text = [] if facts.best is not None else ["No model is exported yet, so there is no best/rayft.json."]
    return Section("data", "Data and environment", text, tables=tables, raw=raw)


def _data(facts: Facts) -> Table:
    splits = (facts.manifest or {}).get("splits", {})
    rows_of = (facts.best or {}).get("rows") or {name: split["rows"] for name, split in splits.items()}
    data = facts.config.data
    sources = {name: getattr(data, name) for name in ("train", "validation", "test", "unlabeled")}
    rows = [
        [f"{name} split", f"{rows_of[name]:,} rows" if name in rows_of else "", _source(source)]
        for name, source in sources.items()
        if source is not None
    ]
    labels = (facts.best or {}).get("labels") or (facts.manifest or {}).get("label_names") or []
    if labels:
        more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
        rows.append(["labels", str(len(labels)), ", ".join(map(str, labels[:_MOST_LABELS])) + more])
    if "max_length" in facts.config.rules.data_keys:
        rows.append(["longest row", f"{data.max_length} tokens", ""])
    rows += [["note", "", note] for note in (facts.manifest or {}).get("notes", [])]
    return Table(["", "", ""], rows, "Data")


def _class_counts(facts: Facts) -> list[Table]:
    """Rows by class of each split, if an encoded split says so."""
    splits = (facts.manifest or {}).get("splits", {})
    counts = {name: split["classes"] for name, split in splits.items() if split.get("classes")}
    if not counts:
        return []
    names = [*next(iter(counts.values()))]
    rows = [[name, *(f"{own.get(name, 0):,}" for own in counts.values())] for name in names[:_MOST_LABELS]]
    return [Table(["class", *counts], rows, "Rows by class", folded=True)]


def _source(source: float | str | list[str]) -> str:
    return f"{source:g} of train" if isinstance(source, float) else ", ".join(as_list(source))


def _search(facts: Facts) -> list[list[str]]:
    config, search = facts.config, facts.config.search
    stopping = config.early_stopping
    asha = f"grace {stopping.grace_epochs}, factor {stopping.reduction_factor}" if stopping else "off"
    rows = [
        ["task", config.task],
        ["model", ", ".join(config.models)],
        ["metric", facts.searched_for],
        ["sampler", f"{search.sampler}, seed {search.seed}"],
        ["trials", str(search.trials)],
        ["epochs at most", str(config.training.epochs)],
        ["time limit", format_duration(search.time_limit) if search.time_limit else "none"],
        *([key, f"{hours:g}"] for key in ("core_hours", "gpu_hours") if (hours := getattr(search, key)) is not None),
        ["early stopping (ASHA)", asha],
    ]
    verified = (facts.best or {}).get("verification")
    if verified:
        proof = (
            f"loaded and scored again on {verified['device']}, {verified['precision']}, within {verified['tolerance']}"
        )
        rows.append(["exported model", proof])
    return rows

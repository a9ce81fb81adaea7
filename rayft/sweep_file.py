"""Reads a sweep file: YAML to `SweepConfig`, with every fault at once, each at its line."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rayft.config import FaultList, SweepConfig, rule_of, unknown_key_rule
from rayft.errors import SWEEP_FILE, ConfigError, Fault

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-5 is a number and a key given twice is an error."""


# YAML 1.1 reads 1e-5 as text; every user means the number.
_FLOAT = re.compile(
    r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|\.[0-9]+[eE][-+]?[0-9]+)$|^[-+]?\.inf$|^\.nan$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_sweep(path: Path, overrides: list[str] | None = None) -> SweepConfig:
    """Reads and validates a sweep file.

    Args:
        path: The file.
        overrides: `key=value` with dotted keys, as `--set` gives them; values are YAML.

    Raises:
        ConfigError: With every fault that was found.
    """
    node = _compose(path)
    loader = _Loader("")
    try:
        raw = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:  # an unknown tag, a key that can't be one
        raise ConfigError([_yaml_fault(path, error)]) from None
    if not isinstance(raw, dict):
        raise ConfigError([Fault(str(path), f"must be a mapping of keys such as model and data, but is {_kind(raw)}")])
    for override in overrides or []:
        _apply(raw, override)
    return validate(raw, path, _lines(node))


def validate(raw: dict[str, Any], path: Path, lines: dict[str, int]) -> SweepConfig:
    """Turns a mapping into a `SweepConfig`; faults carry the line of their key."""
    try:
        return SweepConfig(**raw)
    except ValidationError as error:
        pairs = [pair for entry in error.errors() for pair in _faults_of(entry, raw)]
    except TypeError:  # a top-level key that is not text
        odd = [key for key in raw if not isinstance(key, str)]
        pairs = [(str(key), "keys must be text") for key in odd]
    # Every member of a union complains; the first complaint, which is the most specific one, is enough.
    pairs = [pair for n, pair in enumerate(pairs) if pair[0] not in _UNIONS or pair[0] not in dict(pairs[:n])]
    faults = [Fault(_place(path, key, lines), rule, key) for key, rule in dict.fromkeys(pairs)]
    raise ConfigError(faults)


def locate(path: Path, faults: list[Fault]) -> list[Fault]:
    """Gives faults that name no file the sweep file and the line of their key."""
    try:
        lines = _lines(_compose(path))
    except ConfigError:
        lines = {}
    found = [Fault(_place(path, fault.key or "", lines), fault.rule, fault.key) for fault in faults]
    return [new if old.where == SWEEP_FILE else old for old, new in zip(faults, found, strict=True)]


def dump_sweep(config: SweepConfig) -> str:
    """The YAML of a whole configuration, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _compose(path: Path) -> yaml.Node | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                [Fault(str(path), f"is {path.stat().st_size} bytes; a sweep file has at most {MAX_BYTES}")]
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([Fault(str(path), "no such file")]) from None
    except IsADirectoryError:
        raise ConfigError([Fault(str(path), "is a folder; a sweep file was expected")]) from None
    except PermissionError:
        raise ConfigError([Fault(str(path), "may not be read by this user")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Fault(str(path), f"must be UTF-8 text, but byte {error.start} is not")]) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_fault(path, error)]) from None
    duplicates = list(_duplicate_keys(path, node)) if node is not None else []
    if duplicates:
        raise ConfigError(duplicates)
    return node


def _yaml_fault(path: Path, error: yaml.YAMLError) -> Fault:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return Fault(f"{path}:{mark.line + 1}" if mark else str(path), f"is not valid YAML: {problem}")


def _duplicate_keys(path: Path, node: yaml.Node, prefix: str = "") -> Any:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _duplicate_keys(path, child, prefix)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            line, name = key.start_mark.line + 1, f"{prefix}{key.value}"
            if name in seen:
                yield Fault(f"{path}:{line}", f"given twice, first on line {seen[name]}", name)
            seen[name] = line
            yield from _duplicate_keys(path, child, f"{name}.")


def _lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """The line (from 1) of every dotted key."""
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines |= _lines(child, f"{name}.")
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            lines[f"{prefix}{index}"] = child.start_mark.line + 1
            lines |= _lines(child, f"{prefix}{index}.")
    return lines


def _place(path: Path, key: str, lines: dict[str, int]) -> str:
    """The file, with the line of the key or of the nearest key above it."""
    parts = key.split(".")
    while parts:
        if ".".join(parts) in lines:
            return f"{path}:{lines['.'.join(parts)]}"
        parts.pop()
    return str(path)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError([Fault("--set", f"must be KEY=VALUE such as search.trials=4, but got {override!r}")])
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError([Fault("--set", f"{text!r} is not a YAML value", key)]) from None
    *parents, last = key.split(".")
    level: Any = raw
    for parent in parents:
        level = level.setdefault(parent, {})
        if not isinstance(level, dict):
            raise ConfigError([Fault("--set", f"{parent} is not a section", key)])
    level[last] = value


def _faults_of(error: Any, raw: dict[str, Any]) -> list[tuple[str, str]]:
    """A pydantic error as (dotted key, rule) pairs."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, FaultList):
        return cause.faults
    key = _dotted(error["loc"], raw)
    if error["type"] == "extra_forbidden":
        return [(key, unknown_key_rule(str(error["loc"][-1]), _known_keys(error["loc"][:-1])))]
    if key in _UNIONS and not error["type"].startswith(("greater_", "less_", "value_")):
        return [(key, f"must be {_UNIONS[key]}, but got {error['input']!r}")]
    return [(key, rule_of(error))]


_SOURCE = "a file, a glob, a list of files, a saved dataset folder or hub:NAME[:CONFIG]"
_UNIONS = {
    "data.train": _SOURCE,
    "data.validation": f"a fraction between 0 and 1, or {_SOURCE}",
    "data.test": f"a fraction between 0 and 1, or {_SOURCE}",
    "data.unlabeled": _SOURCE,
    "data.columns.text": "a column, or a list of two columns",
    "cluster.concurrent_trials": "an integer of at least 1, or auto",
    "cluster.gpus_per_worker": "a number, or auto",
}


def _dotted(location: tuple[Any, ...], raw: Any) -> str:
    """The key of a pydantic location, without the names that pydantic adds for the members of a union."""
    parts: list[str] = []
    level = raw
    for part in location:
        if isinstance(level, dict) and part not in level and parts and not _is_field(parts, part):
            continue
        if not isinstance(level, dict | list) and parts and raw:
            continue
        parts.append(str(part))
        level = level.get(part) if isinstance(level, dict) else None
    return ".".join(parts)


def _is_field(parents: list[str], name: Any) -> bool:
    return str(name) in _known_keys(tuple(parents))


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys that a section of the file may have."""
    model: type[BaseModel] = SweepConfig
    for part in location:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _kind(raw: Any) -> str:
    return "empty" if raw is None else f"a {type(raw).__name__}"

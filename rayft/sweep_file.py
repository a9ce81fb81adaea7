"""Reads a sweep file: YAML to `SweepConfig`, with every fault at once, each at its line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rayft.config import SweepConfig, TaskName
from rayft.config_faults import FaultList, rule_of, shown
from rayft.errors import SWEEP_FILE, ConfigError, Fault

MAX_BYTES = 1_000_000

# Of YAML 1.1's plain values: 1e-5 is text there, 010 is 8, 1:30 is 90, and a date is no text. Here 1e-5 is a number and
# all others are text.
_INT = re.compile(r"^[-+]?(0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|\.[0-9]+[eE][-+]?[0-9]+)$|^[-+]?\.inf$|^\.nan$"
)
_TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}bool", f"{_TAG}null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+.0123456789":
    _RESOLVERS[_first] = [(f"{_TAG}float", _FLOAT), (f"{_TAG}int", _INT)]


class _Loader(yaml.SafeLoader):
    """Plain values, lists and mappings only. Tags could build objects, and aliases gigabytes from a few lines."""

    yaml_implicit_resolvers = _RESOLVERS

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        refused = "aliases" if isinstance(event, yaml.AliasEvent) else "tags" if getattr(event, "tag", None) else None
        if refused:
            raise yaml.composer.ComposerError(problem=f"{refused} can't be used here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that looks like a number to it is quoted, and nothing is an alias."""

    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


def load_sweep(path: Path, overrides: list[str] | None = None) -> SweepConfig:
    """Reads and validates a sweep file.

    Args:
        path: The file.
        overrides: `key=value` with dotted keys, as `--set` gives them; values are YAML.

    Raises:
        ConfigError: With every fault that was found.
    """
    node = _compose(path)
    try:
        raw = None if node is None else _Loader("").construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # a number of thousands of digits
        raise ConfigError([_yaml_fault(path, error)]) from None
    if not isinstance(raw, dict):
        raise ConfigError([Fault(str(path), f"must be a mapping of keys such as model and data, but is {_kind(raw)}")])
    places = _places(path, node)
    faults = [fault for override in overrides or [] if (fault := _apply(raw, places, override))]
    if faults:
        raise ConfigError(faults)
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        pairs = [pair for entry in error.errors() for pair in _faults_of(entry)]
    raise ConfigError([Fault(_place(path, key, places), rule, key) for key, rule in dict.fromkeys(pairs)])


def with_task(config: SweepConfig, task: TaskName) -> SweepConfig:
    """The same sweep for the task that its data turned out to be for.

    Raises:
        ConfigError: It asks for what that task doesn't have.
    """
    if task == config.task:
        return config
    raw = config.model_dump(mode="json", exclude_unset=True) | {"task": task}
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        pairs = [pair for entry in error.errors() for pair in _faults_of(entry)]
    raise ConfigError([Fault(SWEEP_FILE, rule, key) for key, rule in dict.fromkeys(pairs)])


def locate(path: Path, faults: list[Fault]) -> list[Fault]:
    """Gives faults that name no file the sweep file and the line of their key."""
    try:
        places = _places(path, _compose(path))
    except ConfigError:
        places = {}
    found = [Fault(_place(path, fault.key or "", places), fault.rule, fault.key) for fault in faults]
    return [new if old.where == SWEEP_FILE else old for old, new in zip(faults, found, strict=True)]


def dump_sweep(config: SweepConfig, *, defaults: bool = False) -> str:
    """The YAML of a configuration.

    Args:
        config: The sweep.
        defaults: Whether with the defaults that it leaves as they are, and with the metric that follows from the task.
    """
    values = config.model_dump(mode="json", exclude_unset=not defaults)
    if defaults:
        values["search"]["metric"] = values["search"]["metric"] or config.metric
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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
    except OSError as error:
        raise ConfigError([Fault(str(path), f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Fault(str(path), f"must be UTF-8 text, but byte {error.start} is not")]) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_fault(path, error)]) from None
    except RecursionError:
        raise ConfigError([Fault(str(path), "is nested too deeply")]) from None
    faults = list(_key_faults(path, node)) if node is not None else []
    if faults:
        raise ConfigError(faults)
    return node


def _yaml_fault(path: Path, error: Exception) -> Fault:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Fault(f"{path}:{mark.line + 1}" if mark else str(path), f"is not valid YAML: {problem}")


def _key_faults(path: Path, node: yaml.Node, prefix: str = "") -> Iterator[Fault]:
    """Keys that are given twice, and keys that are not text."""
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _key_faults(path, child, f"{prefix}{index}.")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.tag != f"{_TAG}str":
                wrong = shown(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                yield Fault(f"{path}:{line}", f"keys must be text, but got {wrong}", prefix.rstrip(".") or None)
                continue
            name = f"{prefix}{key.value}"
            if name in seen:
                yield Fault(f"{path}:{line}", f"given twice, first on line {seen[name]}", name)
            seen[name] = line
            yield from _key_faults(path, child, f"{name}.")


def _places(path: Path, node: yaml.Node | None, prefix: str = "") -> dict[str, str]:
    """The file and line (from 1) of every dotted key."""
    places: dict[str, str] = {}
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, child) for key, child in node.value]
    if isinstance(node, yaml.SequenceNode):
        children = [(str(index), child, child) for index, child in enumerate(node.value)]
    for name, at, child in children:
        places[f"{prefix}{name}"] = f"{path}:{at.start_mark.line + 1}"
        places |= _places(path, child, f"{prefix}{name}.")
    return places


def _place(path: Path, key: str, places: dict[str, str]) -> str:
    """Where the key was given, or the nearest key above it; the file if none was."""
    parts = key.split(".")
    while parts:
        if place := places.get(".".join(parts)):
            return place
        parts.pop()
    return str(path)


def _apply(raw: dict[str, Any], places: dict[str, str], override: str) -> Fault | None:
    """Replaces one value, and its place; or says what is wrong with the override."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        return Fault("--set", f"must be KEY=VALUE such as search.trials=4, but got {shown(override)}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return Fault("--set", f"{shown(text)} is not a YAML value", key)
    level: Any = raw
    for depth, parent in enumerate(parents, start=1):
        places.setdefault(".".join(parents[:depth]), "--set")
        if level.get(parent) is None:
            level[parent] = {}
        level = level[parent]
        if not isinstance(level, dict):
            return Fault("--set", f"{parent} is not a section", key)
    level[last] = value
    for below in [name for name in places if name.startswith(f"{key}.")]:
        del places[below]
    places[key] = "--set"
    return None


def _faults_of(error: Any) -> list[tuple[str, str]]:
    """A pydantic error's entry as (dotted key, rule) pairs."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, FaultList):
        return cause.faults
    return [(".".join(map(str, error["loc"])), rule_of(error, _known_keys(error["loc"][:-1])))]


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
    if isinstance(raw, list):
        return "a list"
    return "empty" if raw is None else shown(raw)

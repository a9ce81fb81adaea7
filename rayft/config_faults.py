"""The words in which a wrong value is refused: the rule, the value, the choices."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BeforeValidator

LONGEST_VALUE = 80
"""Characters of a refused value that are shown: an error fits on one screen."""

_LIMITS = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge")}
_LIMITS |= {"less_than": ("<", "lt"), "less_than_equal": ("<=", "le")}
_FIXED = {"missing": "is missing", "string_too_short": "must not be empty", "invalid_key": "keys must be text"}
_NOUNS = {
    "int_": "an integer",
    "float_": "a number",
    "finite_": "a finite number",
    "string_": "text",
    "bool_": "true or false",
    "dict_": "a mapping",
    "model_": "a mapping",
    "list_": "a list",
}


class FaultList(ValueError):
    """Several faults from one validator, as (key, rule) pairs."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{key}: {rule}" for key, rule in faults))


def must_be(noun: str, holds: Callable[[Any], bool]) -> BeforeValidator:
    """Refuses a value in one sentence, where pydantic would list a complaint for each member of a union."""

    def refuse(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must be {noun}, but got {shown(value)}")
        return value

    return BeforeValidator(refuse)


def shown(value: Any) -> str:
    """A value as an error text shows it."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def unknown_key_rule(name: str, known: Sequence[str]) -> str:
    """An unknown key's error text, with the nearest known key."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key; {hint}known are {', '.join(known)}"


def rule_of(error: Any, known: Sequence[str] = ()) -> str:
    """One of a pydantic error's entries as `must be ..., but got ...`.

    Args:
        error: The entry.
        known: The keys of the section that the entry is about.
    """
    kind, context, value = error["type"], error.get("ctx", {}), shown(error["input"])
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "extra_forbidden":
        return unknown_key_rule(str(error["loc"][-1]), known)
    if kind in _LIMITS:
        symbol, name = _LIMITS[kind]
        return f"must be {symbol} {context[name]:.10g}, but got {value}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}, but got {value}"
    if kind == "value_error":
        return str(context["error"])
    for prefix, noun in _NOUNS.items():
        if kind.startswith(prefix):
            return f"must be {noun}, but got {value}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, but got {value}"

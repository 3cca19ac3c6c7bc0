"""pydantic's complaints as sentences: file and line, key, expected against actual, and what the key means."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from soup.yaml_source import Key, Problem, Source

# pydantic's name of a complaint → what was expected instead.
_EXPECTED = {
    "expects": "{what}",
    "literal_error": "{expected}",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "some text",
    "tuple_type": "a list",
    "too_short": "at least {min_length} of them",
    "model_type": "keys below it",
    "dict_type": "keys below it",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
}
_WIDEST = 80  # characters of a value that are shown


def problems_of(error: ValidationError, model: type[BaseModel], *, source: Source) -> list[Problem]:
    """One Problem per complaint, but for values that `source` has complained about already."""
    told = {problem.key for problem in source.problems}
    details = [(detail["loc"], detail) for detail in error.errors()]
    # A list whose only item was refused also counts as too short: the item is what to correct.
    within = {key[:n] for key, _ in details for n in range(len(key))}
    return [
        Problem(source.place(key), key, _sentence(detail, key, model))
        for key, detail in details
        if not any(key[:n] in told for n in range(1, len(key) + 1))
        and not (detail["type"] == "too_short" and key in within)
    ]


def _sentence(detail: ErrorDetails, key: Key, model: type[BaseModel]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        section = tuple(part for part in key[:-1] if isinstance(part, str))  # of a list's entries all have the same
        return _unknown(str(key[-1]), _fields(model, section))
    meaning = _meaning(model, key)
    if kind == "missing":
        return f"is missing{meaning}."
    if kind == "value_error":
        return f"{context['error']}."
    if kind not in _EXPECTED:
        return f"{detail['msg']}, got {_shown(detail['input'])}{meaning}."
    return f"expected {_EXPECTED[kind].format(**context)}, got {_shown(detail['input'])}{meaning}."


def _unknown(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown key. Did you mean '{close[0]}'?" if close else f"unknown key. Known here: {', '.join(known)}."


def _meaning(model: type[BaseModel], key: Key) -> str:
    *section, name = [part for part in key if isinstance(part, str)]
    field = _fields(model, tuple(section)).get(name)
    return f". Meaning: {' '.join((field.description or '').split())}" if field else ""


def _fields(model: type[BaseModel], key: Key) -> dict[str, FieldInfo]:
    """The fields below `key`, by the names that the user writes; none where it is no section."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not key:
        return fields
    annotation = fields[str(key[0])].annotation if key[0] in fields else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return _fields(kind, key[1:])
    return {}


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…"

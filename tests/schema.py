"""Check JSON documents against docs/schemas: as much of JSON Schema as those files use, and no word they do not."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "integer": (int,), "number": (int, float),
}  # fmt: skip
_WORDS = {
    "$schema", "title", "description", "$defs", "$ref", "anyOf", "const", "type", "properties", "required",
    "additionalProperties", "items", "minimum",
}  # fmt: skip


@cache
def load(file: str) -> Any:
    """A schema of docs/schemas."""
    return json.loads((FOLDER / file).read_text())


def check_document(document: dict[str, Any]) -> None:
    """Raise AssertionError where a command's document is not as its schema says."""
    file = str(document["command"]).replace(" ", "-") + ".json"
    problem = _problem(document, load(file), file, "$")
    assert not problem, problem


def _problem(value: Any, schema: dict[str, Any], file: str, at: str) -> str:
    """What is wrong with a value; empty if nothing."""
    assert set(schema) <= _WORDS, f"{file}: {set(schema) - _WORDS}"
    if "$ref" in schema:
        other, _, path = schema["$ref"].partition("#/")
        found = load(other or file)
        for part in path.split("/"):
            found = found[part]
        return _problem(value, found, other or file, at)
    if "anyOf" in schema:
        problems = [_problem(value, choice, file, at) for choice in schema["anyOf"]]
        return "" if "" in problems else " / ".join(problems)
    if "const" in schema and value != schema["const"]:
        return f"{at}: is {value!r}, not {schema['const']!r}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{at}: {value!r} is not {' or '.join(kinds)}"
    if "minimum" in schema and value < schema["minimum"]:
        return f"{at}: {value!r} is too small"
    if isinstance(value, dict) and "properties" in schema:
        return _object_problem(value, schema, file, at)
    if isinstance(value, list) and "items" in schema:
        return next(filter(None, (_problem(v, schema["items"], file, f"{at}[{i}]") for i, v in enumerate(value))), "")
    return ""


def _object_problem(value: dict[str, Any], schema: dict[str, Any], file: str, at: str) -> str:
    missing = [name for name in schema["required"] if name not in value]
    unknown = [name for name in value if name not in schema["properties"]]
    if missing or unknown:
        return f"{at}: {missing} missing, {unknown} not in {file}"
    inside = (_problem(item, schema["properties"][name], file, f"{at}.{name}") for name, item in value.items())
    return next(filter(None, inside), "")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (not isinstance(value, bool) or kind == "boolean")

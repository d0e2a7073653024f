"""The parameter reference docs/parameters.md, made from the types and docstrings of `mm_core.core.params`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict, cast

from mm_core.core.params import PER_ARRIVAL, Params

Node = TypedDict(
    "Node",
    {
        "$ref": str,
        "$defs": "dict[str, Node]",
        "properties": "dict[str, Node]",
        "type": str,
        "default": object,
        "description": str,
        "enum": list[str],
        "items": "Node",
        "propertyNames": "Node",
        "multipleOf": float,
        "exclusiveMinimum": float,
        "minimum": float,
        "exclusiveMaximum": float,
        "maximum": float,
    },
    total=False,
)
"""What this page reads of a JSON schema."""
HEAD = """# Parameters

All of `params.yaml`. Only values that change results live there; what is elsewhere on each machine is the environment
([environment.md](environment.md)). Unknown names and values out of range are refused with the name.
Written by `mm params`; do not edit.
"""


def reference() -> str:
    """Return Markdown with a table per section of `Params`: default, allowed values and meaning of each field."""
    # pydantic's JSON schema has the defaults, bounds and docstrings of all fields.
    schema = cast(Node, Params.model_json_schema())
    lines = [HEAD]
    for section, rows in _sections(schema, schema.get("$defs", {})):
        acts = "\nActs when photos arrive.\n" if section.split(".")[0] in PER_ARRIVAL else ""
        lines += [f"## {section or 'top'}\n{acts}", "| name | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {_code(default)} | {allowed} | {_cell(meaning)} |"
            for name, default, allowed, meaning in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _sections(node: Node, defs: dict[str, Node], path: str = "") -> Iterator[tuple[str, list[tuple]]]:
    """Yield the dotted name and rows of this section, then of its sub-sections, in the order of the code."""
    rows, inner = [], []
    for name, field in node.get("properties", {}).items():
        target = _target(field)
        full = f"{path}.{name}".lstrip(".")
        # A field with its own properties is a sub-section; an enum is not.
        if target and "properties" in defs[target]:
            inner.append((full, defs[target]))
        else:
            rows.append((full, field.get("default"), _allowed(field), field.get("description", "")))
    if rows:
        yield path, rows
    for full, child in inner:
        yield from _sections(child, defs, full)


def _target(field: Node) -> str | None:
    return field["$ref"].rpartition("/")[2] if "$ref" in field else None


def _allowed(field: Node) -> str:
    if "enum" in field:
        return ", ".join(_code(value) for value in field["enum"])
    kind = field.get("type", "")
    if kind in ("array", "object"):
        what: Node = field.get("items") or field.get("propertyNames") or {}
        values = f" of {', '.join(_code(value) for value in what['enum'])}" if "enum" in what else ""
        return ("list" if kind == "array" else "table by name") + values
    # Bounds of numbers, as in `≥ 0, < 1`.
    # The bounds are entries of the field itself.
    limits = cast("dict[str, float]", field)
    bounds = [f"{sign} {_number(limits[key])}" for key, sign in _BOUNDS.items() if key in limits]
    if "multipleOf" in field:
        bounds.append(f"a multiple of {field['multipleOf']:g}")
    return ", ".join([_NAMES.get(kind, "any"), *bounds])


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
_NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def _code(value: object) -> str:
    return "empty" if value in ("", None) or value == [] else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

"""Turning Python objects into wire values (JSON-shaped)."""

from __future__ import annotations

import enum
from typing import Any

from engine.qapi.builtin import NULL
from engine.qapi.types import Struct, Union

_wire_names: dict[type[Struct], list[tuple[str, str]]] = {}
_PLAIN = frozenset({str, int, bool, float, type(None)})


def _names(cls: type[Struct]) -> list[tuple[str, str]]:
    names = _wire_names[cls] = [(m.attr, m.name) for m in cls.qapi_members()]
    return names


def _struct_to_wire(struct: Struct, result: dict[str, Any]) -> None:
    cls = type(struct)
    for attr, wire in _wire_names.get(cls) or _names(cls):
        value = getattr(struct, attr)
        if value is not None:
            result[wire] = value if type(value) in _PLAIN else to_wire(value)
    if isinstance(struct, Union):
        _struct_to_wire(struct.branch, result)


def to_wire(obj: Any) -> Any:
    """Turn *obj* into a JSON-shaped value: structs to dicts (members that are None left out), enums to strings."""
    kind = type(obj)
    if kind in _PLAIN:
        return obj
    if isinstance(obj, Struct):
        result: dict[str, Any] = {}
        _struct_to_wire(obj, result)
        return result
    if isinstance(obj, (list, tuple)):
        return [item if type(item) in _PLAIN else to_wire(item) for item in obj]
    if isinstance(obj, dict):
        return {str(key): item if type(item) in _PLAIN else to_wire(item) for key, item in obj.items()}
    if obj is NULL:
        return None
    if isinstance(obj, enum.Enum):
        return to_wire(obj.value)
    if isinstance(obj, str):
        return str(obj)
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj)
    raise TypeError(f"{kind.__name__} has no form on the wire")

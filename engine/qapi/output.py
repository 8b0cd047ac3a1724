"""Turning Python objects into wire values (JSON-shaped)."""

from __future__ import annotations

import enum
from typing import Any

from engine.qapi.builtin import NULL
from engine.qapi.types import Struct, Union

_Names = tuple[dict[str, str], list[tuple[str, str, Any]]]
_wire_names: dict[type[Struct], _Names] = {}
"""Of each struct: attribute → name on the wire, and (attribute, name, default) where a default is not None."""
_PLAIN = frozenset({str, int, bool, float, type(None)})


class OnWire:
    """A value that is in wire form already; whoever gets it leaves it as it is."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _names(cls: type[Struct]) -> _Names:
    members = cls.qapi_members()
    defaults = [(m.attr, m.name, getattr(cls, m.attr)) for m in members if getattr(cls, m.attr, None) is not None]
    names = _wire_names[cls] = ({m.attr: m.name for m in members}, defaults)
    return names


def _struct_to_wire(struct: Struct, result: dict[str, Any]) -> None:
    cls = type(struct)
    names, defaults = _wire_names.get(cls) or _names(cls)
    own = struct.__dict__
    # What was given, in the order it was given; most members of a large struct are absent.
    for attr, value in own.items():
        if value is not None:
            wire = names.get(attr)
            if wire is not None:
                result[wire] = value if type(value) in _PLAIN else to_wire(value)
    for attr, wire, default in defaults:
        if attr not in own:
            result[wire] = to_wire(default)
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
    if kind is OnWire:
        return obj.value
    if isinstance(obj, enum.Enum):
        return to_wire(obj.value)
    if isinstance(obj, str):
        return str(obj)
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj)
    raise TypeError(f"{kind.__name__} has no form on the wire")

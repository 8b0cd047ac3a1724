"""The language of commands: types, registry, validation, introspection (see keyval and json_stream too)."""

from __future__ import annotations

from engine.qapi.builtin import NULL, Int, Int8, Int16, Int32, Int64, Null, Number, Size, UInt8, UInt16, UInt32, UInt64
from engine.qapi.features import Feature, Wire
from engine.qapi.output import to_wire
from engine.qapi.registry import Command, Registry, command, dispatch, event, registry
from engine.qapi.schema import introspect
from engine.qapi.tags import TagEnum, tag_enum
from engine.qapi.types import Alternate, Enum, Member, Struct, Union
from engine.qapi.visit import from_wire

__all__ = [
    "NULL",
    "Alternate",
    "Command",
    "Enum",
    "Feature",
    "Int",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "Member",
    "Null",
    "Number",
    "Registry",
    "Size",
    "Struct",
    "TagEnum",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "Union",
    "Wire",
    "command",
    "dispatch",
    "event",
    "from_wire",
    "introspect",
    "registry",
    "tag_enum",
    "to_wire",
]

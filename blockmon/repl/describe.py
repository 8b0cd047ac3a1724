"""A word or two for what an argument takes, for menus and hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockmon.model.schema import ArgInfo, alternatives, type_word
from blockmon.repl.docs import value_doc
from blockmon.repl.meaning import Names, meaning_of
from blockmon.repl.summaries import ACTIONS, DRIVERS, OBJECTS, SUMMARIES

MARKS = ("deprecated", "unstable")

_WORDS = {
    Names.NODE: "node",
    Names.DEVICE: "device or node",
    Names.JOB: "job",
    Names.EXPORT: "export",
    Names.BITMAP: "bitmap",
    Names.FILE: "file name",
    Names.LAYER: "file name of a layer",
    Names.FORMAT: "format",
    Names.EDGE: "edge",
    Names.DRIVE: "drive",
    Names.QDEV: "guest device",
    Names.PERIPHERAL: "guest device",
    Names.SNAPSHOT: "snapshot",
    Names.CHARDEV: "character device",
    Names.PATH: "QOM path",
    Names.PROPERTY: "property",
    Names.MODEL: "device model",
}


def takes(command: str, path: Sequence[str | int], info: ArgInfo, arguments: Mapping[str, Any], width: int = 48) -> str:
    """What the member *info* at *path* takes, in at most *width* characters: ``node or {…}``, ``integer``."""
    meaning = meaning_of(command, path, info, arguments)
    if meaning.names is Names.SIZE:
        return "size"
    if meaning.names is Names.OBJECT:
        name = meaning.of or "object"
    else:
        name = _WORDS.get(meaning.names, "")
    if not name or not any(choice.kind == "str" for choice in alternatives(info)):
        return type_word(info, width)
    rest = [type_word(choice, width) for choice in alternatives(info) if choice.kind != "str"]
    text = " or ".join((name, *rest))
    return text if len(text) <= width else text[: width - 1] + "…"


def value_text(command: str, member: str, values: tuple[str, ...], value: str) -> str:
    """What *value* of the enumeration with *values* means where *member* of *command*'s arguments takes it."""
    if member in ("driver", "format"):
        text = DRIVERS.get(value, "")
    elif member == "qom-type":
        text = OBJECTS.get(value, "")
    elif command == "transaction" and member == "type":
        text = SUMMARIES.get(value) or ACTIONS.get(value, "")
    else:
        text = ""
    return text or value_doc(values, value)


def marks(features: Sequence[str] | frozenset[str]) -> list[str]:
    """The features that a user should be told of, as words."""
    return [mark for mark in MARKS if mark in features]

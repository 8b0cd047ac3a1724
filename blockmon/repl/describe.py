"""A word or two for what an argument takes, for menus and hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockmon.model.schema import ArgInfo, alternatives, type_word
from blockmon.repl.meaning import Names, meaning_of

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
}


def takes(command: str, path: Sequence[str | int], info: ArgInfo, arguments: Mapping[str, Any], width: int = 48) -> str:
    """What the member *info* at *path* takes, in at most *width* characters: ``node or {…}``, ``integer``."""
    meaning = meaning_of(command, path, info, arguments)
    if meaning.names is Names.OBJECT:
        name = meaning.of or "object"
    else:
        name = _WORDS.get(meaning.names, "")
    if not name or not any(choice.kind == "str" for choice in alternatives(info)):
        return type_word(info, width)
    rest = [type_word(choice, width) for choice in alternatives(info) if choice.kind != "str"]
    text = " or ".join((name, *rest))
    return text if len(text) <= width else text[: width - 1] + "…"


def marks(features: Sequence[str] | frozenset[str]) -> list[str]:
    """The features that a user should be told of, as words."""
    return [mark for mark in MARKS if mark in features]

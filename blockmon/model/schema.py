"""A server's own description of its commands (query-qmp-schema), as completion and hints ask about it.

Reading the introspection is `blockmon.lang.Schema`'s work; here is what a person who types wants to know on top:
in which order to offer arguments, what may stand at a place inside nested arguments, and a short word for a type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blockmon.lang import ArgInfo, Members
from blockmon.lang import Schema as IntrospectedSchema

__all__ = ["ArgInfo", "Members", "Schema", "alternatives", "in_order", "type_word", "value_at"]

_WORDS = {
    "int": "integer",
    "number": "number",
    "bool": "on|off",
    "str": "string",
    "null": "null",
    "any": "any",
    "object": "{…}",
    "array": "[…]",
}

Step = str | int


class Schema(IntrospectedSchema):
    """The commands and events a server has, with the arguments of every command down to any depth."""

    @property
    def knows_hmp(self) -> bool:
        """Whether HMP lines can be sent; a storage daemon has no human monitor."""
        return "human-monitor-command" in self.commands

    def features(self, command: str) -> frozenset[str]:
        """Features of *command* itself, such as ``deprecated`` and ``unstable``; empty for an unknown command."""
        entry = self.commands.get(command, {})
        return frozenset(_feature_name(feature) for feature in entry.get("features", ()))

    def members_at(self, command: str, path: Sequence[Step], values: Mapping[str, Any]) -> list[ArgInfo]:
        """The members that an object at *path* inside the arguments of *command* can have, in the order to offer them.

        *values* are the arguments given so far, complete or not: where the object is a union, the value of its tag
        in there picks the branch, and while it has none only the common members are known. An empty *path* is the
        arguments themselves.
        """
        found: dict[str, ArgInfo] = {}
        tags = set()
        value = value_at(values, path)
        for info in self.infos_at(command, path, values):
            if info.kind != "object":
                continue
            members = info.members
            if members.tag is not None:
                tags.add(members.tag)
            narrowed = members.narrow(value if isinstance(value, Mapping) else {})
            if narrowed.tag is not None:
                tags.add(narrowed.tag)
            for name, member in narrowed.common.items():
                found.setdefault(name, member)
        return in_order(found.values(), first=tags)

    def infos_at(self, command: str, path: Sequence[Step], values: Mapping[str, Any]) -> list[ArgInfo]:
        """What may stand at *path* inside the arguments of *command*: one entry a type, alternates taken apart.

        List elements are steps of type int, or the decimal text that dotted keys have. Empty when the path leads
        nowhere in this schema.
        """
        root = self.arguments_of(command)
        infos = [ArgInfo("", "object", expand=lambda: root)]
        value: Any = values
        for step in path:
            following: list[ArgInfo] = []
            for info in infos:
                if info.kind == "object":
                    members = info.members.narrow(value if isinstance(value, Mapping) else {})
                    member = members.common.get(str(step))
                    if member is not None:
                        following += alternatives(member)
                elif info.kind == "array" and info.element is not None and str(step).isdecimal():
                    following += alternatives(info.element)
            infos = following
            value = value_at(value, (step,))
        return infos


def _feature_name(feature: Any) -> str:
    return str(feature["name"]) if isinstance(feature, Mapping) else str(feature)


def value_at(values: Any, path: Sequence[Step]) -> Any:
    """What is given at *path* inside *values*; None where there is nothing."""
    for step in path:
        if isinstance(values, Mapping):
            values = values.get(step, values.get(str(step)))
        elif isinstance(values, list) and isinstance(step, int) and 0 <= step < len(values):
            values = values[step]
        else:
            return None
    return values


def alternatives(info: ArgInfo) -> list[ArgInfo]:
    """The types that *info* stands for: itself, or those of an alternate."""
    if info.kind != "alternate":
        return [info]
    return [inner for choice in info.choices for inner in alternatives(choice)]


def in_order(infos: Iterable[ArgInfo], first: Iterable[str] = ()) -> list[ArgInfo]:
    """Sort members for display: *first* (a union's tag), required, optional, and deprecated or unstable ones last."""
    leading = set(first)

    def rank(info: ArgInfo) -> int:
        if "deprecated" in info.features or "unstable" in info.features:
            return 3
        if info.name in leading:
            return 0
        return 2 if info.optional else 1

    return sorted(infos, key=rank)


def type_word(info: ArgInfo, width: int = 40) -> str:
    """A short text for what *info* takes, at most *width* characters: ``integer``, ``full|top|none``, ``{…}``."""
    words: list[str] = []
    for choice in alternatives(info):
        if choice.kind == "enum":
            text = "|".join(choice.values)
        elif choice.kind == "array" and choice.element is not None:
            text = f"[{type_word(choice.element, width)}]"
        else:
            text = _WORDS[choice.kind]
        if text not in words:
            words.append(text)
    joined = " or ".join(words)
    return joined if len(joined) <= width else joined[: width - 1] + "…"

"""What a command's arguments are, read from the answer of query-qmp-schema. Resolved only as far as asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

Kind = Literal["int", "number", "bool", "str", "null", "any", "enum", "object", "array", "alternate"]

_BUILTIN: dict[str, Kind] = {
    "int": "int",
    "number": "number",
    "boolean": "bool",
    "string": "str",
    "null": "null",
    "value": "any",
    "object": "object",
    "array": "array",
}


class ArgInfo:
    """One argument, or one member of an object.

    `values` are an enum's names; `element` describes the items of an array; `members` those of an object;
    `choices` the types an alternate can be. Each is empty or None for the other kinds.
    """

    __slots__ = ("_expand", "features", "kind", "name", "optional")

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        optional: bool = False,
        features: Sequence[str] = (),
        expand: "Callable[[], Any] | None" = None,
    ) -> None:
        self.name = name
        self.kind: Kind = kind
        self.optional = optional
        self.features = tuple(features)
        self._expand = expand

    def __repr__(self) -> str:
        return f"ArgInfo({self.name!r}, {self.kind!r}, optional={self.optional})"

    @property
    def values(self) -> tuple[str, ...]:
        """An enum's names, in the schema's order."""
        return self._expand() if self.kind == "enum" and self._expand else ()

    @property
    def element(self) -> "ArgInfo | None":
        """What an array holds."""
        return self._expand() if self.kind == "array" and self._expand else None

    @property
    def members(self) -> "Members":
        """An object's members."""
        return self._expand() if self.kind == "object" and self._expand else Members()

    @property
    def choices(self) -> "tuple[ArgInfo, ...]":
        """The types an alternate can be."""
        return self._expand() if self.kind == "alternate" and self._expand else ()


class Members(Mapping[str, ArgInfo]):
    """The members of an object by name. Those of a union are the common ones and those of every branch, until
    `narrow` is told the value of the `tag` member."""

    __slots__ = ("_all", "branches", "common", "tag")

    def __init__(
        self,
        common: Iterable[ArgInfo] = (),
        tag: str | None = None,
        branches: "Mapping[str, Callable[[], Members]] | None" = None,
    ) -> None:
        self.common = {info.name: info for info in common}
        self.tag = tag
        self.branches = branches or {}
        self._all: dict[str, ArgInfo] | None = None

    def _merged(self) -> dict[str, ArgInfo]:
        if self._all is None:
            merged = dict(self.common)
            for branch in self.branches.values():
                for name, info in branch().items():
                    # What one branch demands the others do not have, so before the branch is known it is optional.
                    merged.setdefault(name, ArgInfo(name, info.kind, optional=True, expand=info._expand))
            self._all = merged
        return self._all

    def __getitem__(self, name: str) -> ArgInfo:
        found = self.common.get(name)
        return found if found is not None else self._merged()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._merged())

    def __len__(self) -> int:
        return len(self._merged())

    def narrow(self, given: Mapping[str, Any]) -> "Members":
        """The members of the branch that the tag's value in *given* chooses; self when it is not there or unknown."""
        if self.tag is None:
            return self
        branch = self.branches.get(str(given.get(self.tag)))
        if branch is None:
            return self
        chosen = branch().narrow(given)
        return Members((*self.common.values(), *chosen.common.values()), chosen.tag, chosen.branches)


class Schema:
    """The commands and events a server says it has (query-qmp-schema)."""

    def __init__(self, introspection: Sequence[Mapping[str, Any]]) -> None:
        self._types: dict[str, Mapping[str, Any]] = {}
        self._commands: dict[str, Mapping[str, Any]] = {}
        self._events: dict[str, Mapping[str, Any]] = {}
        self._members: dict[str, Members] = {}
        for entry in introspection:
            meta = entry["meta-type"]
            where = self._commands if meta == "command" else self._events if meta == "event" else self._types
            where[entry["name"]] = entry

    @property
    def commands(self) -> Mapping[str, Mapping[str, Any]]:
        """The introspection entries of the commands, by name."""
        return self._commands

    @property
    def events(self) -> Mapping[str, Mapping[str, Any]]:
        """The introspection entries of the events, by name."""
        return self._events

    def arguments_of(self, command: str) -> Members:
        """What *command* takes; empty for an unknown command."""
        entry = self._commands.get(command)
        return self.object_members(entry["arg-type"]) if entry is not None else Members()

    def data_of(self, event: str) -> Members:
        """What *event* tells; empty for an unknown event."""
        entry = self._events.get(event)
        return self.object_members(entry["arg-type"]) if entry is not None else Members()

    def object_members(self, type_name: str) -> Members:
        """The members of the object type *type_name*."""
        known = self._members.get(type_name)
        if known is None:
            entry = self._types.get(type_name, {})
            branches = {
                variant["case"]: (lambda name=variant["type"]: self.object_members(name))
                for variant in entry.get("variants", ())
            }
            common = [
                self.describe(m["name"], m["type"], optional="default" in m, features=m.get("features", ()))
                for m in entry.get("members", ())
            ]
            known = self._members[type_name] = Members(common, entry.get("tag"), branches)
        return known

    def describe(self, name: str, type_name: str, *, optional: bool = False, features: Sequence[str] = ()) -> ArgInfo:
        """The member *name* of the type *type_name*."""
        entry = self._types.get(type_name, {"meta-type": "builtin", "json-type": "value"})
        expand: Callable[[], Any] | None = None
        kind: Kind
        match entry["meta-type"]:
            case "enum":
                kind = "enum"

                def expand() -> tuple[str, ...]:
                    # Servers before 6.2 list plain names in "values" only.
                    listed = entry.get("members")
                    return tuple(m["name"] for m in listed) if listed is not None else tuple(entry["values"])
            case "array":
                kind = "array"

                def expand() -> ArgInfo:
                    return self.describe(name, entry["element-type"])
            case "object":
                kind = "object"

                def expand() -> Members:
                    return self.object_members(type_name)
            case "alternate":
                kind = "alternate"

                def expand() -> tuple[ArgInfo, ...]:
                    return tuple(self.describe(name, m["type"]) for m in entry["members"])
            case _:
                kind = _BUILTIN.get(entry["json-type"], "any")
        return ArgInfo(name, kind, optional=optional, features=features, expand=expand)

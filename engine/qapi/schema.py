"""The schema as clients see it: the list that query-qmp-schema returns (SchemaInfo in QEMU's introspect.json)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from engine.qapi.builtin import Builtin
from engine.qapi.features import Feature
from engine.qapi.registry import Command, Registry
from engine.qapi.registry import registry as _registry
from engine.qapi.tags import TagEnum, load_all
from engine.qapi.types import Alternate, Array, Enum, Member, Struct, Type, Union

Info = dict[str, Any]


class _Arguments:
    """The nameless object type of a command's own arguments."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members


_Named = Alternate | TagEnum | type[Enum] | type[Struct] | _Arguments


class _Introspection:
    """Collects the types in use; all but the builtin ones get a number for a name."""

    def __init__(self) -> None:
        self.infos: list[Info] = []
        self._names: dict[int, str] = {}
        self._waiting: deque[_Named | Array | Builtin] = deque()
        self._seen: set[str] = set()
        self._kept: list[Any] = []  # numbers go by id(), so nothing may be freed meanwhile

    def use(self, tp: Type | _Arguments) -> str:
        """Return the name that stands for *tp*, and have it described."""
        if isinstance(tp, Builtin):
            name = {"string": "str", "integer": "int", "value": "any", "boolean": "bool"}.get(tp.json, tp.json)
        elif isinstance(tp, Array):
            name = f"[{self.use(tp.element)}]"
        else:
            if isinstance(tp, _Arguments) and not tp.members:
                tp = Struct
            number = self._names.get(id(tp))
            if number is None:
                number = self._names[id(tp)] = str(len(self._names))
                self._kept.append(tp)
            name = number
        if name not in self._seen:
            self._seen.add(name)
            self._waiting.append(tp)
        return name

    def command(self, command: Command) -> None:
        """Describe a command."""
        boxed = command.argument_type
        returns = command.returns
        info: Info = {
            "name": command.name,
            "meta-type": "command",
            "arg-type": self.use(_Arguments(command.arguments) if boxed is None else boxed),
            "ret-type": self.use(Struct if returns is None else returns),
        }
        if command.allow_oob:
            info["allow-oob"] = True
        self._add(info, command.features)

    def event(self, cls: type[Struct]) -> None:
        """Describe an event."""
        data = cls if issubclass(cls, Union) or cls.qapi_members() else Struct
        self._add({"name": cls.EVENT, "meta-type": "event", "arg-type": self.use(data)}, cls.__qapi_features__)

    def types(self) -> None:
        """Describe all types used so far, and those they use."""
        while self._waiting:
            self._type(self._waiting.popleft())

    def _type(self, tp: _Named | Array | Builtin) -> None:
        name = self.use(tp)
        if isinstance(tp, Builtin):
            self.infos.append({"name": name, "meta-type": "builtin", "json-type": tp.json})
        elif isinstance(tp, Array):
            self.infos.append({"name": name, "meta-type": "array", "element-type": self.use(tp.element)})
        elif isinstance(tp, Alternate):
            members = [{"type": self.use(branch)} for branch in tp.branches.values()]
            self._add({"name": name, "meta-type": "alternate", "members": members}, tp.features)
        elif isinstance(tp, TagEnum):
            self._enum(name, tp.values.items())
        elif isinstance(tp, _Arguments):
            self.infos.append({"name": name, "meta-type": "object", "members": self._members(tp.members)})
        elif issubclass(tp, Enum):
            self._enum(name, ((member.value, tp.value_features(member.value)) for member in tp))
        else:
            self._object(name, tp)

    def _enum(self, name: str, values: Iterable[tuple[str, Iterable[Feature]]]) -> None:
        members: list[Info] = []
        for value, features in values:
            member: Info = {"name": value}
            if names := [feature.name for feature in features]:
                member["features"] = names
            members.append(member)
        # "values" is what clients of QEMU before 6.2 read.
        values_only = [member["name"] for member in members]
        self.infos.append({"name": name, "meta-type": "enum", "members": members, "values": values_only})

    def _object(self, name: str, cls: type[Struct]) -> None:
        info: Info = {"name": name, "meta-type": "object", "members": self._members(cls.qapi_members())}
        if issubclass(cls, Union):
            tag = cls.qapi_tag_type()
            values = list(tag) if isinstance(tag, TagEnum) else [member.value for member in tag]
            info["tag"] = next(m.name for m in cls.qapi_members() if m.attr == cls.qapi_tag_name())
            info["variants"] = [{"case": value, "type": self.use(cls.qapi_branch_type(value))} for value in values]
        self._add(info, cls.__qapi_features__)

    def _members(self, members: list[Member]) -> list[Info]:
        result: list[Info] = []
        for member in members:
            info: Info = {"name": member.name, "type": self.use(member.type)}
            if member.optional:
                info["default"] = None
            if member.features:
                info["features"] = [feature.name for feature in member.features]
            result.append(info)
        return result

    def _add(self, info: Info, features: Iterable[Feature]) -> None:
        if names := [feature.name for feature in features]:
            info["features"] = names
        self.infos.append(info)


def introspect(registry: Registry = _registry) -> list[Info]:
    """Return what query-qmp-schema returns: commands and events, then every type they use."""
    load_all()
    result = _Introspection()
    for command in registry.commands.values():
        result.command(command)
    for cls in registry.events.values():
        result.event(cls)
    result.types()
    return result.infos

"""What every type of object has: typed options that are its properties too, a life, users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from engine.errors import GenericError
from engine.qapi import Enum, Struct, Union, from_wire, to_wire
from engine.qapi.builtin import BOOL, INT, STR, Builtin
from engine.qapi.types import Array, Member, Type

if TYPE_CHECKING:
    from engine.objects.store import Objects


class ObjectOptions(Union, tag="qom_type", tag_enum="ObjectType"):
    """An object to make.

    qom_type: its type
    id: its name
    """

    qom_type: str
    id: str


_DEFAULTS: Final[Mapping[Builtin, Any]] = {STR: "", BOOL: False, INT: 0}


class UserObject:
    """An object made by a user. Everything but what a type says otherwise belongs to the control plane.

    A type gives its names, its options, and complete(). The options' members are properties of the same name and type.
    """

    type_name: ClassVar[str]
    """Name on the wire of object-add (``qom-type``)."""
    qom_type: ClassVar[str] = ""
    """Name in QOM, where that is another."""
    ancestors: ClassVar[tuple[str, ...]] = ("object",)
    """QOM types above, the nearest first."""
    Options: ClassVar[type[Struct]]
    properties: ClassVar[tuple[str, ...]]
    """Wire names of the properties, in the order qom-list shows them."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Wire values of options that are not given, where they are not 0, false or ''."""
    read_only: ClassVar[Mapping[str, Any]] = {"loaded": True}
    """Properties that can't be set, not even by the option of that name, and their values."""
    deletable_in_use: ClassVar[bool] = True
    """Whether object-del is allowed while there are users, who then keep the object."""

    def __init__(self, objects: Objects, id: str, options: Struct) -> None:
        """Take the options over. Errors: GenericError (values that can't be)."""
        self.objects = objects
        self.id = id
        self.options = options
        self._users: list[object] = []
        for member in options.qapi_members():
            if member.name in self.read_only and getattr(options, member.attr) is not None:
                raise self._not_writable(member.name)

    def complete(self) -> None:
        """Load what the options name. Errors: GenericError; the object then does not come to be."""

    def close(self) -> None:
        """The object is deleted, or the engine ends."""

    @classmethod
    def qom_name(cls) -> str:
        """The type's name in QOM."""
        return cls.qom_type or cls.type_name

    # -- users -----------------------------------------------------------------------------------------------

    def hold(self, user: object) -> None:
        """*user* uses the object from now on; may be said several times."""
        self._users.append(user)

    def release(self, user: object) -> None:
        """Undo one hold()."""
        self._users.remove(user)

    @property
    def in_use(self) -> bool:
        """Whether anybody uses the object."""
        return bool(self._users)

    # -- properties ------------------------------------------------------------------------------------------

    @classmethod
    def option(cls, name: str) -> Member | None:
        """The option that the property *name* stands for."""
        return next((member for member in cls.Options.qapi_members() if member.name == name), None)

    @classmethod
    def property_types(cls) -> dict[str, str]:
        """The properties and their types' names, in the order of qom-list."""
        found = {"type": "string"}
        for name in cls.properties:
            member = cls.option(name)
            assert member is not None
            found[name] = _type_name(member.type)
        return found

    def get_property(self, name: str) -> Any:
        """The value of a property in wire form. Errors: GenericError."""
        if name == "type":
            return self.qom_name()
        if name in self.read_only and name in self.properties:
            return self.read_only[name]
        member = self._property(name)
        value = getattr(self.options, member.attr)
        if value is not None:
            return to_wire(value)
        if name in self.defaults:
            return self.defaults[name]
        return _DEFAULTS.get(member.type) if isinstance(member.type, Builtin) else None

    def set_property(self, name: str, value: Any, *, text: bool = False) -> None:
        """Set a property to a wire value; text: to what a person typed. Errors: GenericError."""
        if name == "type" or (name in self.read_only and name in self.properties):
            raise self._not_writable(name)
        member = self._property(name)
        if text:
            value = self._read_text(member, value)
        self.change(member, from_wire(member.type, value, name=name, keyval=text and isinstance(value, str)))

    def change(self, member: Member, value: Any) -> None:
        """Take a new value of a property over. Errors: GenericError."""
        setattr(self.options, member.attr, value)

    def _property(self, name: str) -> Member:
        member = self.option(name) if name in self.properties else None
        if member is None:
            raise GenericError(f"Property '{self.qom_name()}.{name}' not found")
        return member

    def _read_text(self, member: Member, text: str) -> Any:
        kind = member.type
        if isinstance(kind, Builtin) and kind is INT:
            from engine.qapi import scalars

            number = scalars.parse_int64(text)
            if number is None:
                raise GenericError(f"Parameter '{member.name}' expects int64")
            return number
        if isinstance(kind, Builtin) or (isinstance(kind, type) and issubclass(kind, Enum)):
            return text
        raise GenericError(f"Property '{self.qom_name()}.{member.name}' takes its value in JSON format (use -j)")

    def _not_writable(self, name: str) -> GenericError:
        return GenericError(f"Property '{self.qom_name()}.{name}' is not writable")


def _type_name(kind: Type) -> str:
    if isinstance(kind, Array):
        return _type_name(kind.element)
    if isinstance(kind, Builtin):
        return {"str": "string", "int": "int"}.get(kind.name, kind.c_name or kind.name)
    return kind.__name__ if isinstance(kind, type) else kind.name


types: dict[str, type[UserObject]] = {}
"""The types of objects by their names in object-add."""

_O = TypeVar("_O", bound=type[UserObject])


def user_creatable(cls: _O) -> _O:
    """Class decorator: make the type known to object-add and the schema."""
    types[cls.type_name] = cls
    ObjectOptions.add_branch(cls.type_name, cls.Options)
    return cls

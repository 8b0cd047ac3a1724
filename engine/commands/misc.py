"""Commands about the engine itself: version, commands, schema, end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from engine.devices.events import ShutdownCause
from engine.errors import GenericError
from engine.qapi import Enum, Feature, Int, Struct, Union, command, registry

if TYPE_CHECKING:
    from engine.engine import Engine


class VersionTriple(Struct):
    """A version as three numbers."""

    major: Int
    minor: Int
    micro: Int


class VersionInfo(Struct):
    """qemu: the QEMU version whose behaviour is followed. package: who answers."""

    qemu: VersionTriple
    package: str


VERSION = VersionInfo(qemu=VersionTriple(major=7, minor=2, micro=22), package="blockmon")
"""What query-version and the greeting say."""


@command(since="0.14", allow_preconfig=True)
def query_version(engine: Engine) -> VersionInfo:
    """Tell the version of the engine."""
    return VERSION


class CommandInfo(Struct):
    """A command. name: as it is executed."""

    name: str


@command(since="0.14", allow_preconfig=True)
def query_commands(engine: Engine) -> list[CommandInfo]:
    """List the commands there are."""
    return [CommandInfo(name=name) for name in registry.commands]


@command(since="0.14", allow_preconfig=True)
def quit(engine: Engine) -> None:
    """End the program; a running job is cancelled."""
    if engine.on_quit is None:
        raise GenericError("The program that runs this engine does not end at 'quit'")
    engine.shutdown_cause = ShutdownCause.HOST_QMP_QUIT
    engine.on_quit()


# -- the schema of the schema ----------------------------------------------------------------------------------------


class SchemaMetaType(Enum):
    """The kinds of entities in the schema."""

    BUILTIN = "builtin"
    ENUM = "enum"
    ARRAY = "array"
    OBJECT = "object"
    ALTERNATE = "alternate"
    COMMAND = "command"
    EVENT = "event"


class JSONType(Enum):
    """The types of JSON values, as the schema tells them apart."""

    STRING = "string"
    NUMBER = "number"
    INT = "int"
    BOOLEAN = "boolean"
    NULL = "null"
    OBJECT = "object"
    ARRAY = "array"
    VALUE = "value"


class SchemaInfoBuiltin(Struct):
    """A type without members. json_type: what its values are in JSON."""

    json_type: JSONType


class SchemaInfoEnumMember(Struct):
    """A value of an enumeration."""

    name: str
    features: list[str] | None = None


class SchemaInfoEnum(Struct):
    """members: the values. values: the same as plain strings."""

    members: list[SchemaInfoEnumMember]
    values: Annotated[list[str], Feature("deprecated")]


class SchemaInfoArray(Struct):
    """element_type: the type of each element."""

    element_type: str


class SchemaInfoObjectMember(Struct):
    """A member of an object. default: there, and null, when the member is optional."""

    name: str
    type: str
    default: Any = None
    features: list[str] | None = None


class SchemaInfoObjectVariant(Struct):
    """What an object has besides when its tag has the value *case*."""

    case: str
    type: str


class SchemaInfoObject(Struct):
    """members: the common ones. tag: the member that chooses among variants."""

    members: list[SchemaInfoObjectMember]
    tag: str | None = None
    variants: list[SchemaInfoObjectVariant] | None = None


class SchemaInfoAlternateMember(Struct):
    """One of the types an alternate may have."""

    type: str


class SchemaInfoAlternate(Struct):
    """members: the types, told apart by their JSON types."""

    members: list[SchemaInfoAlternateMember]


class SchemaInfoCommand(Struct):
    """arg_type: object type of the arguments. ret_type: type of the result. allow_oob: may run out of band."""

    arg_type: str
    ret_type: str
    allow_oob: bool | None = None


class SchemaInfoEvent(Struct):
    """arg_type: object type of the data."""

    arg_type: str


class SchemaInfo(Union, tag="meta_type", tag_enum=SchemaMetaType):
    """One entity of the schema."""

    name: str
    meta_type: SchemaMetaType
    features: list[str] | None = None


for _value, _branch in (
    ("builtin", SchemaInfoBuiltin),
    ("enum", SchemaInfoEnum),
    ("array", SchemaInfoArray),
    ("object", SchemaInfoObject),
    ("alternate", SchemaInfoAlternate),
    ("command", SchemaInfoCommand),
    ("event", SchemaInfoEvent),
):
    SchemaInfo.add_branch(_value, _branch)


@command(since="2.5", allow_preconfig=True)
def query_qmp_schema(engine: Engine) -> list[SchemaInfo]:
    """List every command, event and type, as clients need them to know what this engine can do."""
    from engine.qapi.schema import introspect

    # Wire values already: an optional member's "default": null would be lost in a struct.
    return introspect()  # type: ignore[return-value]

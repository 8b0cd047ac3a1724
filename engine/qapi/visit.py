"""Turning wire values (JSON-shaped) into Python objects, with the checks and texts of QEMU's visitors.

``from_wire`` follows qobject-input-visitor: members in schema order, the first fault is reported. Two dialects: JSON
values, and keyval (dotted keys), where every scalar is a string and list elements are named ``a.0``, not ``a[0]``.
Converters are built on first use and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from engine.errors import GenericError
from engine.qapi import scalars
from engine.qapi.builtin import NULL, Builtin, Null
from engine.qapi.tags import TagEnum
from engine.qapi.types import (
    REQUIRED,
    Alternate,
    Array,
    Enum,
    Member,
    Struct,
    Type,
    Union,
    parse_type,
)

Converter: TypeAlias = Callable[[Any], Any]

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
UINT64_MAX: Final = (1 << 64) - 1

MISSING = "Parameter '{}' is missing"
UNEXPECTED = "Parameter '{}' is unexpected"
UNEXPECTED_GROUP = "Parameters '{}.*' are unexpected"
WRONG_TYPE = "Invalid parameter type for '{}', expected: "
TOO_DEEP = "The parameters are nested too deeply"
EXPECTS = "Parameter '{}' expects "


class _Bad(Exception):
    """A fault found inside a value; collects the path on its way out.

    Some of QEMU's texts name only the innermost member (bare), the others its whole path.
    """

    def __init__(self, text: str, detail: str = "", bare: bool = False) -> None:
        self.text = text
        self.detail = detail
        self.bare = bare
        self.path: list[str] = []
        self.innermost: str | None = None

    def member(self, name: str) -> None:
        """The fault is inside the member *name*."""
        if self.innermost is None:
            self.innermost = name
        self.path.append(f".{name}")

    def element(self, suffix: str) -> None:
        """The fault is inside a list element; *suffix* is ``[0]`` or ``.0``."""
        if self.innermost is None:
            self.innermost = "null"
        self.path.append(suffix)

    def message(self) -> str:
        """Return the text for people."""
        if self.bare:
            name = self.innermost or "null"
        else:
            name = "".join(reversed(self.path)).removeprefix(".") or "<anonymous>"
        return self.text.format(name) + self.detail


# --- scalars, JSON dialect -------------------------------------------------------------------------------------------


def _to_int64(value: Any) -> int:
    if type(value) is not int or not INT64_MIN <= value <= INT64_MAX:
        raise _Bad(WRONG_TYPE, "integer")
    return value


def _to_uint64(value: Any) -> int:
    if type(value) is not int or not INT64_MIN <= value <= UINT64_MAX:
        raise _Bad(EXPECTS, "uint64")
    # Negative numbers wrap, as they always did on this wire.
    return value if value >= 0 else value + (1 << 64)


def _to_bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise _Bad(WRONG_TYPE, "boolean")


def _to_str(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str(value)
    raise _Bad(WRONG_TYPE, "string")


def _to_number(value: Any) -> float:
    if type(value) is float or type(value) is int:
        return value
    raise _Bad(WRONG_TYPE, "number")


def _to_any(value: Any) -> Any:
    return value


def _to_null(value: Any) -> Null:
    if value is None or value is NULL:
        return NULL
    raise _Bad(WRONG_TYPE, "null")


# --- scalars, keyval dialect -----------------------------------------------------------------------------------------


def _keyval_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list)):
        raise _Bad(UNEXPECTED_GROUP)
    raise _Bad("Internal error: parameter {} invalid")


def _keyval_int64(value: Any) -> int:
    number = scalars.parse_int64(_keyval_str(value))
    if number is None:
        raise _Bad(EXPECTS, "integer")
    return number


def _keyval_uint64(value: Any) -> int:
    number = scalars.parse_uint64(_keyval_str(value))
    if number is None:
        raise _Bad(EXPECTS, "integer")
    return number


def _keyval_size(value: Any) -> int:
    number = scalars.parse_size(_keyval_str(value))
    if number is None:
        raise _Bad(EXPECTS, "size")
    return number


def _keyval_bool(value: Any) -> bool:
    flag = scalars.parse_bool(_keyval_str(value))
    if flag is None:
        raise _Bad(EXPECTS, "'on' or 'off'")
    return flag


def _keyval_number(value: Any) -> float:
    number = scalars.parse_number(_keyval_str(value))
    if number is None:
        raise _Bad(WRONG_TYPE, "number")
    return number


def _keyval_null(value: Any) -> Null:
    if _keyval_str(value):
        raise _Bad(WRONG_TYPE, "null")
    return NULL


_SCALARS: dict[tuple[str, bool], Converter] = {
    ("str", False): _to_str,
    ("bool", False): _to_bool,
    ("number", False): _to_number,
    ("any", False): _to_any,
    ("null", False): _to_null,
    ("int", False): _to_int64,
    ("size", False): _to_uint64,
    ("str", True): _keyval_str,
    ("bool", True): _keyval_bool,
    ("number", True): _keyval_number,
    ("any", True): _to_any,
    ("null", True): _keyval_null,
    ("int", True): _keyval_int64,
    ("size", True): _keyval_size,
}


def _ranged(kind: Builtin, keyval: bool) -> Converter:
    low, high, c_name = kind.minimum, kind.maximum, kind.c_name
    if low < 0:
        read = _keyval_int64 if keyval else _to_int64
    else:
        read = _keyval_uint64 if keyval else _to_uint64

    def convert(value: Any) -> int:
        number = read(value)
        if not low <= number <= high:
            raise _Bad(EXPECTS, c_name, bare=True)
        return number

    return convert


# --- composites ------------------------------------------------------------------------------------------------------

_converters: dict[tuple[int, bool], tuple[Type, Converter]] = {}
_by_annotation: dict[tuple[Any, bool], Converter] = {}


def converter(tp: Type, keyval: bool) -> Converter:
    """Return the function that turns a wire value into *tp* or raises ``_Bad``."""
    if isinstance(tp, Builtin):
        scalar = _SCALARS.get((tp.name, keyval))
        if scalar is not None:
            return scalar
    key = (id(tp), keyval)
    found = _converters.get(key)
    if found is not None:
        return found[1]
    made: Converter
    if isinstance(tp, Builtin):
        made = _ranged(tp, keyval)
    elif isinstance(tp, Array):
        made = _array(converter(tp.element, keyval), keyval)
    elif isinstance(tp, TagEnum):
        made = _tag(tp, keyval)
    elif isinstance(tp, Alternate):
        made = _Alternation(tp, keyval).convert
    elif issubclass(tp, Enum):
        made = _enumeration(tp, keyval)
    elif issubclass(tp, Union):
        made = UnionPlan(tp, keyval).convert
    else:
        made = StructPlan(tp, keyval).convert
    # The type is kept beside the converter so that its id stays its own.
    _converters[key] = (tp, made)
    return made


def _array(element: Converter, keyval: bool) -> Converter:
    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _Bad(WRONG_TYPE, "array")
        result: list[Any] = []
        append = result.append
        try:
            for item in value:
                append(element(item))
        except _Bad as bad:
            bad.element(f".{len(result)}" if keyval else f"[{len(result)}]")
            raise
        return result

    return convert


def _enumeration(cls: type[Enum], keyval: bool) -> Converter:
    values: dict[str, Enum] = {member.value: member for member in cls}
    read = _keyval_str if keyval else _to_str

    def convert(value: Any) -> Enum:
        text = read(value)
        found = values.get(text)
        if found is None:
            raise _Bad("Parameter '{}' does not accept value ", f"'{text}'", bare=True)
        return found

    return convert


def _tag(tag: TagEnum, keyval: bool) -> Converter:
    values = tag.values
    read = _keyval_str if keyval else _to_str

    def convert(value: Any) -> str:
        text = read(value)
        if text not in values:
            raise _Bad("Parameter '{}' does not accept value ", f"'{text}'", bare=True)
        return text

    return convert


_Field: TypeAlias = tuple[str, str, Converter, bool, bool]  # wire name, attribute, converter, optional, set None


class Fields:
    """The members of an object, ready to be read from a dict."""

    __slots__ = ("_keyval", "_members", "_ready")

    def __init__(self, members: Callable[[], list[Member]], keyval: bool) -> None:
        self._members = members
        self._keyval = keyval
        self._ready: list[_Field] | None = None

    def _compile(self) -> list[_Field]:
        fields: list[_Field] = []
        for m in self._members():
            # An optional member without a class default would be no attribute at all when absent.
            fields.append((m.name, m.attr, converter(m.type, self._keyval), m.optional, m.default is REQUIRED))
        self._ready = fields
        return fields

    def fill(self, source: dict[str, Any], target: dict[str, Any]) -> int:
        """Convert the members found in *source* into *target*; return how many there were."""
        count = 0
        for wire, attr, convert, optional, set_none in self._ready or self._compile():
            if wire in source:
                try:
                    target[attr] = convert(source[wire])
                except _Bad as bad:
                    bad.member(wire)
                    raise
                count += 1
            elif not optional:
                fault = _Bad(MISSING)
                fault.member(wire)
                raise fault
            elif set_none:
                target[attr] = None
        return count

    def unexpected(self, source: dict[str, Any], *others: Fields) -> _Bad:
        """Return the fault of the first member of *source* that is in none of the field lists."""
        known = {field[0] for fields in (self, *others) for field in fields._ready or fields._compile()}
        bad = _Bad(UNEXPECTED)
        bad.member(next(name for name in source if name not in known))
        return bad


class StructPlan:
    """Reads a struct."""

    __slots__ = ("cls", "fields")

    def __init__(self, cls: type[Struct], keyval: bool) -> None:
        self.cls = cls
        self.fields = Fields(cls.qapi_members, keyval)

    def convert(self, value: Any) -> Struct:
        """Turn the dict *value* into the struct."""
        if not isinstance(value, dict):
            raise _Bad(WRONG_TYPE, "object")
        result = object.__new__(self.cls)
        if self.fields.fill(value, result.__dict__) != len(value):
            raise self.fields.unexpected(value)
        return result


class UnionPlan:
    """Reads a discriminated union: base members, then the branch's, all in one object."""

    __slots__ = ("_branches", "_keyval", "cls", "fields")

    def __init__(self, cls: type[Union], keyval: bool) -> None:
        self.cls = cls
        self._keyval = keyval
        self.fields = Fields(cls.qapi_members, keyval)
        self._branches: dict[str, tuple[type[Struct], Fields]] = {}

    def _branch(self, tag: str) -> tuple[type[Struct], Fields]:
        struct = self.cls.qapi_branch_type(tag)
        made = struct, Fields(struct.qapi_members, self._keyval)
        if struct is not Struct:  # a branch without members may still be added
            self._branches[tag] = made
        return made

    def convert(self, value: Any) -> Union:
        """Turn the dict *value* into the union."""
        if not isinstance(value, dict):
            raise _Bad(WRONG_TYPE, "object")
        result = object.__new__(self.cls)
        own = result.__dict__
        count = self.fields.fill(value, own)
        tag = str(own[self.cls.qapi_tag_name()])
        struct, fields = self._branches.get(tag) or self._branch(tag)
        branch = object.__new__(struct)
        count += fields.fill(value, branch.__dict__)
        if count != len(value):
            raise self.fields.unexpected(value, fields)
        own["branch"] = branch
        return result


def json_kind(tp: Type) -> str:
    """Return which JSON type a value of *tp* has: object, array, string, number, boolean or null."""
    if isinstance(tp, Builtin):
        return "number" if tp.json == "int" else tp.json
    if isinstance(tp, Array):
        return "array"
    if isinstance(tp, TagEnum) or (isinstance(tp, type) and issubclass(tp, Enum)):
        return "string"
    if isinstance(tp, type):
        return "object"
    raise TypeError(f"{tp!r} cannot be a branch of an alternate")


_KINDS: dict[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
    Null: "null",
}


class _Alternation:
    """Reads an alternate: the JSON type of the value chooses the branch."""

    __slots__ = ("_alternate", "_keyval", "_ready")

    def __init__(self, alternate: Alternate, keyval: bool) -> None:
        self._alternate = alternate
        self._keyval = keyval
        self._ready: dict[str, Converter] | None = None

    def _compile(self) -> dict[str, Converter]:
        ready = {json_kind(tp): converter(tp, self._keyval) for tp in self._alternate.branches.values()}
        self._ready = ready
        return ready

    def convert(self, value: Any) -> Any:
        """Turn *value* into what its branch makes of it."""
        branches = self._ready or self._compile()
        convert = branches.get(_KINDS.get(type(value), ""))
        if convert is None:
            raise _Bad(WRONG_TYPE, self._alternate.name, bare=True)
        return convert(value)


def from_wire(tp: Any, value: Any, *, name: str = "", keyval: bool = False) -> Any:
    """Turn the wire *value* into the type *tp* (a Struct, an annotation, list[...] and so on).

    name: what the value is called in error texts (nothing for the object that holds all arguments).
    keyval: scalars are strings as dotted keys give them. Raises GenericError.
    """
    convert = _by_annotation.get((tp, keyval))
    if convert is None:
        convert = _by_annotation[tp, keyval] = converter(parse_type(tp, __name__), keyval)
    try:
        return convert(value)
    except _Bad as bad:
        if name:
            bad.member(name)
        raise GenericError(bad.message()) from None
    except RecursionError:
        raise GenericError(TOO_DEEP) from None


def arguments_from_wire(fields: Fields, arguments: dict[str, Any]) -> dict[str, Any]:
    """Turn a command's arguments into keyword arguments. Raises GenericError."""
    values: dict[str, Any] = {}
    try:
        if fields.fill(arguments, values) != len(arguments):
            raise fields.unexpected(arguments)
    except _Bad as bad:
        raise GenericError(bad.message()) from None
    except RecursionError:
        raise GenericError(TOO_DEEP) from None
    return values

"""The scalar types of the language, and the value for null."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, TypeAlias


class Null:
    """JSON null where it is a value of its own (``StrOrNull``), as opposed to None, which means absent.

    There is one instance, ``NULL``. It is false.
    """

    __slots__ = ()
    _instance: ClassVar[Null | None] = None

    def __new__(cls) -> Null:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "NULL"

    def __reduce__(self) -> str:
        return "NULL"


NULL: Final = Null()


class Builtin:
    """A scalar type of the language. name: QAPI's; json: name in introspection and of the JSON type."""

    __slots__ = ("c_name", "json", "maximum", "minimum", "name")

    def __init__(self, name: str, json: str, minimum: int = 0, maximum: int = 0, c_name: str = "") -> None:
        self.name = name
        self.json = json
        self.minimum = minimum
        self.maximum = maximum
        self.c_name = c_name

    def __repr__(self) -> str:
        return self.name


def _integer(name: str, bits: int, signed: bool) -> Builtin:
    low = -(1 << (bits - 1)) if signed else 0
    high = (1 << (bits - 1 if signed else bits)) - 1
    return Builtin(name, "int", low, high, f"{'' if signed else 'u'}int{bits}_t")


INT = _integer("int", 64, True)
SIZE = _integer("size", 64, False)
STR = Builtin("str", "string")
BOOL = Builtin("bool", "boolean")
NUMBER = Builtin("number", "number")
ANY = Builtin("any", "value")
NULL_TYPE = Builtin("null", "null")

Int: TypeAlias = int
"""A signed 64-bit integer."""
Int8 = Annotated[int, _integer("int8", 8, True)]
Int16 = Annotated[int, _integer("int16", 16, True)]
Int32 = Annotated[int, _integer("int32", 32, True)]
Int64 = Annotated[int, _integer("int64", 64, True)]
UInt8 = Annotated[int, _integer("uint8", 8, False)]
UInt16 = Annotated[int, _integer("uint16", 16, False)]
UInt32 = Annotated[int, _integer("uint32", 32, False)]
UInt64 = Annotated[int, _integer("uint64", 64, False)]
Size = Annotated[int, SIZE]
"""A number of bytes; dotted-key input takes suffixes (``1M``)."""
Number: TypeAlias = float


BY_PYTHON_TYPE: Final[dict[Any, Builtin]] = {
    int: INT,
    str: STR,
    bool: BOOL,
    float: NUMBER,
    Any: ANY,
    object: ANY,
    Null: NULL_TYPE,
}
"""What a plain Python type in an annotation means."""

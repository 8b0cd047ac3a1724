"""From options as they were given to the ``Options`` struct of a driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import GenericError
from engine.graph.driver import Driver
from engine.qapi import Struct, from_wire, scalars
from engine.qapi.builtin import Builtin


def typed_options(driver: Driver, options: Mapping[str, Any]) -> Struct:
    """An instance of the driver's ``OpenOptions`` or ``Options``.

    Strings stand for numbers and switches too, as in a ``json:`` name. Children are not looked at: they are opened,
    with their own checks, by open_child(). Errors: GenericError.
    """
    values: dict[str, Any] = {}
    kind = driver.OpenOptions or driver.Options
    for member in kind.qapi_members():
        if member.name in driver.child_options:
            values[member.attr] = "-"
        elif member.name in options:
            value = options[member.name]
            if isinstance(value, str) and isinstance(member.type, Builtin) and member.type.json == "int":
                # Text is read as the old option syntax has it, where a number of bytes may have a suffix.
                value = scalars.parse_size(value) if scalars.read_integer(value) is None else value
                value = options[member.name] if value is None else value
            # A number is as good as the text for it, but for "filename", which QEMU looks up before it converts any.
            if isinstance(value, (Mapping, list)) or (_is_text(member.type) and member.name != "filename"):
                value = _as_text(value)
            keyval = isinstance(value, (str, Mapping, list))
            values[member.attr] = from_wire(member.type, value, name=member.name, keyval=keyval)
        elif not member.optional:
            raise GenericError(f"Parameter '{member.name}' is missing")
    return kind(**values)


def _is_text(kind: Any) -> bool:
    return isinstance(kind, Builtin) and kind.json == "string"


def _as_text(value: Any) -> Any:
    """Nested options with every number and switch as the text for it, which some of them may be already."""
    match value:
        case Mapping():
            return {key: _as_text(item) for key, item in value.items()}
        case list():
            return [_as_text(item) for item in value]
        case bool():
            return "on" if value else "off"
        case int() | float():
            return str(value)
    return value

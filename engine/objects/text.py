"""Objects as a person writes them: ``TYPE,id=ID,option=value…`` or JSON, and the help about that."""

from __future__ import annotations

from engine.objects.base import ObjectOptions
from engine.objects.types import all_types
from engine.qapi import from_wire
from engine.qapi.json_stream import from_json
from engine.qapi.keyval import parse_with_help


def help_text(type_name: str | None) -> str:
    """What ``help`` among the options of an object says: the options of a type, or the types."""
    cls = next((cls for cls in all_types().values() if cls.qom_name() == type_name), None)
    if cls is None:
        names = sorted(cls.qom_name() for cls in all_types().values())
        return "".join(f"{line}\n" for line in ["List of user creatable objects:", *(f"  {name}" for name in names)])
    settable = [f"  {name}=<{kind}>\n" for name, kind in cls.property_types().items() if name not in ("type", "loaded")]
    return f"{type_name} options:\n" + "".join(sorted(settable))


def read_options(text: str) -> ObjectOptions | str:
    """Read the options of an object, dotted keys or JSON; or the text of the help asked for. Errors: GenericError."""
    if text.startswith("{"):
        options: ObjectOptions = from_wire(ObjectOptions, from_json(text))
        return options
    value, wants_help = parse_with_help(text, "qom-type")
    if wants_help:
        return help_text(value.get("qom-type"))
    options = from_wire(ObjectOptions, value, keyval=True)
    return options

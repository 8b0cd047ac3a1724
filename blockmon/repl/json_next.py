"""What can follow a whole value in JSON: a comma and the next member or item, or the bracket that closes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from blockmon.model.schema import ArgInfo, Schema, value_at
from blockmon.repl.candidates import Wanted
from blockmon.repl.context import Spot
from blockmon.repl.offers import Candidate

Meta = Callable[[Spot, tuple[str | int, ...], ArgInfo, Collection[str]], str]
MESSAGE_KEYS = {"execute": "the command", "arguments": "its arguments", "id": "comes back with the answer"}


def following(spot: Spot, schema: Schema, wanted: Wanted, meta: Meta) -> None:
    """Add what can follow the value at *spot* inside the arguments, or inside a JSON value of a qmp-shell line."""
    if spot.behind in ('"', "'", "{", "["):
        wanted.add(Candidate("," if spot.apart else ", ", "goes on", shown=",", literal=True))
        return
    bracket = spot.levels[-1][1] if spot.levels else "}"
    path = spot.path
    given = value_at(spot.arguments, path)
    if bracket == "]":
        close(spot, schema, wanted)
        wanted.add(Candidate(", ", "the next item", shown=",", literal=True))
        return
    given = given if isinstance(given, Mapping) else {}
    members = schema.members_at(spot.command, path, spot.arguments)
    siblings = {info.name for info in members}
    missing = [info for info in members if info.name not in given]
    if not any(not info.optional for info in missing):
        close(spot, schema, wanted)
    for info in missing:
        text = f'{_comma(spot)}"{info.name}": '
        about = meta(spot, path, info, siblings)
        wanted.add(Candidate(text, about, shown=info.name, literal=True, required=not info.optional))


def close(spot: Spot, schema: Schema, wanted: Wanted) -> None:
    """Offer the closing bracket, and those of all levels at once, if the brackets are not there already."""
    if spot.behind in ("}", "]"):
        return
    path, bracket = spot.levels[-1] if spot.levels else ((), "}")
    inside = str(path[-1]) if path else spot.command
    gap = spot.gap if "\n" in spot.gap else ""
    wanted.add(Candidate(gap + bracket, f"ends {inside}", shown=bracket, literal=True))
    outer = spot.levels[:-1]
    if any(_lacks(spot, schema, at) for at, end in outer if end == "}"):
        return
    everything = "".join(end for _, end in reversed(spot.levels)) + ("}" if spot.form.name == "JSON" else "")
    if everything != bracket:
        wanted.add(Candidate(gap + everything, "ends the command", shown=everything, literal=True))


def _lacks(spot: Spot, schema: Schema, path: tuple[str | int, ...]) -> bool:
    """Whether a required member of the object at *path* is missing."""
    given = value_at(spot.arguments, path)
    given = given if isinstance(given, Mapping) else {}
    members = schema.members_at(spot.command, path, spot.arguments)
    return any(not info.optional and info.name not in given for info in members)


def message_following(spot: Spot, schema: Schema, wanted: Wanted) -> None:
    """Add what can follow a member of the QMP message itself."""
    if spot.behind in ('"', "'"):
        wanted.add(Candidate("," if spot.apart else ", ", "goes on", shown=",", literal=True))
        return
    members = schema.members_at(spot.command, (), {})
    needed = [info.name for info in members if not info.optional]
    given = spot.arguments
    names = message_keys(spot)
    if spot.command in schema.commands and not members:
        names = [name for name in names if name != "arguments"]
    lacking = "execute" in names or (needed and "arguments" in names)
    arguments = given.get("arguments")
    if not lacking and needed and isinstance(arguments, Mapping):
        lacking = any(name not in arguments for name in needed)
    if not lacking and spot.behind not in ("}", "]"):
        gap = spot.gap if "\n" in spot.gap else ""
        wanted.add(Candidate(gap + "}", "ends the command", shown="}", literal=True))
    for name in names:
        required = name == "execute" or (name == "arguments" and bool(needed))
        meta = ("required " if required else "") + MESSAGE_KEYS[name]
        wanted.add(Candidate(f'{_comma(spot)}"{name}": ', meta, shown=name, literal=True, required=required))


def _comma(spot: Spot) -> str:
    """The comma behind the value, and the blanks in front of the next one: a line break stays."""
    return "," + (spot.gap if "\n" in spot.gap else " ")


def message_keys(spot: Spot) -> list[str]:
    """The members of a QMP message that are not given yet."""
    given = spot.arguments
    return [name for name in MESSAGE_KEYS if name not in given and (name != "execute" or "exec-oob" not in given)]

"""The line under the prompt: the signature of the command being typed, with the place of the cursor in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.utils import get_cwidth

from blockmon.lang import Form
from blockmon.model.schema import value_at
from blockmon.repl.context import Kind, Spot, spot_at
from blockmon.repl.describe import marks, takes
from blockmon.repl.docs import member_doc
from blockmon.repl.hmp_complete import io_usage
from blockmon.repl.hmp_help import HMPCommand
from blockmon.repl.knowledge import Knowledge

HINT, CURRENT, GIVEN, COMMAND = "class:hint", "class:hint.current", "class:hint.given", "class:hint.command"
REQUIRED = "class:hint.required bold"

_INSIDE = (Kind.KEY, Kind.VALUE, Kind.NEXT, Kind.COLON)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the signature."""

    text: str
    style: str = HINT
    about: bool = False
    """What the argument in front of it is for: the two are shown together."""


def hint_for(text: str, cursor: int, knowledge: Knowledge, width: int) -> StyleAndTextTuples:
    """The hint for *text* with the cursor at offset *cursor*, in at most *width* columns; empty when there is none."""
    spot = spot_at(text, cursor, knowledge.schema.commands)
    parts, current = _parts(spot, knowledge)
    return _fitted(parts, current, width)


def _parts(spot: Spot, knowledge: Knowledge) -> tuple[list[Part], int]:
    if spot.kind is Kind.COMMAND:
        return _command_parts(spot, knowledge)
    if spot.kind is Kind.HMP:
        return _hmp_parts(spot, knowledge)
    if spot.raw_message and spot.command in knowledge.schema.commands:
        return _argument_parts(Spot(Form.JSON, Kind.KEY, command=spot.command), knowledge)
    if spot.kind in _INSIDE and spot.command in knowledge.schema.commands:
        return _argument_parts(spot, knowledge)
    if spot.form is Form.JSON and spot.raw_message:
        return [Part('{"execute": COMMAND, "arguments": {…}}')], 0
    return [], 0


def _command_parts(spot: Spot, knowledge: Knowledge) -> tuple[list[Part], int]:
    if spot.word in knowledge.schema.commands:
        known = Spot(Form.SHELL, Kind.KEY, command=spot.word)
        parts, _ = _argument_parts(known, knowledge)
        return parts, 0
    if spot.word and spot.word in knowledge.hmp.commands and not spot.json:
        return _usage(knowledge.hmp.commands[spot.word], spot.word, -1)
    return [], 0


def _argument_parts(spot: Spot, knowledge: Knowledge) -> tuple[list[Part], int]:
    """`command › member: required= [optional=] …` for the object that the cursor is in."""
    schema = knowledge.schema
    inside, wanted = spot.path, ""
    if spot.kind is Kind.VALUE and spot.path:
        inside, wanted = spot.path[:-1], str(spot.path[-1])
    where = "".join(f" › {step}" for step in inside)
    parts = [Part(spot.command + where, COMMAND)]
    warned = marks(schema.features(spot.command))
    if warned:
        parts.append(Part(f"({', '.join(warned)})"))
    given = value_at(spot.arguments, inside)
    given = given if isinstance(given, Mapping) else {}
    members = schema.members_at(spot.command, inside, spot.arguments)
    siblings = {info.name for info in members}
    current = 0
    typed = spot.word if spot.kind is Kind.KEY else ""
    for info in members:
        here = info.name == wanted or (bool(typed) and info.name == typed)
        kind = takes(spot.command, (*inside, info.name), info, spot.arguments, 60) if here else ""
        warned = marks(info.features)
        note = f" ({', '.join(warned)})" if warned and here else ""
        text = f"{info.name}: {kind}{note}" if here else info.name
        text = f"[{text}]" if info.optional else text
        style = CURRENT if here else GIVEN if info.name in given else HINT if info.optional else REQUIRED
        if here:
            current = len(parts)
        parts.append(Part(text, style))
        if here and spot.kind is Kind.VALUE and (about := member_doc(spot.command, info.name, siblings)):
            parts.append(Part(f"— {about}", about=True))
    if wanted.isdecimal() and not members:
        # An item of a list: what the list holds.
        whole = next((i for i in schema.infos_at(spot.command, inside, spot.arguments) if i.kind == "array"), None)
        if whole is not None and whole.element is not None:
            kind = takes(spot.command, spot.path, whole.element, spot.arguments, 60)
            current = len(parts)
            parts.append(Part(f"{wanted}: {kind}", CURRENT))
    if not members and not inside:
        parts.append(Part("takes no arguments"))
    return parts, current


def _hmp_parts(spot: Spot, knowledge: Knowledge) -> tuple[list[Part], int]:
    command, given = knowledge.hmp.lookup(spot.words)
    if command is None:
        return [], 0
    flags = {flag.name for flag in command.flags}
    position = sum(word not in flags for word in given)
    shown = " ".join(spot.words[: len(spot.words) - len(given)])
    usage = io_usage(spot.word) if command.name == "qemu-io" and spot.quote else ""
    if usage:
        name = spot.word.split(maxsplit=1)[0]
        return [Part(f"{shown} › {name}", COMMAND), Part(usage, CURRENT)], 1
    return _usage(command, shown, position)


def _usage(command: HMPCommand, shown: str, position: int) -> tuple[list[Part], int]:
    parts = [Part(shown, COMMAND)]
    current = index = 0
    for argument in command.arguments:
        here = not argument.flag and index == position
        if here:
            current = len(parts)
        if not argument.flag:
            index += 1
        text = f"[{argument.name}]" if argument.optional else argument.name
        parts.append(Part(text, CURRENT if here else HINT))
    parts.append(Part(f"— {command.help}"))
    return parts, current


def _fitted(parts: Sequence[Part], current: int, width: int) -> StyleAndTextTuples:
    """Lay the parts out on one line. Where they do not fit, the command and what surrounds *current* stay."""
    if not parts or width < 4:
        return []
    sizes = [get_cwidth(part.text) + 1 for part in parts]
    first = 1
    last = current + (current + 1 < len(parts) and parts[current + 1].about)
    # Drop what is in front of the current part until it shows, with a sign that something is left out.
    while first < current and sizes[0] + 2 * (first > 1) + sum(sizes[first : last + 1]) > width:
        first += 1
    fragments: StyleAndTextTuples = []
    room = width
    shown = [parts[0], *([Part("…")] if first > 1 else []), *parts[first:]]
    for index, part in enumerate(shown):
        text = part.text if index == 0 else " " + part.text
        size = get_cwidth(text)
        more = index + 1 < len(shown)
        if size > room - (2 if more else 0):
            text = _cut(text, room - 1) + "…"
            fragments.append((part.style, text))
            break
        if index and part.style == CURRENT:
            fragments += [(HINT, " "), (part.style, part.text)]
        else:
            fragments.append((part.style, text))
        room -= size
    return fragments


def _cut(text: str, width: int) -> str:
    while text and get_cwidth(text) > width:
        text = text[:-1]
    return text

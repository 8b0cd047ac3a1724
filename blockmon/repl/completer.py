"""Completion for all three forms of input, from the schema, the HMP help, the live graph and the disk.

Here is what can follow at a place; `context` finds the place, `candidates` finds the names that an argument can have.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from blockmon.backend.read_only import why_refused
from blockmon.lang import Form
from blockmon.model.schema import ArgInfo, alternatives, type_word, value_at
from blockmon.repl.candidates import NameFinder, Wanted, scopes_of
from blockmon.repl.context import Kind, Spot, spot_at
from blockmon.repl.describe import marks, takes, value_text
from blockmon.repl.docs import member_doc
from blockmon.repl.files import FileName, files_matching
from blockmon.repl.hmp_complete import DEVICE_OPTIONS, HMPCompletion
from blockmon.repl.json_next import MESSAGE_KEYS, close, following, message_following, message_keys
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.meaning import Meaning, Names, meaning_of
from blockmon.repl.offers import Candidate, sizes
from blockmon.repl.summaries import SUMMARIES

MOST = 200
"""More candidates are not shown; typing on narrows them down."""

_NEEDS_QUOTES = re.compile(r"""[\s"']|^[\[{]""")


class ReplCompleter(Completer):
    """prompt_toolkit's completer over a `Knowledge`."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._finder = NameFinder(knowledge)
        self._hmp = HMPCompletion(knowledge, self._finder)
        self.unanswered: tuple[str, int] | None = None
        """The text and cursor of the last request if nothing was found: names that come later may answer it."""

    # prompt_toolkit's side -------------------------------------------------------------------------------------------

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Complete at once, reading directories where file names are wanted."""
        spot = spot_at(document.text, document.cursor_position, self._knowledge.schema.commands)
        spot, wanted = self._wanted(spot)
        files = files_matching(wanted.word) if wanted.files else []
        yield from self._completions(document, spot, wanted, files)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Complete without waiting for a slow disk on the event loop."""
        if complete_event.text_inserted and not document.current_line_before_cursor.strip():
            return  # a line begins, after pasted ones or a quick Enter: a menu of everything would be in the way
        spot = spot_at(document.text, document.cursor_position, self._knowledge.schema.commands)
        spot, wanted = self._wanted(spot)
        files = await asyncio.to_thread(files_matching, wanted.word) if wanted.files else []
        for completion in self._completions(document, spot, wanted, files):
            yield completion

    def _completions(
        self, document: Document, spot: Spot, wanted: Wanted, files: Iterable[FileName]
    ) -> Iterator[Completion]:
        candidates = self._finder.ranked(wanted, files)
        self.unanswered = None if candidates else (document.text, document.cursor_position)
        back = spot.start - document.cursor_position
        for candidate in candidates[:MOST]:
            text = candidate.text if candidate.literal else _written(spot, candidate)
            yield Completion(
                text,
                back,
                display=candidate.shown or candidate.text,
                display_meta=candidate.meta,
                style="bold" if candidate.required else "",
            )

    # What can stand here ---------------------------------------------------------------------------------------------

    def _wanted(self, spot: Spot) -> tuple[Spot, Wanted]:
        """What can stand at *spot*, and the spot of the part of a word that it stands for."""
        wanted = Wanted(spot.word)
        match spot.kind:
            case Kind.COMMAND:
                self._commands(spot, wanted)
            case Kind.KEY if spot.raw_message:
                _message_keys(spot, wanted)
            case Kind.KEY:
                self._keys(spot, wanted)
            case Kind.VALUE:
                self._values(spot, wanted)
            case Kind.COLON:
                wanted.add(Candidate(": ", "the value", shown=":", literal=True))
            case Kind.NEXT if spot.raw_message:
                message_following(spot, self._knowledge.schema, wanted)
            case Kind.NEXT:
                following(spot, self._knowledge.schema, wanted, self._member_meta)
            case Kind.HMP:
                spot = self._hmp.add(spot, wanted)
        return spot, wanted

    def _commands(self, spot: Spot, wanted: Wanted) -> None:
        schema, hmp = self._knowledge.schema, self._knowledge.hmp
        json = spot.form is Form.JSON
        for name in sorted(schema.commands):
            members = schema.members_at(name, (), {})
            # A server's command that is not known here is told by the arguments it needs.
            about = SUMMARIES.get(name) or " ".join(f"{m.name}=" for m in members if not m.optional)
            warned = [*self._refused(name), *marks(schema.features(name))]
            meta = " ".join(part for part in (*warned, about) if part)
            text = name if json or not members else name + " "
            wanted.add(Candidate(text, meta, shown=name, last=bool(warned)))
        if not json:
            for name, command in sorted(hmp.commands.items()):
                if name not in schema.commands and name == command.name:
                    text = name + " " if command.arguments else name
                    refused = self._refused("human-monitor-command", {"command-line": name})
                    about = " ".join((*refused, "hmp ·", command.help))
                    wanted.add(Candidate(text, about[:60], shown=name, last=True))

    def _refused(self, command: str, arguments: Mapping[str, Any] | None = None) -> list[str]:
        """What to say of a command that this session does not let through."""
        return ["read-only:"] if self._knowledge.read_only and why_refused(command, arguments) else []

    def _member_meta(self, spot: Spot, path: tuple[str | int, ...], info: ArgInfo, siblings: Collection[str]) -> str:
        """What the menu says of the member *info* of the object at *path*: marks, what it takes, what it is for."""
        kind = takes(spot.command, (*path, info.name), info, spot.arguments, 32)
        words = " ".join((*marks(info.features), *(() if info.optional else ("required",)), kind))
        about = member_doc(spot.command, info.name, siblings)
        return f"{words} · {about}" if about else words

    def _keys(self, spot: Spot, wanted: Wanted) -> None:
        schema, json = self._knowledge.schema, spot.json
        given = value_at(spot.arguments, spot.path)
        if given is not None and not isinstance(given, Mapping):
            return  # a name or a number is given for the whole
        given = given or {}
        members = schema.members_at(spot.command, spot.path, spot.arguments)
        siblings = {info.name for info in members}
        for info in members:
            required = not info.optional
            suffixes = () if json else _suffixes(info)
            if json:
                if info.name not in given:
                    meta = self._member_meta(spot, spot.path, info, siblings)
                    text = _json_key(spot, info.name)
                    wanted.add(Candidate(text, meta, shown=info.name, literal=True, required=required))
                continue
            value = given.get(info.name)
            open_suffixes = [s for s in suffixes if value is None or (isinstance(value, Mapping) and s == ".")]
            meta = self._member_meta(spot, spot.path, info, siblings) if open_suffixes else ""
            for suffix in open_suffixes:
                text = info.name if spot.closed and suffix == "=" else info.name + suffix
                missing = required and value is None
                wanted.add(Candidate(text, meta, shown=info.name + suffix, required=missing, last=value is not None))
        if json and not spot.quote and not given and all(info.optional for info in members):
            close(spot, schema, wanted)
        if spot.command == "device_add" and not spot.path:
            # Its schema names few of the properties that it takes.
            for name, meta in DEVICE_OPTIONS.items():
                if name not in given and name not in siblings:
                    text = _json_key(spot, name) if json else f"{name}="
                    wanted.add(Candidate(text, meta, shown=name if json else f"{name}=", literal=json))
        if not json and spot.path:
            self._indexes(spot, given, wanted)
        if not json and not spot.path and spot.command in self._knowledge.hmp.commands and not given:
            # Of a name that HMP and QMP share, either may be meant while nothing is typed.
            self._hmp.add(spot, wanted)

    def _indexes(self, spot: Spot, given: Mapping[str, Any], wanted: Wanted) -> None:
        """Offer the list indexes of `actions.0.type=` that are in use, and the next one."""
        for info in self._knowledge.schema.infos_at(spot.command, spot.path, spot.arguments):
            if info.kind != "array" or info.element is None:
                continue
            used = sorted(int(key) for key in given if key.isdecimal())
            after = used[-1] + 1 if used else 0
            suffixes = _suffixes(info.element)
            # Those in use go on only where they have members; with a value of its own an item is done.
            going_on = (index for index in used if self._goes_on(spot, (*spot.path, str(index)), given[str(index)]))
            for index in (*going_on, after):
                for suffix in suffixes if index == after else (".",):
                    wanted.add(Candidate(f"{index}{suffix}", type_word(info.element)))

    def _goes_on(self, spot: Spot, path: tuple[str | int, ...], given: Any) -> bool:
        """Whether the object at *path* can have more members than those *given*."""
        if not isinstance(given, Mapping):
            return False
        return any(
            info.name not in given for info in self._knowledge.schema.members_at(spot.command, path, spot.arguments)
        )

    def _values(self, spot: Spot, wanted: Wanted) -> None:
        schema, json = self._knowledge.schema, spot.json
        if not spot.path:
            wanted.add(Candidate("{", "the arguments", literal=True))
            return
        member = next((str(step) for step in reversed(spot.path) if not str(step).isdecimal()), "")
        whole = self._whole_info(spot)
        scopes = scopes_of(spot.arguments, spot.path)
        for info in schema.infos_at(spot.command, spot.path, spot.arguments):
            if info.kind == "enum":
                for value in self._legal(spot, member, info.values, scopes):
                    wanted.add(Candidate(value, value_text(spot.command, member, info.values, value)))
            elif info.kind == "bool" and not spot.quote:
                for value in ("true", "false") if json else ("on", "off"):
                    wanted.add(Candidate(value, literal=True))
            elif info.kind == "null" and not spot.quote:
                wanted.add(Candidate("null", "nothing", literal=True, last=True))
            elif info.kind == "object" and not spot.quote:
                tag = info.members.tag
                if json:
                    opening = f'{{"{tag}": ' if tag else '{"' if info.members else "{}"
                    wanted.add(Candidate(opening, "an object", literal=True, last=True))
            elif info.kind == "array" and not spot.quote and json:
                wanted.add(Candidate("[", type_word(info), literal=True))
            elif info.kind in ("str", "int"):
                meaning = meaning_of(spot.command, spot.path, whole or info, spot.arguments)
                if meaning.names is not Names.SIZE:
                    self._finder.add_names(meaning, scopes, wanted)
                elif info.kind == "int" and not spot.quote:
                    for size in sizes(spot.word, member, json=json):
                        wanted.add(size)
        if spot.whole and spot.path:
            self._behind(spot, wanted)
        if spot.command == "device_add" and member in ("drive", "iothread") and not wanted.candidates:
            wanted_names = Names.DEVICE if member == "drive" else Names.OBJECT
            self._finder.add_names(Meaning(wanted_names, of="iothread" if member == "iothread" else ""), [{}], wanted)

    def _behind(self, spot: Spot, wanted: Wanted) -> None:
        """Offer what can follow a number or a literal that is typed in full."""
        wanted.candidates = [c for c in wanted.candidates if c.text != spot.word]
        after = Wanted("")
        inside = replace(spot, kind=Kind.NEXT, path=spot.path[:-1], word="")
        following(inside, self._knowledge.schema, after, self._member_meta)
        wanted.behind = [replace(c, text=spot.word + c.text) for c in after.candidates]

    def _legal(
        self, spot: Spot, member: str, values: tuple[str, ...], scopes: Sequence[Mapping[str, Any]]
    ) -> Iterable[str]:
        """Of an enumeration's *values* those that can be right here."""
        if spot.command == "blockdev-reopen" and member == "driver":
            # A node keeps its driver.
            node = self._knowledge.names.graph.nodes.get(str(scopes[0].get("node-name", "")))
            if node is not None and node.driver in values:
                return (node.driver,)
        return values

    def _whole_info(self, spot: Spot) -> ArgInfo | None:
        """The schema's own entry for the value at the spot, alternates not taken apart."""
        *parents, last = spot.path
        schema = self._knowledge.schema
        if isinstance(last, str):
            for info in schema.members_at(spot.command, parents, spot.arguments):
                if info.name == last:
                    return info
        for info in schema.infos_at(spot.command, parents, spot.arguments):
            if info.kind == "array" and info.element is not None:
                return info.element
        return None


def _suffixes(info: ArgInfo) -> tuple[str, ...]:
    """How a dotted key goes on: ``=`` in front of a value, ``.`` in front of a member or an index."""
    choices = alternatives(info)
    kinds = {choice.kind for choice in choices}
    nested = kinds & {"object", "array"}
    if not nested:
        return ("=",)
    if len(choices) == 1 and "object" in kinds and not info.members:
        return ("={}",)  # an object without members, such as the data of a transaction's abort
    return ("=", ".") if kinds - nested else (".",)


def _json_key(spot: Spot, name: str) -> str:
    if spot.quote:
        return name if spot.closed else f"{name}{spot.quote}: "
    return f'"{name}": '


def _message_keys(spot: Spot, wanted: Wanted) -> None:
    for name in message_keys(spot):
        text = _json_key(spot, name)
        wanted.add(Candidate(text, MESSAGE_KEYS[name], shown=name, literal=True, required=name == "execute"))


def _written(spot: Spot, candidate: Candidate) -> str:
    """The text to insert for a name, with the quotes that the form wants."""
    text = candidate.text
    if spot.kind is Kind.KEY or (spot.kind is Kind.COMMAND and not spot.json):
        return text
    quote = spot.quote
    if not quote and (spot.json or _NEEDS_QUOTES.search(text)):
        quote = '"'
    if not quote:
        return text
    inner = text if quote == "'" else text.replace("\\", "\\\\").replace('"', '\\"')
    # Behind a directory something follows, so its closing quote is not put yet.
    close = "" if spot.closed or candidate.goes_on else quote
    if close and spot.json and spot.behind in ('"', "'"):
        close += "," if spot.apart else ", "  # what follows is the next member or item
    return ("" if spot.quote else quote) + inner + close

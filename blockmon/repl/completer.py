"""Completion for all three forms of input, from the schema, the HMP help, the live graph and the disk.

Here is what can follow at a place; `context` finds the place, `candidates` finds the names that an argument can have.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from blockmon.lang import Form
from blockmon.model.schema import ArgInfo, alternatives, type_word, value_at
from blockmon.repl.candidates import Candidate, NameFinder, Wanted
from blockmon.repl.context import Kind, Spot, spot_at
from blockmon.repl.describe import marks, takes
from blockmon.repl.files import FileName, files_matching
from blockmon.repl.hmp_help import HMPArgument
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.meaning import Names, meaning_of, meaning_of_hmp
from blockmon.repl.summaries import SUMMARIES

MOST = 200
"""More candidates are not shown; typing on narrows them down."""

_NEEDS_QUOTES = re.compile(r"""[\s"']|^[\[{]""")


class ReplCompleter(Completer):
    """prompt_toolkit's completer over a `Knowledge`."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._finder = NameFinder(knowledge)
        self.unanswered: tuple[str, int] | None = None
        """The text and cursor of the last request if nothing was found: names that come later may answer it."""

    # prompt_toolkit's side -------------------------------------------------------------------------------------------

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Complete at once, reading directories where file names are wanted."""
        spot = spot_at(document.text, document.cursor_position, self._knowledge.schema.commands)
        wanted = self._wanted(spot)
        files = files_matching(wanted.word) if wanted.files else []
        yield from self._completions(document, spot, wanted, files)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Complete without waiting for a slow disk on the event loop."""
        if complete_event.text_inserted and not document.current_line_before_cursor.strip():
            return  # a line begins, after pasted ones or a quick Enter: a menu of everything would be in the way
        spot = spot_at(document.text, document.cursor_position, self._knowledge.schema.commands)
        wanted = self._wanted(spot)
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

    def _wanted(self, spot: Spot) -> Wanted:
        wanted = Wanted(spot.word)
        if spot.kind is Kind.COMMAND:
            self._commands(spot, wanted)
        elif spot.kind is Kind.KEY and spot.raw_message:
            _message_keys(spot, wanted)
        elif spot.kind is Kind.KEY:
            self._keys(spot, wanted)
        elif spot.kind is Kind.VALUE:
            self._values(spot, wanted)
        elif spot.kind is Kind.HMP:
            self._hmp(spot, wanted)
        return wanted

    def _commands(self, spot: Spot, wanted: Wanted) -> None:
        schema, hmp = self._knowledge.schema, self._knowledge.hmp
        json = spot.form is Form.JSON
        for name in sorted(schema.commands):
            members = schema.members_at(name, (), {})
            # A server's command that is not known here is told by the arguments it needs.
            about = SUMMARIES.get(name) or " ".join(f"{m.name}=" for m in members if not m.optional)
            warned = marks(schema.features(name))
            meta = " ".join(part for part in (*warned, about) if part)
            text = name if json or not members else name + " "
            wanted.add(Candidate(text, meta, shown=name, last=bool(warned)))
        if not json:
            for name, command in sorted(hmp.commands.items()):
                if name not in schema.commands and name == command.name:
                    text = name + " " if command.arguments else name
                    wanted.add(Candidate(text, f"hmp · {command.help}"[:60], shown=name, last=True))

    def _keys(self, spot: Spot, wanted: Wanted) -> None:
        schema, json = self._knowledge.schema, spot.json
        given = value_at(spot.arguments, spot.path)
        given = given if isinstance(given, Mapping) else {}
        for info in schema.members_at(spot.command, spot.path, spot.arguments):
            meta = takes(spot.command, (*spot.path, info.name), info, spot.arguments)
            meta = " ".join((*marks(info.features), *(() if info.optional else ("required",)), meta))
            required = not info.optional
            if json:
                if info.name not in given:
                    text = _json_key(spot, info.name)
                    wanted.add(Candidate(text, meta, shown=info.name, literal=True, required=required))
                continue
            value = given.get(info.name)
            for suffix in _suffixes(info):
                if value is None or (isinstance(value, Mapping) and suffix == "."):
                    text = info.name if spot.closed and suffix == "=" else info.name + suffix
                    wanted.add(Candidate(text, meta, shown=info.name + suffix, required=required))
        if not json and spot.path:
            self._indexes(spot, given, wanted)
        if not json and not spot.path and spot.command in self._knowledge.hmp.commands and not given:
            # Of a name that HMP and QMP share, either may be meant while nothing is typed.
            self._hmp(spot, wanted)

    def _indexes(self, spot: Spot, given: Mapping[str, Any], wanted: Wanted) -> None:
        """Offer the list indexes of `actions.0.type=` that are in use, and the next one."""
        for info in self._knowledge.schema.infos_at(spot.command, spot.path, spot.arguments):
            if info.kind != "array" or info.element is None:
                continue
            used = sorted(int(key) for key in given if key.isdecimal())
            following = used[-1] + 1 if used else 0
            suffixes = _suffixes(info.element)
            for index in (*(used if "." in suffixes else ()), following):
                for suffix in suffixes:
                    wanted.add(Candidate(f"{index}{suffix}", type_word(info.element)))

    def _values(self, spot: Spot, wanted: Wanted) -> None:
        schema, json = self._knowledge.schema, spot.json
        if not spot.path:
            wanted.add(Candidate("{", literal=True))
            return
        whole = self._whole_info(spot)
        for info in schema.infos_at(spot.command, spot.path, spot.arguments):
            if info.kind == "enum":
                for value in info.values:
                    wanted.add(Candidate(value))
            elif info.kind == "bool" and not spot.quote:
                for value in ("true", "false") if json else ("on", "off"):
                    wanted.add(Candidate(value, literal=True))
            elif info.kind == "null" and not spot.quote:
                wanted.add(Candidate("null", "nothing", literal=True, last=True))
            elif info.kind == "object" and not spot.quote:
                tag = info.members.tag
                if json:
                    wanted.add(Candidate(f'{{"{tag}": ' if tag else '{"', "an object", literal=True, last=True))
            elif info.kind == "array" and not spot.quote and json:
                wanted.add(Candidate("[", type_word(info), literal=True))
            elif info.kind == "str":
                meaning = meaning_of(spot.command, spot.path, whole or info, spot.arguments)
                self._finder.add_names(meaning, spot.arguments, wanted)

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

    # HMP -------------------------------------------------------------------------------------------------------------

    def _hmp(self, spot: Spot, wanted: Wanted) -> None:
        words = spot.words or (spot.command,)
        command, given = self._knowledge.hmp.lookup(words)
        if command is None:
            return
        flags = {flag.name for flag in command.flags}
        position = sum(word not in flags for word in given)
        positional = command.positional
        if position < len(positional) and not spot.word.startswith("-"):
            argument = positional[position]
            # `commit device|all`: a name or a word of its own.
            for name in argument.choices or (argument.name,):
                meaning = meaning_of_hmp(command.name, name)
                if meaning.names is not Names.NOTHING:
                    self._finder.add_names(meaning, {}, wanted)
                elif argument.choices:
                    wanted.add(Candidate(name))
                elif command.name == "qemu-io" and name == "command":
                    self._finder.add_io_commands(spot.quote, wanted)
        if position == 0 or spot.word.startswith("-"):
            for flag in command.flags:
                if flag.name not in given:
                    wanted.add(Candidate(flag.name, _flag_meta(flag, command.help), last=True))


def _flag_meta(flag: HMPArgument, text: str) -> str:
    """The part of a command's help that speaks of *flag*, as far as it can be told."""
    match = re.search(rf"(?<![\w-]){re.escape(flag.name)}:\s*([^;)]*)", text)
    return match[1].strip() if match is not None else "flag"


def _suffixes(info: ArgInfo) -> tuple[str, ...]:
    """How a dotted key goes on: ``=`` in front of a value, ``.`` in front of a member or an index."""
    kinds = {choice.kind for choice in alternatives(info)}
    nested = kinds & {"object", "array"}
    if not nested:
        return ("=",)
    return ("=", ".") if kinds - nested else (".",)


def _json_key(spot: Spot, name: str) -> str:
    if spot.quote:
        return name if spot.closed else f"{name}{spot.quote}: "
    return f'"{name}": '


def _message_keys(spot: Spot, wanted: Wanted) -> None:
    given = spot.arguments
    for name, meta, without in (
        ("execute", "the command", "exec-oob"),
        ("arguments", "its arguments", ""),
        ("id", "comes back with the answer", ""),
    ):
        if name not in given and without not in given:
            wanted.add(Candidate(_json_key(spot, name), meta, shown=name, literal=True, required=name == "execute"))


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
    # A directory goes on, so its closing quote is not put yet.
    close = "" if spot.closed or candidate.goes_on else quote
    return ("" if spot.quote else quote) + inner + close

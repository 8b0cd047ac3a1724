"""A session at the prompt without a terminal: takes text, runs the commands in it, hands styled output to a sink.

The same session runs alone (`standalone`) and inside the TUI (`blockmon.tui.prompt_pane`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory

from blockmon.backend import Backend, CommandError, Event
from blockmon.lang import Empty, Form, Incomplete, ParsedHMP, ParsedQMP, ParseError, classify, parse_input
from blockmon.lang.json_text import find_end
from blockmon.model.schema import Schema
from blockmon.repl.completer import ReplCompleter
from blockmon.repl.hints import hint_for
from blockmon.repl.hmp_help import HMPHelp
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.lexers import PromptInputLexer
from blockmon.repl.live import LiveNames
from blockmon.repl.printers import (
    Fragment,
    Fragments,
    format_error,
    format_event,
    format_notice,
    format_parse_error,
    iter_answer,
    plain,
)

Sink = Callable[[Fragments], None]
Command = ParsedQMP | ParsedHMP

PIECE = 400
"""Fragments that go to the sink at once; between two such pieces others have their turn."""

MOST_EVENTS = 20
"""Of one batch, so many events are printed and the others counted."""

_HIDDEN_EVENTS = frozenset({"X_BLOCKMON_GRAPH_CHANGE"})
_LOST = (OSError, EOFError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Enter has to do with a text: run it, go on with another line, or say what is wrong where."""

    complete: bool
    error: ParseError | None = None


def no_human_monitor(word: str) -> CommandError:
    """The error for an HMP line, which begins with *word*, to a server that knows only QMP."""
    return CommandError("CommandNotFound", f"'{word}' is no QMP command, and this server has no human monitor")


_ONLY_SHARED = "force-share=on can only be used with read-only images"
"""What comes of writing to an image that was opened read-only and shared; the user never said force-share."""


def _drop(fragments: Fragments) -> None:
    """The sink before there is one."""


class ReplSession:
    """One session. `start` it before submitting; `sink` gets every piece of output, `width` tells its columns."""

    def __init__(
        self,
        backend: Backend,
        sink: Sink = _drop,
        *,
        width: Callable[[], int] = lambda: 80,
        history: History | None = None,
        show_events: bool = True,
        local_files: bool = True,
        on_end: Callable[[], None] = lambda: None,
        on_names: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.sink = sink
        self.width = width
        self.history = history if history is not None else InMemoryHistory()
        self.show_events = show_events
        self.on_end = on_end
        self.on_names = on_names
        """Called when completion has learned something new, for a menu that is open."""
        self.ended = False
        """True after a `quit` that was carried out, or when the server is lost."""
        self.lost = False
        """True when the server closed the connection by itself."""
        self.last_answer = ""
        """The text of the last answer, for copying; of a long one only the beginning."""
        schema = Schema([])
        names = LiveNames(backend, schema, lambda: self.on_names())
        self.knowledge = Knowledge(names, schema, local_files=local_files)
        self.completer = ReplCompleter(self.knowledge)
        self.lexer = PromptInputLexer(self._first_words)
        self._words: frozenset[str] = frozenset()
        self._ready = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._unsubscribe: Callable[[], None] = lambda: None

    # Life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Subscribe to events and learn, in the background, what the server can do. The backend must be started."""
        self._unsubscribe = self.backend.subscribe(self._on_events)
        self._starting = asyncio.create_task(self._learn())

    async def close(self) -> None:
        """Stop listening and asking. The backend stays open; it belongs to whoever opened it."""
        self._unsubscribe()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self.knowledge.names.close()

    async def ready(self) -> None:
        """Wait until the server's commands are known."""
        await self._ready.wait()

    async def learned(self) -> None:
        """Wait until everything that completion uses was asked for once."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)

    async def _learn(self) -> None:
        knowledge = self.knowledge
        try:
            knowledge.schema = await self._fetch_schema()
            knowledge.names.use_schema(knowledge.schema)
            self._words = frozenset(knowledge.schema.commands)
            self._ready.set()
            knowledge.names.touch()
            await knowledge.names.refresh()
            if knowledge.schema.knows_hmp:
                knowledge.hmp = HMPHelp.from_text(await self._hmp("help"), await self._hmp("help info"))
                self._words |= knowledge.hmp.commands.keys()
        except CommandError as error:
            self.sink(format_notice(f"completion does not know everything: {error.desc}"))
        except _LOST as error:
            self._lose(error)
        finally:
            self._ready.set()

    async def _fetch_schema(self) -> Schema:
        try:
            return Schema(await self.backend.execute("query-qmp-schema"))
        except CommandError:
            # A server without introspection still says which commands it has.
            names = await self.backend.execute("query-commands")
            return Schema([{"meta-type": "command", "name": n["name"], "arg-type": "", "ret-type": ""} for n in names])

    def _first_words(self) -> frozenset[str]:
        return self._words

    # Reading ---------------------------------------------------------------------------------------------------------

    def check(self, text: str) -> Verdict:
        """Tell whether *text* can be run as it stands."""
        try:
            return Verdict(self._split(text) is not None)
        except ParseError as error:
            return Verdict(True, error)

    def hint(self, text: str, cursor: int, width: int) -> StyleAndTextTuples:
        """The line to show under the prompt."""
        return hint_for(text, cursor, self.knowledge, width)

    def _split(self, text: str) -> list[Command] | None:
        """The commands in *text*, one a line or one over several; None when the last one goes on. Raises ParseError."""
        commands, arguments_of = self.knowledge.schema.commands, self.knowledge.schema.arguments_of
        found: list[Command] = []
        lines = text.split("\n")
        number = 0
        while number < len(lines):
            first, piece = number, lines[number]
            number += 1
            try:
                if classify(piece, commands) is Form.JSON:
                    rest = "\n".join(lines[first:])
                    end = find_end(rest, rest.index("{"))
                    if end is None:
                        return None
                    # The rest of the line the object ends on belongs to it: an error if there is something.
                    line_end = rest.find("\n", end)
                    piece = rest if line_end < 0 else rest[:line_end]
                    number = first + piece.count("\n") + 1
                parsed = parse_input(piece, commands, arguments_of)
                while isinstance(parsed, Incomplete):
                    if number >= len(lines):
                        return None
                    piece += "\n" + lines[number]
                    number += 1
                    parsed = parse_input(piece, commands, arguments_of)
            except ParseError as error:
                raise ParseError(error.message, error.line + first, error.column) from None
            if not isinstance(parsed, Empty):
                found.append(parsed)
        return found

    # Running ---------------------------------------------------------------------------------------------------------

    async def submit(self, text: str) -> bool:
        """Run the commands in *text* one after another and print their answers; whether all of them succeeded.

        Texts submitted at the same time run in their order. Nothing after an error of the syntax is run.
        """
        await self.ready()
        async with self._turn:
            try:
                commands = self._split(text)
            except ParseError as error:
                self.sink(format_parse_error(error, text, self.width()))
                return False
            if commands is None:
                self.sink(format_error("Syntax", "the command is not complete"))
                return False
            succeeded = True
            for command in commands:
                if self.ended:
                    break
                succeeded = await self._run(command) and succeeded
            return succeeded

    async def _run(self, command: Command) -> bool:
        schema = self.knowledge.schema
        name = command.command if isinstance(command, ParsedQMP) else "human-monitor-command"
        try:
            if isinstance(command, ParsedHMP):
                first = command.line.split(maxsplit=1)[0]
                if not schema.knows_hmp and schema.commands:
                    raise no_human_monitor(first)
                answer = await self._hmp(command.line)
                leaves = first in ("quit", "q")
                succeeded = not answer.startswith(("Error:", "unknown command:"))
            else:
                if command.oob:
                    raise CommandError(
                        "GenericError", "out-of-band execution (exec-oob) is not available at the prompt"
                    )
                answer = await self.backend.execute(command.command, command.arguments)
                leaves, succeeded = command.command == "quit", True
        except CommandError as error:
            self.sink(format_error(error.cls, error.desc))
            if error.desc == _ONLY_SHARED:
                self.sink(format_notice("an image given to blockmon is opened for writing with --rw"))
            return False
        except _LOST as error:
            self._lose(error)
            return False
        await self._print(iter_answer(answer, self.width()))
        if leaves and succeeded:
            self._end()
        else:
            self.knowledge.names.after_command(name)
        return succeeded

    async def _hmp(self, line: str) -> str:
        return str(await self.backend.execute("human-monitor-command", {"command-line": line}))

    async def _print(self, fragments: Iterable[Fragment]) -> None:
        piece: Fragments = []
        self.last_answer = ""
        for fragment in fragments:
            piece.append(fragment)
            if len(piece) >= PIECE and fragment[1].endswith(("\n", " ")):
                self._emit(piece)
                piece = []
                await asyncio.sleep(0)
        self._emit(piece)

    def _emit(self, piece: Fragments) -> None:
        if not piece:
            return
        if len(self.last_answer) < 1 << 20:
            self.last_answer += plain(piece)
        self.sink(piece)

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_end()

    def _lose(self, error: Exception) -> None:
        if not self.ended:
            self.lost = True
            self.sink(format_error("Disconnected", str(error) or "the server has closed the connection"))
            self._end()

    # Events ----------------------------------------------------------------------------------------------------------

    def toggle_events(self) -> None:
        """Print events from now on, or no more."""
        self.show_events = not self.show_events
        self.sink(format_notice(f"events are {'shown' if self.show_events else 'hidden'}"))

    def _on_events(self, events: Sequence[Event]) -> None:
        self.knowledge.names.on_events(events)
        if self.show_events:
            self._show_events(events)
        # The server ends because a client said quit: this one, or another.
        if any(e.get("event") == "SHUTDOWN" and e.get("data", {}).get("reason") == "host-qmp-quit" for e in events):
            self._end()

    def _show_events(self, events: Sequence[Event]) -> None:
        shown = [event for event in events if event.get("event") not in _HIDDEN_EVENTS]
        fragments = [fragment for event in shown[:MOST_EVENTS] for fragment in format_event(event)]
        if len(shown) > MOST_EVENTS:
            fragments += format_notice(f"… and {len(shown) - MOST_EVENTS} more events at the same time")
        if fragments:
            self.sink(fragments)

"""A session at the prompt without a terminal: takes text, runs the commands in it, hands styled output to a sink.

The same session runs alone (`standalone`) and inside the TUI (`blockmon.tui.prompt_pane`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory

from blockmon.backend import Backend, CommandError, Event
from blockmon.backend.connection import ConnectionLost, ConnectionState, connection_of
from blockmon.lang import ParseError
from blockmon.model.graph import GraphModel
from blockmon.model.schema import Schema
from blockmon.repl.assist import PromptCompleter, prompt_hint
from blockmon.repl.completer import ReplCompleter
from blockmon.repl.hints import hint_for
from blockmon.repl.host import PIECE, Host
from blockmon.repl.knowledge import Knowledge, fetch_hmp_help, fetch_schema, refuses_changes
from blockmon.repl.lexers import PromptInputLexer
from blockmon.repl.live import LiveNames
from blockmon.repl.printers import (
    Fragments,
    format_event,
    format_notice,
    format_parse_error,
    plain,
)
from blockmon.repl.reading import Statement, split
from blockmon.repl.running import Runner
from blockmon.repl.settings import Settings
from blockmon.repl.suggest import speaks_of_a_name

__all__ = ["MOST_EVENTS", "PIECE", "ReplSession", "Verdict"]

Sink = Callable[[Fragments], None]

MOST_EVENTS = 20
"""Of one batch, so many events are printed and the others counted."""

KEPT_EVENTS = 1000
"""Events that can be looked at again by `\\events N`."""

LONGEST_TRANSCRIPT = 20_000
"""Pieces of output that `\\save` can still write."""

LONGEST_KEPT = 1 << 20
"""Characters of an answer that are kept for copying and saving."""

_HIDDEN_EVENTS = frozenset({"X_BLOCKMON_GRAPH_CHANGE"})
_LOST = (OSError, EOFError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Enter has to do with a text: run it, go on with another line, or say what is wrong where."""

    complete: bool
    error: ParseError | None = None


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
        settings: Settings | None = None,
        show_events: bool = True,
        local_files: bool = True,
        on_end: Callable[[], None] = lambda: None,
        on_names: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.sink = sink
        self.width = width
        self.history = history if history is not None else InMemoryHistory()
        self.settings = settings if settings is not None else Settings()
        if not show_events:
            self.settings.set("events", "off")
        self.on_end = on_end
        self.on_names = on_names
        """Called when completion has learned something new, for a menu that is open."""
        self.ended = False
        """True after a `quit` that was carried out, or when the server is lost."""
        self.lost = False
        """True when the server closed the connection by itself."""
        self.last_answer = ""
        """The text of the last answer, for copying; of a long one only the beginning."""
        self.printed: deque[str] = deque(maxlen=LONGEST_TRANSCRIPT)
        """What was typed and printed so far, in pieces."""
        self.events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        """The last events, shown or not."""
        self.marks: dict[str, GraphModel] = {}
        """Graphs that `\\diff` compares with, by name."""
        schema = Schema([])
        names = LiveNames(backend, schema, lambda: self.on_names())
        # The files of another machine cannot be offered; a Unix socket leads to this one.
        local_files = local_files and (connection_of(backend) is None or backend.title.startswith(("unix:", "/")))
        self.knowledge = Knowledge(names, schema, local_files=local_files, read_only=refuses_changes(backend))
        self.completer = PromptCompleter(self, ReplCompleter(self.knowledge))
        self.lexer = PromptInputLexer(self._first_words)
        self.runner = Runner(self)
        self._words: frozenset[str] = frozenset()
        self._ready = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._follows_names = False
        self._turn = asyncio.Lock()
        self._unsubscribe: Callable[[], None] = lambda: None
        self._connection = connection_of(backend)
        self._connected = True
        self._unwatch: Callable[[], None] = lambda: None
        self.settings.listeners.append(self._setting_changed)
        self._host = Host()
        self.host = self._host

    @property
    def host(self) -> Host:
        """Where the session is shown."""
        return self._host

    @host.setter
    def host(self, host: Host) -> None:
        self._host = host
        host.session = self

    @property
    def show_events(self) -> bool:
        """Whether events are printed."""
        return self.settings.on("events")

    # Life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Subscribe to events and learn, in the background, what the server can do. The backend must be started."""
        self._follows_names = True
        self.listen()
        if self._connection is not None:
            self._connected = self._connection.state.connected
            self._unwatch = self._connection.watch(self._connection_changed)
        self._starting = asyncio.create_task(self._learn())

    def listen(self) -> None:
        """Subscribe to events, and no more: what completion needs is not asked for."""
        self._unsubscribe = self.backend.subscribe(self._on_events)

    def after_command(self, name: str) -> None:
        """Note that a command was executed."""
        if self._follows_names:
            self.knowledge.names.after_command(name)

    async def close(self) -> None:
        """Stop listening and asking. The backend stays open; it belongs to whoever opened it."""
        self._unsubscribe()
        self._unwatch()
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
        try:
            await self.learn_commands()
            self._ready.set()
            await self._learn_names()
        except CommandError as error:
            self.emit(format_notice(f"completion does not know everything: {error.desc}"))
        except ConnectionLost as error:
            if not error.retrying:
                self.lose(error)
        except _LOST as error:
            self.lose(error)
        finally:
            self._ready.set()

    async def learn_commands(self) -> None:
        """Ask which commands the server has. Errors: CommandError."""
        knowledge = self.knowledge
        knowledge.schema = await fetch_schema(self.backend)
        knowledge.names.use_schema(knowledge.schema)
        self._words = frozenset(knowledge.schema.commands)
        self._ready.set()

    async def _learn_names(self) -> None:
        knowledge = self.knowledge
        knowledge.names.touch()
        await knowledge.names.refresh()
        if knowledge.schema.knows_hmp:
            knowledge.hmp = await fetch_hmp_help(self.backend)
            self._words |= knowledge.hmp.commands.keys()

    async def know_names(self, error: str) -> None:
        """Have the names at hand that hints about *error* need, where nobody keeps them fresh: fed by a pipe."""
        if not self._follows_names and speaks_of_a_name(error):
            try:
                await self.knowledge.ask(self.backend)
            except (CommandError, *_LOST):
                pass  # a hint less; a server that is gone is told by the next command

    def _first_words(self) -> frozenset[str]:
        return self._words

    # Reading ---------------------------------------------------------------------------------------------------------

    def check(self, text: str) -> Verdict:
        """Tell whether *text* can be run as it stands."""
        try:
            return Verdict(self.read(text) is not None)
        except ParseError as error:
            return Verdict(True, error)

    def read(self, text: str) -> list[Statement] | None:
        """The statements in *text*; None when the last one goes on in another line. Raises ParseError."""
        schema = self.knowledge.schema
        return split(text, schema.commands, schema.arguments_of)

    def hint(self, text: str, cursor: int, width: int) -> StyleAndTextTuples:
        """The line to show under the prompt."""
        own = prompt_hint(self, text, cursor, width)
        return own if own is not None else hint_for(text, cursor, self.knowledge, width)

    # Running ---------------------------------------------------------------------------------------------------------

    async def submit(self, text: str) -> bool:
        """Run the commands in *text* one after another and print their answers; whether all of them succeeded.

        Texts submitted at the same time run in their order. Nothing after an error of the syntax is run.
        """
        await self.ready()
        async with self._turn:
            self._keep(self.settings["prompt"] + text + "\n")
            try:
                statements = self.read(text)
            except ParseError as error:
                self.emit(format_parse_error(error, text, self.width()))
                return False
            if statements is None:
                self.host.fail("Syntax", "the command is not complete")
                return False
            succeeded = True
            for statement in statements:
                if self.ended:
                    break
                succeeded = await self.runner.run(statement) and succeeded
            return succeeded

    def emit(self, fragments: Fragments, *, answer: bool = False) -> None:
        """Hand a piece of output to the sink, and keep its text; an *answer*'s for copying too."""
        if not fragments:
            return
        text = plain(fragments)
        self._keep(text)
        if answer and len(self.last_answer) < LONGEST_KEPT:
            self.last_answer += text
        self.sink(fragments)

    def keep_answer(self, fragments: Fragments) -> None:
        """Keep the text of an answer that is shown elsewhere than by the sink."""
        text = plain(fragments)
        self._keep(text)
        self.last_answer = text[:LONGEST_KEPT]

    def stopped(self) -> None:
        """Tell that the user has stopped what was going on."""
        rest = " waiting; the server may carry the command out all the same" if self.runner.waiting else ""
        self.notice(f"stopped{rest}")

    def notice(self, text: str) -> None:
        """Print a remark of the prompt's own."""
        self.emit(format_notice(text))

    def _keep(self, text: str) -> None:
        self.printed.append(text if len(text) <= LONGEST_KEPT else text[:LONGEST_KEPT] + " …\n")

    def end(self) -> None:
        """End the session: nothing is run any more."""
        if not self.ended:
            self.ended = True
            self.on_end()

    def lose(self, error: Exception) -> None:
        """Say that the server is gone, and end the session unless it is being tried to get it back."""
        if isinstance(error, ConnectionLost) and error.retrying:
            self.host.fail("Disconnected", str(error))
        elif not self.ended:
            self.lost = True
            self.host.fail("Disconnected", str(error) or "the server has closed the connection")
            self.end()

    def _connection_changed(self, state: ConnectionState) -> None:
        if state.connected == self._connected:
            return
        self._connected = state.connected
        if state.connected:
            self.notice("connected again")
            # It may be another server now, with other commands.
            self._starting = asyncio.create_task(self._learn())
        else:
            self.notice(f"connection lost: {state.reason}; trying to get it back …")

    def _setting_changed(self, name: str) -> None:
        self.host.changed(name)

    # Events ----------------------------------------------------------------------------------------------------------

    def toggle_events(self) -> None:
        """Print events from now on, or no more."""
        self.settings.set("events", "off" if self.show_events else "on")
        self.notice(f"events are {'shown' if self.show_events else 'hidden'}")

    def _on_events(self, events: Sequence[Event]) -> None:
        if self._follows_names:
            self.knowledge.names.on_events(events)
        shown = [event for event in events if event.get("event") not in _HIDDEN_EVENTS]
        self.events += shown
        if self.show_events:
            self._show_events(shown)
        # The engine in here ends because a client said quit: this one, or another. A server elsewhere is waited for.
        if self._connection is None and any(
            e.get("event") == "SHUTDOWN" and e.get("data", {}).get("reason") == "host-qmp-quit" for e in events
        ):
            self.end()

    def _show_events(self, shown: Sequence[Event]) -> None:
        fragments = [fragment for event in shown[:MOST_EVENTS] for fragment in format_event(event)]
        if len(shown) > MOST_EVENTS:
            fragments += format_notice(f"… and {len(shown) - MOST_EVENTS} more events at the same time")
        self.emit(fragments)

"""Has the engine execute the commands of a script, and keeps what the last one answered."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from blockmon.backend import CommandError
from blockmon.lang import ParsedHMP, ParsedQMP, hmp
from blockmon.replay.commands import no_human_monitor
from blockmon.replay.errors import CommandFailed, StatementFailed
from blockmon.replay.output import Output
from blockmon.replay.printed import printed
from blockmon.replay.statements import Statement
from blockmon.replay.watch import Watch

if TYPE_CHECKING:
    from blockmon.backend import Backend, Event
    from blockmon.replay.runner import Observer

BATCH = 256
"""Commands that go to the engine at once, when nothing stands between them that has to see what one of them did."""

_LOOKS = ("query-", "x-debug-query-", "x-blockmon-query-")
_NOTHING = object()


class Execution:
    """Executes commands in their order: by itself, or together with those behind it when nothing has to see what it
    did.

    *settle* is awaited in front of a command while `failure` is set: nothing has asked for that failure.
    """

    def __init__(
        self,
        backend: "Backend",
        out: Output,
        observer: "Observer | None",
        settle: Callable[[], Awaitable[None]],
        *,
        alone: bool,
    ) -> None:
        self.out = out
        self.watch = Watch()
        self.ended = False
        """True once quit was executed."""
        self.failure: tuple[Statement, CommandFailed] | None = None
        """Of the last command; the next statement decides whether it had to fail."""
        self.text = ""
        """The last answer as it is printed."""
        self._answer: Any = _NOTHING
        self._backend = backend
        self._observer = observer
        self._settle = settle
        self._many = None if alone else getattr(backend, "execute_many", None)
        self._batch: list[tuple[Statement, ParsedQMP]] = []
        self._unsubscribe = backend.subscribe(self._on_events)

    def close(self) -> None:
        """Stop listening to the backend."""
        self._unsubscribe()

    def forget(self) -> None:
        """Drop what waits for its turn, and the last answer."""
        self._batch.clear()
        self.failure, self._answer = None, _NOTHING

    @property
    def waiting(self) -> bool:
        """Whether commands wait for their turn."""
        return bool(self._batch)

    def answer(self) -> Any:
        """The last command's value; {"class", "desc"} of one that failed. Raises StatementFailed when there is none."""
        if self._answer is _NOTHING:
            raise StatementFailed("there is no answer yet")
        return self._answer

    def take_failure(self) -> tuple[Statement, CommandFailed] | None:
        """The failure of the last command, which is none any more."""
        found, self.failure = self.failure, None
        return found

    async def put(self, statement: Statement, parsed: ParsedQMP | ParsedHMP) -> None:
        """Execute a command, now or with those that follow. Raises OutputLost, OSError."""
        if self._many is not None and isinstance(parsed, ParsedQMP) and parsed.command != "quit":
            self._batch.append((statement, parsed))
            if len(self._batch) >= BATCH:
                await self.flush()
            return
        await self.flush()
        if self.failure is not None:
            await self._settle()
        await self._execute(statement, parsed)

    async def _execute(self, statement: Statement, parsed: ParsedQMP | ParsedHMP) -> None:
        """Execute a command by itself; when it fails, the next statement decides whether it had to."""
        # Looking does not change anything, so events stay within reach of a wait behind it.
        if not _only_looks(parsed):
            self.watch.command_begins()
        self._answer = _NOTHING
        try:
            if isinstance(parsed, ParsedQMP):
                value = await self._backend.execute(parsed.command, parsed.arguments)
                text = printed(value)
                self.ended |= parsed.command == "quit"
            else:
                value = text = await self._human(parsed.line)
        except CommandError as error:
            command = parsed.command if isinstance(parsed, ParsedQMP) else parsed.line.split(maxsplit=1)[0]
            desc = error.desc
            if isinstance(parsed, ParsedHMP) and error.cls == "CommandNotFound":
                desc = no_human_monitor(command)
            self._fail(statement, parsed, CommandFailed(command, error.cls, desc))
            return
        except CommandFailed as error:
            self._fail(statement, parsed, error)
            return
        self.give(statement, parsed, value, text)
        self.out.flush()

    async def _human(self, line: str) -> str:
        # The monitor ends its lines as a terminal in raw mode needs it.
        answer = str(await self._backend.execute("human-monitor-command", {"command-line": line}))
        answer = answer.replace("\r\n", "\n").removesuffix("\n")
        first = line.split(maxsplit=1)[0]
        failure = hmp.failure(line, answer)
        if failure is not None:
            unknown = failure.startswith("unknown command:")
            raise CommandFailed(first, "CommandNotFound" if unknown else "GenericError", failure)
        self.ended |= first in ("quit", "q")
        return answer

    def give(self, statement: Statement, parsed: ParsedQMP | ParsedHMP | None, value: Any, text: str) -> None:
        """Print an answer and keep it. *parsed* is None for what is no command's."""
        self._answer, self.text = value, text
        self.out.answer(statement, parsed, value, text)
        if self._observer is not None:
            self._observer.on_answer(statement, value)

    def _fail(self, statement: Statement, parsed: ParsedQMP | ParsedHMP, failed: CommandFailed) -> None:
        failed.parsed = parsed
        self.failure = (statement, failed)
        self._answer = told = {"class": failed.cls, "desc": failed.desc}
        self.text = ""
        self.out.failed(statement, parsed, failed.cls, failed.desc)
        if self._observer is not None:
            self._observer.on_answer(statement, told)

    async def flush(self) -> None:
        """Execute the commands that wait for their turn, and let their answers be seen. Raises OutputLost, OSError."""
        batch, self._batch = self._batch, []
        # The last one that changes something begins by itself, so that a wait sees what came from then on.
        cut = max((n for n, (_, parsed) in enumerate(batch) if not _only_looks(parsed)), default=0)
        for part in (batch[:cut], batch[cut:]):
            await self._execute_all(part)
        self.out.flush()

    async def _execute_all(self, part: list[tuple[Statement, ParsedQMP]]) -> None:
        """Execute commands in their order. Nothing behind one that fails runs, unless the run keeps going."""
        while part and self._many is not None:
            if self.failure is not None:
                await self._settle()
            if not _only_looks(part[0][1]):
                self.watch.command_begins()
            self._answer = _NOTHING
            values, error = await self._many([(parsed.command, parsed.arguments) for _, parsed in part])
            for (statement, parsed), value in zip(part, values, strict=False):
                self.give(statement, parsed, value, printed(value))
            if error is None:
                return
            statement, parsed = part[len(values)]
            self._fail(statement, parsed, CommandFailed(parsed.command, error.cls, error.desc))
            part = part[len(values) + 1 :]

    def _on_events(self, events: "Sequence[Event]") -> None:
        self.watch.feed(events)
        self.out.events(events)
        if self._observer is not None:
            self._observer.on_event(events)


def _only_looks(parsed: ParsedQMP | ParsedHMP) -> bool:
    if isinstance(parsed, ParsedQMP):
        return parsed.command.startswith(_LOOKS)
    return parsed.line.split(maxsplit=1)[0] in ("info", "help")

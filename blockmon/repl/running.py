"""Carrying out what was typed: commands of the server and of the prompt's own, pipes, errors, the last answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from blockmon.backend import CommandError
from blockmon.lang import ParsedHMP, ParsedQMP, hmp
from blockmon.lang.answer_path import AnswerError, resolve, substitute, substitute_words
from blockmon.model.format import safe_text
from blockmon.repl.host import Host, PromptError
from blockmon.repl.printers import ERROR, Fragment, format_notice, iter_answer
from blockmon.repl.reading import Look, PromptLine, Statement
from blockmon.repl.shell_pipe import as_input, pipe_to
from blockmon.repl.suggest import after_error, after_hmp_error, after_unknown_command, at_the_prompt
from blockmon.repl.tables import is_table, iter_table

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

SLOW = 0.25
"""Seconds from which on a command is told to have taken long, where the setting `timing` says auto."""

_LOST = (OSError, EOFError, RuntimeError)

_ONLY_SHARED = "force-share=on can only be used with read-only images"
"""What comes of writing to an image that was opened read-only and shared; the user never said force-share."""

_NOTHING = object()


def no_human_monitor(word: str) -> CommandError:
    """The error for an HMP line, which begins with *word*, to a server that knows only QMP."""
    return CommandError("CommandNotFound", f"'{word}' is no QMP command, and this server has no human monitor")


class Runner:
    """Runs statements for *session*, and keeps the last answer. The output goes to the session's host, or to *host*."""

    def __init__(self, session: ReplSession, host: Host | None = None) -> None:
        self._session = session
        self._own_host = host
        self._last: Any = _NOTHING
        self.waiting = False
        """True while the server owes an answer; after a cancellation, whether it did then."""
        self.seconds = 0.0
        """How long the last command took."""

    @property
    def host(self) -> Host:
        """Where the output goes."""
        return self._own_host if self._own_host is not None else self._session.host

    @property
    def has_answer(self) -> bool:
        """Whether some command has answered yet."""
        return self._last is not _NOTHING

    def last(self) -> Any:
        """The last answer that said something: a QMP value, or HMP's text. Raises AnswerError when there is none."""
        if self._last is _NOTHING:
            raise AnswerError("$_: there is no answer yet")
        return self._last

    def last_or(self, default: Any) -> Any:
        """The last answer, or *default* when there is none yet."""
        return default if self._last is _NOTHING else self._last

    def remember(self, answer: Any) -> None:
        """Take *answer* as the last one, unless it is the empty one of a command that has nothing to say."""
        if answer != {} and answer != "":
            self._last = answer

    async def run(self, statement: Statement) -> bool:
        """Run one statement and print its answer; whether it succeeded."""
        self.waiting = False
        if isinstance(statement.what, PromptLine):
            return await self._run_own(statement.what)
        if isinstance(statement.what, Look):
            # $_ stays the whole answer: one may look at several places in it.
            self.seconds = 0.0
            try:
                answer = resolve(statement.what.reference, self.last())
            except AnswerError as error:
                self.host.fail("Answer", str(error))
                return False
        else:
            answer = await self.ask(statement.what)
            if answer is _NOTHING:
                return False
            self.remember(answer)
        if statement.shell:
            return await self.pipe(answer, statement.shell)
        await self.show(answer)
        return True

    async def ask(self, command: ParsedQMP | ParsedHMP) -> Any:
        """Execute a command and return its answer. What went wrong is printed, and `nothing` returned."""
        session = self._session
        schema = session.knowledge.schema
        name = command.command if isinstance(command, ParsedQMP) else "human-monitor-command"
        arguments: Mapping[str, Any] = {}
        started = time.monotonic()
        try:
            if isinstance(command, ParsedHMP):
                line = substitute_words(command.line, self.last)
                first = line.split(maxsplit=1)[0]
                if not schema.knows_hmp and schema.commands:
                    raise no_human_monitor(first)
                self.waiting = True
                answer: Any = await self.hmp(line)
                if hmp.failure(line, answer) is not None:
                    await self._hmp_failed(line, answer)
                    return _NOTHING
                leaves = first in ("quit", "q")
            else:
                arguments = substitute(command.arguments, self.last)
                if command.oob:
                    raise CommandError(
                        "GenericError", "out-of-band execution (exec-oob) is not available at the prompt"
                    )
                self.waiting = True
                answer = await session.backend.execute(command.command, arguments)
                leaves = command.command == "quit"
        except AnswerError as error:
            self.host.fail("Answer", str(error))
            return _NOTHING
        except CommandError as error:
            await self._failed(error, command, arguments)
            return _NOTHING
        except _LOST as error:
            session.lose(error)
            return _NOTHING
        else:
            self.waiting = False
        finally:
            self.seconds = time.monotonic() - started
        if leaves:
            session.end()
        else:
            session.after_command(name)
        return answer

    async def hmp(self, line: str) -> str:
        """Execute an HMP line. Errors: CommandError."""
        return str(await self._session.backend.execute("human-monitor-command", {"command-line": line}))

    async def _hmp_failed(self, line: str, answer: str) -> None:
        session = self._session
        await session.know_names(answer.strip())
        session.after_command("human-monitor-command")
        hints = at_the_prompt(line, session.knowledge) or after_hmp_error(line, answer.strip(), session.knowledge)
        self.host.fail_hmp(line, answer, hints)

    async def _failed(self, error: CommandError, command: ParsedQMP | ParsedHMP, arguments: Mapping[str, Any]) -> None:
        session = self._session
        if isinstance(command, ParsedQMP):
            await session.know_names(error.desc)
            hints = after_error(error.desc, command.command, arguments, session.knowledge)
        else:
            hints = at_the_prompt(command.line, session.knowledge)
            hints = hints or after_unknown_command(command.line.split(maxsplit=1)[0], session.knowledge)
        if error.desc == _ONLY_SHARED:
            hints = ["an image given to blockmon is opened for writing with --rw"]
        self.host.fail(error.cls, error.desc, hints)

    # Answers ---------------------------------------------------------------------------------------------------------

    async def show(self, answer: Any, *, json: bool | None = None) -> None:
        """Print *answer*: as JSON or as a table, as *json* or else the settings say."""
        session = self._session
        if json is None:
            json = session.settings.on("json")
        width = session.width()
        session.last_answer = ""
        fragments: Iterable[Fragment] = (
            iter_table(answer, width) if is_table(answer) and not json else iter_answer(answer, width)
        )
        await self.host.show(fragments)
        self._tell_time()

    def _tell_time(self) -> None:
        seconds = self.seconds
        timing = self._session.settings["timing"]
        if timing == "on" or (timing == "auto" and seconds >= SLOW):
            self.host.emit(format_notice(f"({seconds:.2f} s)" if seconds >= 1 else f"({seconds * 1000:.1f} ms)"))

    async def pipe(self, answer: Any, shell: str) -> bool:
        """Hand *answer* to a shell command and print what that writes; whether it ended with status 0."""
        session = self._session
        session.last_answer = ""
        ends = {False: True, True: True}

        def show(text: str, error: bool) -> None:
            lines = text.replace("\r\n", "\n").expandtabs(8).split("\n")
            style = ERROR if error else ""
            self.host.emit([(style, "\n".join(safe_text(line) for line in lines))], answer=not error)
            ends[error] = text.endswith("\n")

        try:
            status = await pipe_to(shell, as_input(answer), show)
        except OSError as error:
            self.host.fail("Shell", f"{shell}: {error.strerror or error}")
            return False
        finally:
            if not all(ends.values()):
                self.host.emit([("", "\n")])
        if status:
            self.host.fail("Shell", f"exit status {status}")
        return status == 0

    # The prompt's own commands ---------------------------------------------------------------------------------------

    async def _run_own(self, line: PromptLine) -> bool:
        from blockmon.repl.commands import find_command

        session = self._session
        try:
            return await find_command(line.name).run(session, line.argument)
        except (PromptError, AnswerError) as error:
            self.host.fail("\\" + line.name, str(error))
        except CommandError as error:
            self.host.fail(error.cls, error.desc)
        except (EOFError, ConnectionError, RuntimeError) as error:
            session.lose(error)
        except OSError as error:
            self.host.fail("\\" + line.name, _told(error))
        return False


def _told(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text

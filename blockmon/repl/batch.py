"""`blockmon repl` fed by a pipe or a file: every command is run, answers go to stdout, errors to stderr."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from typing import TextIO

from blockmon.backend import Backend, CommandError
from blockmon.lang import ParseError, hmp
from blockmon.repl.host import Host
from blockmon.repl.printers import Fragments, format_error, format_hint, plain
from blockmon.repl.session import ReplSession
from blockmon.repl.settings import Settings

WIDTH = 100


async def read_lines(descriptor: int) -> AsyncIterator[str]:
    """The lines of *descriptor*, a pipe, file or terminal, each with its line end. Waiting for one blocks nobody.

    A thread reads, for a file cannot be polled; it is a daemon and holds no lock, so that it never delays the exit.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        piece = b"-"
        while piece:
            try:
                piece = os.read(descriptor, 1 << 16)
            except OSError:
                piece = b""
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:
                return  # the loop is closed: nobody wants more

    threading.Thread(target=read, name="stdin", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    while piece := await pieces.get():
        *lines, rest = (rest + decoder.decode(piece)).split("\n")
        for line in lines:
            yield line + "\n"
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest


class _Pipe(Host):
    """Answers on *out*, errors on *err* with the number of the line that `place` has at that moment."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self.place: object = 1

    def emit(self, fragments: Fragments, *, answer: bool = False) -> None:
        """Write at once."""
        self._out.write(plain(fragments))

    def fail(self, cls: str, desc: str, hints: Iterable[str] = ()) -> None:
        """Write to the error output."""
        self._out.flush()
        self._err.write(f"blockmon: line {self.place}: {plain(format_error(cls, desc))}")
        for hint in hints:
            self._err.write(plain(format_hint(hint)))
        self._err.flush()

    def fail_hmp(self, line: str, answer: str, hints: Iterable[str] = ()) -> None:
        """As an error of the class HMP."""
        self.fail("HMP", hmp.failure(line, answer) or answer.strip(), hints)

    def flush(self) -> None:
        """Let the reader have what is written."""
        self._out.flush()


async def run_lines(
    backend: Backend,
    source: AsyncIterator[str],
    out: TextIO = sys.stdout,
    err: TextIO = sys.stderr,
    settings: Settings | None = None,
) -> int:
    """Run the commands in the lines of *source* one after another, up to its end or a `quit`.

    Returns 1 when one of them failed, else 0. Answers are JSON, for a program to read, unless `\\json off` says other.
    Unlike in a command file (`blockmon run`) an error does not end it, as at the prompt.
    """
    settings = settings if settings is not None else Settings()
    for name, value in (("json", "on"), ("timing", "off"), ("events", "off")):
        settings.set(name, value)
    host = _Pipe(out, err)
    session = ReplSession(backend, width=lambda: WIDTH, settings=settings)
    session.host = host
    session.sink = host.emit
    try:
        await session.learn_commands()
    except CommandError:
        pass  # a server that does not tell its commands may have them all the same
    session.listen()
    try:
        return await _run(session, host, source)
    finally:
        await session.close()


async def _run(session: ReplSession, host: _Pipe, source: AsyncIterator[str]) -> int:
    failed = False
    text, first, number = "", 1, 0
    async for line in source:
        number += 1
        if not text:
            first = number
        text += line
        host.place = first
        try:
            statements = session.read(text.removesuffix("\n"))
        except ParseError as error:
            host.place = f"{first + error.line - 1}, column {error.column}"
            host.fail("Syntax", error.message)
            failed = True
            text = ""
            continue
        if statements is None:
            continue
        text = ""
        for statement in statements:
            failed = not await session.runner.run(statement) or failed
            host.flush()
            if session.ended:
                return int(failed or session.lost)
    if text.strip():
        host.fail("Syntax", "the input ends within a command")
        return 1
    return int(failed)

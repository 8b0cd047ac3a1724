"""`blockmon repl` fed by a pipe or a file: every command is run, answers go to stdout, errors to stderr."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import TextIO

from blockmon.backend import Backend, CommandError
from blockmon.lang import Empty, Incomplete, ParsedHMP, ParsedQMP, ParseError, parse_input
from blockmon.model.schema import Schema
from blockmon.repl.printers import format_error, iter_answer, plain
from blockmon.repl.session import no_human_monitor

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


async def run_lines(
    backend: Backend, source: AsyncIterator[str], out: TextIO = sys.stdout, err: TextIO = sys.stderr
) -> int:
    """Run the commands in the lines of *source* one after another, up to its end or a `quit`.

    Returns 1 when one of them failed, else 0.
    Unlike in a command file (`blockmon run`) an error does not end it, as at the prompt.
    """
    try:
        schema = Schema(await backend.execute("query-qmp-schema"))
    except CommandError:
        schema = Schema([])
    failed = False
    text, first, number = "", 1, 0

    def complain(place: object, cls: str, desc: str) -> None:
        nonlocal failed
        failed = True
        out.flush()
        err.write(f"blockmon: line {place}: {plain(format_error(cls, desc))}")
        err.flush()

    async for line in source:
        number += 1
        if not text:
            first = number
        text += line
        try:
            parsed = parse_input(text.removesuffix("\n"), schema.commands, schema.arguments_of)
        except ParseError as error:
            complain(f"{first + error.line - 1}, column {error.column}", "Syntax", error.message)
            text = ""
            continue
        if isinstance(parsed, Incomplete):
            continue
        text = ""
        if isinstance(parsed, Empty):
            continue
        try:
            if isinstance(parsed, ParsedHMP) and schema.commands and not schema.knows_hmp:
                raise no_human_monitor(parsed.line.split(maxsplit=1)[0])
            answer = await _execute(backend, parsed)
        except CommandError as error:
            complain(first, error.cls, error.desc)
            continue
        if isinstance(answer, str) and answer.startswith(("Error:", "unknown command:")):
            complain(first, "HMP", answer.removeprefix("Error:").strip())
            continue
        for _, piece in iter_answer(answer, WIDTH):
            out.write(piece)
        out.flush()
        if _leaves(parsed):
            return int(failed)
    if text.strip():
        complain(first, "Syntax", "the input ends within a command")
    return int(failed)


async def _execute(backend: Backend, parsed: ParsedQMP | ParsedHMP) -> object:
    if isinstance(parsed, ParsedHMP):
        answer: object = await backend.execute("human-monitor-command", {"command-line": parsed.line})
        return answer
    if parsed.oob:
        raise CommandError("GenericError", "out-of-band execution (exec-oob) is not available here")
    answer = await backend.execute(parsed.command, parsed.arguments)
    return answer


def _leaves(parsed: ParsedQMP | ParsedHMP) -> bool:
    if isinstance(parsed, ParsedQMP):
        return parsed.command == "quit"
    return parsed.line.split(maxsplit=1)[0] in ("quit", "q")

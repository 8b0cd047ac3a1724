"""Answers piped to a shell command: it reads them, and what it writes is shown."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

Show = Callable[[str, bool], None]

READ = 1 << 16


def as_input(answer: Any) -> bytes:
    """*answer* as a shell command reads it: JSON over several lines, HMP's text with plain line ends."""
    if isinstance(answer, str):
        text = answer.replace("\r\n", "\n")
        return (text if text.endswith("\n") or not text else text + "\n").encode()
    return (json.dumps(answer, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


async def pipe_to(command: str, data: bytes, show: Show) -> int:
    """Run *command* by the shell with *data* on its standard input; returns its exit status (128 and its number after
    a signal).

    *show* gets what it writes, as it comes, and whether that was on standard error. The command has no terminal, so it
    cannot disturb the screen. When this is cancelled, the command and what it has started are ended.
    """
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        await asyncio.gather(
            _feed(process.stdin, data), _read(process.stdout, show, False), _read(process.stderr, show, True)
        )
        status = await process.wait()
    except BaseException:
        _end(process.pid)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(process.wait())
        raise
    return status if status >= 0 else 128 - status


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    gone = (BrokenPipeError, ConnectionResetError)  # it has read enough, as head does
    try:
        with contextlib.suppress(*gone):
            stream.write(data)
            await stream.drain()
    finally:
        stream.close()
    with contextlib.suppress(*gone):
        # asyncio would tell on stderr of an error that nobody has asked for.
        await stream.wait_closed()


async def _read(stream: asyncio.StreamReader, show: Show, error: bool) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while piece := await stream.read(READ):
        text = decoder.decode(piece)
        if text:
            show(text, error)
        await asyncio.sleep(0)
    rest = decoder.decode(b"", final=True)
    if rest:
        show(rest, error)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)

"""Lines of command files, read asynchronously and piece by piece: a script may be longer than memory, or a pipe."""

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterator

import aiofiles

from blockmon.replay.errors import ScriptError

CHUNK = 64 * 1024  # bytes
MAX_LINE = 16 * 1024 * 1024  # bytes; a longer "line" is no script


async def read_lines(path: str, name: str) -> AsyncIterator[str]:
    """Yield the lines of *path* ("-" is standard input) without their ends. *name* stands in errors.

    Raises OSError, and ScriptError for text that is not UTF-8.
    """
    chunks = _chunks_of_stdin() if path == "-" else _chunks_of_file(path)
    number, rest = 0, b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield _decode(line, name, number)
        if len(rest) > MAX_LINE:
            raise ScriptError("the line is too long", name, number + 1, 2)
    if rest:
        yield _decode(rest, name, number + 1)


def _decode(line: bytes, name: str, number: int) -> str:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ScriptError(f"not UTF-8 at byte {error.start + 1} of the line", name, number, 2) from None
    return text.removesuffix("\r")


async def _chunks_of_file(path: str | int) -> AsyncIterator[bytes]:
    async with aiofiles.open(path, "rb", buffering=0, closefd=not isinstance(path, int)) as file:
        while chunk := await file.read(CHUNK):
            yield chunk


async def _chunks_of_stdin() -> AsyncIterator[bytes]:
    if stat.S_ISREG(os.fstat(0).st_mode):
        async for chunk in _chunks_of_file(0):
            yield chunk
        return
    # A pipe or terminal may stay silent for ever, and a thread of asyncio's pool that waits there would keep the
    # program from ending. A daemon thread does not. (Non-blocking mode is no way out: it is shared with stdout.)
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    wanted = threading.Semaphore(0)

    def read() -> None:
        chunk: bytes | OSError = b"?"
        while chunk and not isinstance(chunk, OSError):
            wanted.acquire()
            try:
                chunk = os.read(0, CHUNK)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

    threading.Thread(target=read, name="script-stdin", daemon=True).start()
    while True:
        wanted.release()
        answer = await chunks.get()
        if isinstance(answer, OSError):
            raise answer
        if not answer:
            return
        yield answer

"""Lines of command files, read asynchronously and piece by piece: a script may be longer than memory, or a pipe."""

import asyncio
import errno
import os
import stat
import threading
from collections.abc import AsyncIterator

import aiofiles

from blockmon.exitcodes import ExitStatus
from blockmon.replay.errors import ScriptError

CHUNK = 64 * 1024  # bytes
MAX_LINE = 16 * 1024 * 1024  # bytes; a longer "line" is no script


def unreadable(path: str) -> str:
    """Why the file *path* cannot be read; "" when it can."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if stat.S_ISREG(mode):  # whoever writes to a pipe notices that one end of it was closed
            os.close(os.open(path, os.O_RDONLY))
    except (OSError, ValueError) as error:
        return (error.strerror if isinstance(error, OSError) else "") or str(error)
    return ""


async def read_lines(path: str, name: str) -> AsyncIterator[list[str]]:
    """Yield the lines of *path* ("-" is standard input) without their ends, as many at a time as are there at once.

    *name* stands in errors. Raises OSError, and ScriptError for what is no text in UTF-8.
    """
    number, rest = 0, b""
    async for chunk in _chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        found, problem = _decode(lines, name, number)
        if found:
            yield found
        if problem is not None:
            raise problem
        number += len(lines)
        if len(rest) > MAX_LINE:
            raise ScriptError("the line is too long", name, number + 1, 1, ExitStatus.USAGE)
    if rest:
        found, problem = _decode([rest], name, number)
        if problem is not None:
            raise problem
        yield found


def _decode(lines: list[bytes], name: str, number: int) -> tuple[list[str], ScriptError | None]:
    """The text of *lines*, which follow the *number* of lines in front of them, up to one that is no text."""
    found: list[str] = []
    for line in lines:
        number += 1
        if b"\0" in line:
            return found, ScriptError("this is no text file", name, number, line.index(0) + 1, ExitStatus.USAGE)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode("utf-8", "replace")) + 1
            return found, ScriptError("the text is not UTF-8", name, number, column, ExitStatus.USAGE)
        found.append(text[:-1] if text.endswith("\r") else text)
    return found, None


def _chunks(path: str) -> AsyncIterator[bytes]:
    known = os.fstat(0) if path == "-" else os.stat(path)
    if stat.S_ISREG(known.st_mode):
        return _chunks_of_file(0 if path == "-" else path)
    return _chunks_of_stream(path)


async def _chunks_of_file(path: str | int) -> AsyncIterator[bytes]:
    async with aiofiles.open(path, "rb", buffering=0, closefd=not isinstance(path, int)) as file:
        while chunk := await file.read(CHUNK):
            yield chunk


async def _chunks_of_stream(path: str) -> AsyncIterator[bytes]:
    # A pipe or terminal may stay silent for ever, and a thread of asyncio's pool that waits there would keep the
    # program from ending. A daemon thread does not. (Non-blocking mode is no way out: it is shared with stdout.)
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    wanted = threading.Semaphore(0)

    def read() -> None:
        chunk: bytes | OSError = b"?"
        descriptor = -1
        while chunk and not isinstance(chunk, OSError):
            wanted.acquire()
            try:
                if descriptor < 0:
                    descriptor = 0 if path == "-" else os.open(path, os.O_RDONLY)
                chunk = os.read(descriptor, CHUNK)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
        if descriptor > 0:
            os.close(descriptor)

    threading.Thread(target=read, name="script-input", daemon=True).start()
    while True:
        wanted.release()
        answer = await chunks.get()
        if isinstance(answer, OSError):
            raise answer
        if not answer:
            return
        yield answer

"""What a run tells the person at the terminal: each statement (--trace), and the question in front of each (--step)."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from blockmon.replay.control import Decision
from blockmon.replay.errors import ScriptError

if TYPE_CHECKING:
    from blockmon.backend import Event
    from blockmon.replay.statements import Statement

MAX_SHOWN = 200
"""Characters of a statement that are shown."""

_HELP = "Enter: run it, s: skip it, c: continue without asking, q: quit"
_ANSWERS = {"": Decision.RUN, "s": Decision.SKIP, "c": Decision.RUN, "q": Decision.STOP}


def shown(statement: "Statement") -> str:
    """The statement in one line."""
    text = "----" if statement.kind == "answer" else " ".join(statement.text.split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


class Trace:
    """Observer that writes each statement to *stream* before it runs, with the seconds since the beginning."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()

    def on_statement(self, statement: "Statement") -> None:
        seconds = time.monotonic() - self._start
        line = f"{seconds:9.3f} {statement.file}:{statement.line}: {shown(statement)}"
        print(line, file=self._stream, flush=True)

    def on_answer(self, statement: "Statement", value: Any) -> None:
        pass

    def on_failure(self, error: ScriptError) -> None:
        pass

    def on_event(self, events: "Sequence[Event]") -> None:
        pass


class Asker:
    """Gate that asks on the terminal what becomes of each statement."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._asks = True

    async def gate(self, statement: "Statement") -> Decision:
        if not self._asks:
            return Decision.RUN
        while True:
            self._stream.write(f"{statement.file}:{statement.line}: {shown(statement)}  [Enter/s/c/q] ")
            self._stream.flush()
            line = await _read_line()
            if not line:
                return Decision.STOP  # nobody is there any more
            answer = line.strip().lower()
            if answer in _ANSWERS:
                self._asks = answer != "c"
                return _ANSWERS[answer]
            print(_HELP, file=self._stream)


async def _read_line() -> str:
    """A line from standard input, "" at its end. A daemon thread reads: it never keeps the program from ending."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str] = loop.create_future()

    def give(text: str) -> None:
        if not found.done():
            found.set_result(text)

    def read() -> None:
        try:
            text = os.read(sys.stdin.fileno(), 4096).decode(errors="replace")
        except OSError:
            text = ""
        try:
            loop.call_soon_threadsafe(give, text)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threading.Thread(target=read, name="step", daemon=True).start()
    return await found

"""
The terminal that the screen is on: what Textual's driver does, and besides

- output never holds up the program: a thread writes, and says when it is done, so that a slow line gets fewer pictures
  and not late ones;
- a terminal that is gone is noticed, on reading and on writing, and told to the application.
"""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from textual.app import App

_LAST_WORDS = 1.0
"""Seconds that a terminal which takes nothing is waited for at the end."""


class _Writer(threading.Thread):
    """Writes to a descriptor, in order. *drained* and *lost* are called from this thread."""

    def __init__(self, descriptor: int, drained: Callable[[], None], lost: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="blockmon-output")
        self._descriptor = descriptor
        self._drained = drained
        self._lost = lost
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.busy = False
        """Whether something given is not written yet."""

    def write(self, data: bytes) -> None:
        self.busy = True
        self._queue.put(data)

    def run(self) -> None:
        lost = False
        while (data := self._queue.get()) is not None:
            view = memoryview(data)
            while view and not lost:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    select.select([], [self._descriptor], [])
                except OSError:
                    lost = True
                    self._lost()
            if self._queue.empty():
                self.busy = False
                self._drained()

    def stop(self) -> None:
        self._queue.put(None)
        # A terminal that was stopped (Ctrl+S) takes nothing; the images are closed all the same.
        self.join(_LAST_WORDS)


class TerminalDriver(LinuxDriver):
    """Textual's driver with an output that does not block and an input that sees the end."""

    def __init__(
        self, app: App[object], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._writer: _Writer | None = None
        # Textual keeps in context variables which application is meant; a thread has none of them.
        self._context = contextvars.copy_context()
        self._descriptor = sys.__stdout__.fileno() if sys.__stdout__ is not None else 1
        self.lost = False
        """Whether the terminal is gone."""
        self.on_drained: Callable[[], None] = lambda: None
        """Called on the event loop when all output is written."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called on the event loop when the terminal is gone."""

    @property
    def busy(self) -> bool:
        """Whether output is under way."""
        return self._writer is not None and self._writer.busy

    def write(self, data: str) -> None:
        """Have *data* written, some time."""
        if self.lost:
            return
        if self._writer is None:
            self._writer = _Writer(self._descriptor, lambda: self._tell(self.on_drained), self._lose)
            self._writer.start()
        self._writer.write(data.encode("utf-8", "replace"))

    def _tell(self, hook: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(hook, context=self._context)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._tell(self.on_lost)

    def close(self) -> None:
        """Write what is left, and end the threads."""
        super().close()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except OSError:
            self._lose()

    def run_input_thread(self) -> None:
        """Read keys until told to stop, or until the terminal is gone."""
        parser = XTermParser(self._debug)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while not self.exit_event.is_set():
            ready, _, _ = select.select([self.fileno], [], [], 0.1)
            if ready:
                data = os.read(self.fileno, 4096)
                if not data:
                    self._lose()
                    return
                for message in parser.feed(decode(data)):
                    self.process_message(message)
            for message in parser.tick():
                self.process_message(message)

"""Requests in the background (aio_*): what runs, and what it had to say when it was done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from engine.graph.backend import BlockBackend


class Outstanding:
    """The background requests of one back end. Any thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = 0
        self._said: list[str] = []
        self.taking = asyncio.Lock()
        """Held (on the control plane) while a command has more permissions than its back end had before."""

    def start(self, work: Callable[[], str], tell: Callable[[str], None] | None) -> None:
        """Run *work* in a thread; what it returns goes to *tell*, or is kept for take()."""

        def run() -> None:
            text = ""
            try:
                text = work()
            finally:
                with self._condition:
                    if tell is None:
                        self._said.append(text)
                    else:
                        tell(text)
                    self._running -= 1
                    self._condition.notify_all()

        with self._condition:
            self._running += 1
        threading.Thread(target=run, name="qemu-io aio", daemon=True).start()

    def wait(self) -> str:
        """Wait until nothing runs; return what was said and has not been taken yet."""
        with self._condition:
            while self._running:
                self._condition.wait()
            said = "".join(self._said)
            self._said.clear()
        return said


_of_backends: WeakKeyDictionary[BlockBackend, Outstanding] = WeakKeyDictionary()


def outstanding_of(backend: BlockBackend) -> Outstanding:
    """The background requests of *backend*. Control plane."""
    found = _of_backends.get(backend)
    if found is None:
        found = _of_backends[backend] = Outstanding()
    return found

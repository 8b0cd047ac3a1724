"""The standard streams as a connection. They may be anything (terminal, pipe, file), so threads do the waiting."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import termios
import threading
from typing import Any, ClassVar

from engine.errors import GenericError
from engine.monitor.chardev.base import Chardev, chardev_kind
from engine.monitor.chardev.options import ChardevStdio
from engine.monitor.session import SessionFactory

_READ_SIZE = 65536
_HIGH_WATER = 256 << 10
_LOW_WATER = 64 << 10


class FdTransport(asyncio.Transport):
    """A transport over two file descriptors, read and written by a thread each. The descriptors stay open."""

    def __init__(self, protocol: asyncio.Protocol, read_fd: int, write_fd: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._may_read = threading.Event()
        self._may_read.set()
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unwritten = 0
        self._writing_paused = False
        self._closing = False
        self._written = self._loop.create_future()
        protocol.connection_made(self)
        # Daemons: one that waits for input or for a reader must not keep the program from ending.
        threading.Thread(target=self._read_all, name="stdio reader", daemon=True).start()
        threading.Thread(target=self._write_all, name="stdio writer", daemon=True).start()

    def _post(self, function: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed already
            self._loop.call_soon_threadsafe(function, *args)

    # -- reading ---------------------------------------------------------------------------------------------

    def _read_all(self) -> None:
        while not self._closing:
            self._may_read.wait()
            try:
                data = os.read(self._read_fd, _READ_SIZE)
            except OSError:
                data = b""
            if not data:
                self._post(self._eof)
                return
            # The next read waits until the protocol has had the chance to say that it has enough.
            self._may_read.clear()
            self._post(self._received, data)

    def _received(self, data: bytes) -> None:
        if not self._closing:
            self._reading_paused = False
            self._protocol.data_received(data)
            if not self._reading_paused:
                self._may_read.set()

    _reading_paused = False

    def _eof(self) -> None:
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def pause_reading(self) -> None:
        self._reading_paused = True
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._may_read.set()

    def is_reading(self) -> bool:
        return not self._reading_paused

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        self._unwritten += len(data)
        self._outgoing.put(bytes(data))
        if self._unwritten > _HIGH_WATER and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def _write_all(self) -> None:
        while (data := self._outgoing.get()) is not None:
            view = memoryview(data)
            try:
                while view:
                    try:
                        view = view[os.write(self._write_fd, view) :]
                    except BlockingIOError:
                        # Somebody else made the stream non-blocking; wait until it takes more.
                        import select

                        select.select([], [self._write_fd], [])
            except OSError:
                break
            self._post(self._wrote, len(data))
        self._post(self._end)

    def _wrote(self, size: int) -> None:
        self._unwritten -= size
        if self._writing_paused and self._unwritten < _LOW_WATER:
            self._writing_paused = False
            self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self._unwritten

    # -- end -------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._may_read.set()
            self._outgoing.put(None)

    abort = close

    def _end(self) -> None:
        if not self._written.done():
            self._closing = True
            self._written.set_result(None)
            self._protocol.connection_lost(None)

    async def wait_written(self) -> None:
        """Wait until everything is written, or cannot be."""
        await asyncio.shield(self._written)


@chardev_kind
class StdioChardev(Chardev):
    """Standard input and output, for one monitor. A terminal is in raw mode meanwhile: the monitor edits the line."""

    kind: ClassVar[str] = "stdio"
    _taken: ClassVar[bool] = False

    def __init__(self, label: str, options: ChardevStdio) -> None:
        super().__init__(label)
        self._signal = options.signal is not False
        self._transport: FdTransport | None = None
        self._terminal: list[Any] | None = None
        self._opened = False

    @property
    def filename(self) -> str:
        return "stdio"

    async def open(self) -> None:
        if StdioChardev._taken:
            raise GenericError("cannot use stdio by multiple character devices")
        StdioChardev._taken = self._opened = True
        self._make_raw()

    def _make_raw(self) -> None:
        if not os.isatty(0):
            return
        self._terminal = termios.tcgetattr(0)
        # Also when the program ends by an exception.
        atexit.register(self._restore)
        mode = termios.tcgetattr(0)
        mode[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
        mode[0] &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
        mode[1] |= termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self._signal:
            mode[3] &= ~termios.ISIG
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        termios.tcsetattr(0, termios.TCSANOW, mode)

    def attach(self, factory: SessionFactory) -> None:
        super().attach(factory)
        self._transport = FdTransport(factory(True), 0, 1)

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            # A reader that does not read must not keep the program from ending.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._transport.wait_written(), 1)
        self._restore()
        if self._opened:
            StdioChardev._taken = self._opened = False

    def _restore(self) -> None:
        if self._terminal is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._terminal)
            self._terminal = None
            atexit.unregister(self._restore)

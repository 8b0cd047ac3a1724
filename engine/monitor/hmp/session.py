"""One person at an HMP monitor, from the banner to the end of the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.descriptors.passing import client
from engine.monitor.hmp.completion import complete
from engine.monitor.hmp.interpreter import Monitor, execute
from engine.monitor.hmp.readline import Readline
from engine.monitor.outlet import Outlet
from engine.monitor.session import Session
from engine.qapi import dispatch

if TYPE_CHECKING:
    from engine.engine import Engine

PROMPT = "(qemu) "
INPUT_LIMIT = 65536
"""Bytes typed ahead before reading stops."""


class HMPSession(Session):
    """A connection. What is typed while a command runs is looked at afterwards.

    keep_open: whether the connection outlives the end of its input (standard streams do).
    """

    def __init__(self, engine: Engine, *, keep_open: bool = False) -> None:
        super().__init__()
        self._engine = engine
        self._keep_open = keep_open
        self._outlet = Outlet(lambda count: b"")
        self._transport: asyncio.Transport | None = None
        self._readline = Readline(PROMPT, self._write, lambda text: complete(engine, text))
        self._monitor = Monitor(engine, self._print, interactive=True)
        self._monitor.history = self._readline.history
        self._said: list[str] = []
        """What the line that runs has printed."""
        self._input = b""
        self._task: asyncio.Task[None] | None = None
        self._reading = True
        self._ended = False
        self._stopped = False

    def _write(self, text: str) -> None:
        self._outlet.send(text.encode("utf-8", "surrogateescape"))

    def _print(self, text: str) -> None:
        self._said.append(text)
        self._write(text.replace("\n", "\r\n"))

    # -- the connection --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._outlet.connect(transport)
        number = dispatch(self._engine, "query-version")["qemu"]
        version = f"{number['major']}.{number['minor']}.{number['micro']}"
        self._print(f"QEMU {version} monitor - type 'help' for more information\n")
        self._readline.show_prompt()

    def data_received(self, data: bytes) -> None:
        if (fds := self.take_passed()) is not None:
            self.descriptors.arrived(fds)
        if self._stopped:
            return
        self._input += data
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        self._regulate()

    def eof_received(self) -> bool:
        self._ended = True
        self._finish_if_done()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._stopped = True
        self._input = b""
        self._outlet.disconnect()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._outlet.pause()

    def resume_writing(self) -> None:
        self._outlet.resume()

    async def stop(self) -> None:
        self._stopped = True
        self._input = b""
        if self._task is not None:
            self._outlet.resume()
            await asyncio.wait([self._task])

    def close(self) -> None:
        self._outlet.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- commands --------------------------------------------------------------------------------------------

    def _regulate(self) -> None:
        read = len(self._input) < INPUT_LIMIT
        if read != self._reading and self._transport is not None:
            self._reading = read
            if read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    async def _work(self) -> None:
        try:
            while self._input:
                if self._outlet.paused:
                    await self._outlet.ready()
                    continue
                line, self._input = self._readline.feed(self._input)
                self._regulate()
                if line is not None:
                    arguments = {"command-line": line}
                    await self._engine.observed("human-monitor-command", arguments, self._execute(line))
                    if self._monitor.ended:
                        self._stopped = True
                        self._input = b""
                    if not self._stopped:
                        self._readline.show_prompt()
                    # Others want to get their turn between two lines.
                    await asyncio.sleep(0)
        finally:
            self._task = None
        self._finish_if_done()

    async def _execute(self, line: str) -> str:
        self._said.clear()
        token = client.set(self.descriptors)
        try:
            await execute(self._monitor, line)
        finally:
            client.reset(token)
        return "".join(self._said)

    def _finish_if_done(self) -> None:
        if self._ended and not self._keep_open and self._task is None and self._transport is not None:
            self.close()

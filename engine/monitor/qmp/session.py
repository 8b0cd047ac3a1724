"""One client of a QMP server, from the greeting to the end of its connection."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.descriptors.passing import client
from engine.errors import CommandNotFound, GenericError, QMPError
from engine.monitor.outlet import Outlet
from engine.monitor.qmp.events import EventHub, encode
from engine.monitor.qmp.requests import check_request, failure, success, wants_oob
from engine.monitor.session import Session
from engine.qapi import registry, to_wire
from engine.qapi.json_stream import JSONStream

if TYPE_CHECKING:
    from engine.engine import Engine

NEGOTIATION = "qmp_capabilities"
QUIT = "quit"
OWN_COMMANDS = "x-blockmon-"
"""How the names of commands begin that QEMU does not have."""
CAPABILITIES = ("oob",)
QUEUE_LIMIT = 8
"""Requests that wait before reading stops (more when one read brings more)."""
SLICE = 0.005
"""Seconds of the control plane that a client's queued commands may take in one turn of the loop."""


def lost_events(pretty: bool) -> Callable[[int], bytes]:
    """What makes the notice to a client that events were dropped, as it goes over the wire."""

    def notice(count: int) -> bytes:
        from engine.commands.monitor import XBlockmonEventsLost

        now = time.time_ns()
        event = {
            "timestamp": {"seconds": now // 1_000_000_000, "microseconds": now // 1000 % 1_000_000},
            "event": XBlockmonEventsLost.EVENT,
            "data": to_wire(XBlockmonEventsLost(count=count)),
        }
        return encode(event, pretty)

    return notice


class QMPSession(Session):
    """A client's connection. Commands run strictly one after another; events come in between.

    keep_open: whether the connection outlives the end of its input (standard streams do).
    """

    def __init__(self, engine: Engine, hub: EventHub, *, pretty: bool = False, keep_open: bool = False) -> None:
        super().__init__()
        self.pretty = pretty
        self.negotiated = False
        self.knows_us = False
        self.capabilities: frozenset[str] = frozenset()
        self._engine = engine
        self._hub = hub
        self._keep_open = keep_open
        self._stream = JSONStream()
        self._outlet = Outlet(lost_events(pretty))
        self._queue: deque[tuple[Any, list[int] | None]] = deque()
        self._early_fds: list[int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._out_of_band: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._ended = False
        self._stopped = False

    # -- the connection --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._outlet.connect(transport)
        self._engine.graph.fdsets.monitors += 1
        version = registry.dispatch(self._engine, "query-version")
        self._send({"QMP": {"version": version, "capabilities": list(CAPABILITIES)}})

    def data_received(self, data: bytes) -> None:
        if (fds := self.take_passed()) is not None:
            self._passed_with_next(fds)
        if self._stopped:
            return
        self._take(self._stream.feed(data))

    def eof_received(self) -> bool:
        self._take(self._stream.flush())
        self._ended = True
        self._finish_if_done()
        return True  # what is queued is still answered; then the session closes the connection itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._drop_queue()
        self._engine.graph.fdsets.monitor_gone()
        self._hub.listeners.discard(self)
        self._outlet.disconnect()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._outlet.pause()

    def resume_writing(self) -> None:
        self._outlet.resume()

    async def stop(self) -> None:
        """Take no more commands; wait for the one that runs."""
        self._stopped = True
        self._drop_queue()
        if self._task is not None:
            self._outlet.resume()
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Send what is waiting and close the connection."""
        self._outlet.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- descriptors -----------------------------------------------------------------------------------------

    def _passed_with_next(self, fds: list[int]) -> None:
        """*fds* belong to the next command that is complete, however many wait in front of it."""
        if self._early_fds is not None:
            self.descriptors.arrived(self._early_fds)
        self._early_fds = fds

    def _drop_queue(self) -> None:
        for _, fds in self._queue:
            self.descriptors.arrived(fds or [])
        self._queue.clear()
        self.descriptors.arrived(self._early_fds or [])
        self._early_fds = None

    # -- requests --------------------------------------------------------------------------------------------

    @property
    def _oob(self) -> bool:
        return "oob" in self.capabilities

    def _take(self, messages: list[Any]) -> None:
        for message in messages:
            if self._oob and wants_oob(message):
                # Ahead of the queue, also of a command that waits for something.
                task = asyncio.get_running_loop().create_task(self._answer_out_of_band(message))
                self._out_of_band.add(task)
                task.add_done_callback(self._out_of_band.discard)
            else:
                fds, self._early_fds = self._early_fds, None
                self._queue.append((message, fds))
        if self._queue and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        self._regulate()

    def _regulate(self) -> None:
        """Read on, or not, by the length of the queue."""
        read = len(self._queue) < QUEUE_LIMIT
        if read != self._reading and self._transport is not None:
            self._reading = read
            if read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            until = clock() + SLICE
            while self._queue:
                if self._outlet.paused:
                    await self._outlet.ready()
                    continue
                message, fds = self._queue.popleft()
                if fds is not None:
                    self.descriptors.arrived(fds)
                self._send(await self._reply(message))
                self._regulate()
                if clock() > until:
                    await asyncio.sleep(0)
                    until = clock() + SLICE
        finally:
            self._task = None
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._ended and not self._keep_open and self._task is None and self._transport is not None:
            self.close()

    async def _reply(self, message: Any) -> dict[str, Any]:
        try:
            if isinstance(message, QMPError):  # what the parser says of input that is no JSON
                raise message
            request = check_request(message, oob_enabled=self._oob)
            result = await self._execute(request.command, request.arguments, request.oob)
        except QMPError as exc:
            return failure(message, exc)
        if request.command == QUIT:
            # What follows it is not looked at any more.
            self._stopped = True
            self._drop_queue()
        return success(message, result)

    async def _execute(self, name: str, arguments: dict[str, Any], oob: bool) -> Any:
        command = registry.commands.get(name)
        if not self.negotiated and name != NEGOTIATION:
            raise CommandNotFound(f"Expecting capabilities negotiation with '{NEGOTIATION}'")
        if command is not None and oob and not command.allow_oob:
            raise GenericError(f"The command {name} does not support OOB")
        if name == NEGOTIATION and command is not None:
            return command.call(self, arguments)
        if name.startswith(OWN_COMMANDS):
            self.knows_us = True
        token = client.set(self.descriptors)
        try:
            return await self._engine.run_command(name, arguments)
        finally:
            client.reset(token)

    async def _answer_out_of_band(self, message: Any) -> None:
        self._send(await self._reply(message))

    def negotiate(self, enable: list[str]) -> None:
        """Carry out qmp_capabilities. Errors: CommandNotFound (done before)."""
        if self.negotiated:
            raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
        self.capabilities = frozenset(enable)
        self.negotiated = True
        self._hub.listeners.add(self)

    # -- output ----------------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Any]) -> None:
        self._outlet.send(encode(message, self.pretty))

    def send_event(self, data: bytes) -> None:
        self._outlet.offer(data)

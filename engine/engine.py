"""Engine: the one object a front end holds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import json
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from engine.devices.events import Shutdown, ShutdownCause
from engine.devices.guest import Guest
from engine.devices.machine import Machine
from engine.errors import GenericError, QMPError
from engine.exports.manager import Exports
from engine.graph.graph import Graph
from engine.graph.node import Node
from engine.jobs.manager import JobManager
from engine.qapi import Struct, dispatch, to_wire

if TYPE_CHECKING:
    from engine.devices.drive import Drives

log = logging.getLogger("engine")

Event = dict[str, Any]
Subscriber = Callable[[Event], None]
Outcome = Callable[[Any, QMPError | None], None]
"""Takes what a command returned, or its error."""
CommandObserver = Callable[[str, Mapping[str, Any]], Outcome]
"""Told of a command before it runs; what it returns is told how the command ended. On the control plane."""

_within: contextvars.ContextVar[bool] = contextvars.ContextVar("within a command", default=False)
"""Set in what a command, or an HMP line, runs to do its work, which observers are not told of."""


class ControlPlane:
    """One asyncio loop in a thread of its own; everything that changes the graph or a job's state runs there."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def here(self) -> bool:
        """Whether the caller runs on the control plane."""
        return threading.current_thread() is self._thread

    def post(self, function: Callable[[], None]) -> None:
        """Run *function* on the control plane soon, after what was posted before. Any thread."""
        self.loop.call_soon_threadsafe(function)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run *function* on the control plane and wait for its result. Never from a data-plane request."""
        if self.here:
            return function()
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as exc:  # handed to the caller's thread
                future.set_exception(exc)

        self.post(run)
        return future.result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Server(Protocol):
    """Something that lets others reach the engine, and ends with it (monitors)."""

    async def stop(self) -> None:
        """Take no more commands and wait for those that run. Events still go out."""

    async def close(self) -> None:
        """Close every connection. Nothing of the engine but its loop is left."""


_RECURSION = 10_000
"""Calls in calls: as many layers as a chain may have, each of them filters upon filters, take some thousands."""


class Engine:
    """A block engine. execute() and submit() may be called from any thread; subscribers run on the control plane."""

    def __init__(self) -> None:
        import engine.commands
        import engine.drivers  # noqa: F401  (registers the drivers)

        sys.setrecursionlimit(max(sys.getrecursionlimit(), _RECURSION))
        self.control = ControlPlane()
        self.graph = Graph(self.control)
        self.objects = self.graph.objects
        self.jobs = JobManager(self.graph, self.emit)
        self.started_ns = time.monotonic_ns()
        self.machine = Machine(self)
        self.graph.fdsets.running = lambda: self.machine.execution.running
        self.exports = Exports(self)
        self.guests: dict[str, Guest] = {}
        """Simulated guests by the name of their device."""
        self.servers: list[Server] = []
        self.on_quit: Callable[[], None] | None = None
        self.shutdown_cause = ShutdownCause.HOST_SIGNAL
        """What the last event, SHUTDOWN, gives as the reason."""
        self._subscribers: tuple[Subscriber, ...] = ()
        self._observers: tuple[CommandObserver, ...] = ()
        self._change_announced = False
        self._closed = False
        self.graph.on_change.append(self._graph_changed)
        self.graph.on_corruption.append(self._corrupted)
        self.graph.on_event.append(self.emit)

    # -- commands --------------------------------------------------------------------------------------------

    def submit(self, command: str, arguments: Mapping[str, Any] | None = None) -> concurrent.futures.Future[Any]:
        """Start a QMP command; the future gives its return value in wire form, or raises QMPError."""
        return asyncio.run_coroutine_threadsafe(self.run_command(command, arguments), self.control.loop)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and return its value in wire form. Errors: QMPError. Not on the control plane."""
        return self.submit(command, arguments).result()

    async def run_command(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command on the control plane. Errors: QMPError only; anything else is logged and told as one."""
        if self._observers and not _within.get():
            return await self.observed(command, arguments or {}, self._run_command(command, arguments))
        return await self._run_command(command, arguments)

    async def _run_command(self, command: str, arguments: Mapping[str, Any] | None) -> Any:
        try:
            result = dispatch(self, command, dict(arguments or {}))
            if inspect.isawaitable(result):
                result = await result
            return result
        except QMPError:
            raise
        except OSError as exc:
            log.exception("command %s", command)
            raise GenericError(f"{command}: {exc.strerror or exc}") from exc
        except Exception as exc:
            log.exception("internal error in command %s %s", command, json.dumps(arguments, default=str))
            raise GenericError(f"Internal error in '{command}': {exc!r} (see the log)") from exc

    def observe(self, observer: CommandObserver) -> Callable[[], None]:
        """Tell *observer* of every command from now on, whoever sends it; returns what ends it. Any thread."""
        self._observers += (observer,)

        def end() -> None:
            self._observers = tuple(other for other in self._observers if other is not observer)

        return end

    async def observed(self, command: str, arguments: Mapping[str, Any], work: Awaitable[Any]) -> Any:
        """Await *work*, which carries out the command, and tell the observers of it. Errors: those of *work*.

        For what comes in another form than run_command takes, such as a line that is typed at an HMP monitor.
        """
        outcomes = [observer(command, arguments) for observer in self._observers]
        token = _within.set(True)
        try:
            result = await work
        except QMPError as exc:
            for outcome in outcomes:
                outcome(None, exc)
            raise
        finally:
            _within.reset(token)
        for outcome in outcomes:
            outcome(result, None)
        return result

    # -- events ----------------------------------------------------------------------------------------------

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call *subscriber* with every event from now on, on the control plane; returns what ends it. Any thread."""
        self._subscribers += (subscriber,)

        def unsubscribe() -> None:
            self._subscribers = tuple(other for other in self._subscribers if other is not subscriber)

        return unsubscribe

    def emit(self, event: Struct) -> None:
        """Send an event to every subscriber. Any thread."""
        now = time.time_ns()
        wire: Event = {
            "timestamp": {"seconds": now // 1_000_000_000, "microseconds": now // 1000 % 1_000_000},
            "event": event.EVENT,
        }
        data = to_wire(event)
        if data:
            wire["data"] = data
        if self.control.here:
            self._deliver(wire)
        else:
            self.control.post(lambda: self._deliver(wire))

    def _deliver(self, wire: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(wire)
            except Exception:
                log.exception("event subscriber")

    def _graph_changed(self, generation: int) -> None:
        # Any thread, any number of times; one event carries them all.
        if self._change_announced or self._closed:
            return
        self._change_announced = True

        def announce() -> None:
            from engine.commands.blockmon import XBlockmonGraphChange

            self._change_announced = False
            self.emit(XBlockmonGraphChange(generation=self.graph.generation))

        self.control.post(announce)

    def _corrupted(self, node: Node, message: str, offset: int | None, size: int | None, fatal: bool) -> None:
        from engine.commands.events import BlockImageCorrupted

        log.error("image of node %s is corrupt: %s", node.name, message)
        self.emit(
            BlockImageCorrupted(
                device=node.device_name, node_name=node.name, msg=message, offset=offset, size=size, fatal=fatal
            )
        )

    def _stop_guests(self) -> None:
        while self.guests:
            self.guests.popitem()[1].stop()
        self.machine.close()

    # -- end -------------------------------------------------------------------------------------------------

    @cached_property
    def drives(self) -> Drives:
        """The legacy drives; few engines have any."""
        from engine.devices.drive import Drives

        return Drives(self)

    def close(self) -> None:
        """Cancel jobs, flush and close every node, stop the control plane. Idempotent; any thread but the control
        plane.
        """
        if self._closed:
            return
        loop = self.control.loop
        self.control.call(self.objects.throttle_groups.set_free)
        self.control.call(lambda: self.emit(Shutdown(guest=False, reason=self.shutdown_cause)))
        for server in self.servers:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        asyncio.run_coroutine_threadsafe(self.exports.close(), loop).result()
        self.control.call(self._stop_guests)
        self.jobs.cancel_all()
        self.jobs.join()
        self.control.call(self.jobs.dismiss_all)
        self._closed = True
        self.control.call(self.graph.close)
        self.control.call(self.objects.close)
        self.control.call(self.graph.fdsets.close)
        for server in self.servers:
            asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        self.control.stop()

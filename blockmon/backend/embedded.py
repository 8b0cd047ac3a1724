"""The engine inside this process."""

from __future__ import annotations

import asyncio
import collections
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blockmon.backend import CommandError, Event, EventCallback
from blockmon.options import CommonOptions, StartupError

if TYPE_CHECKING:
    from blockmon.backend.pidfile import PidFile
    from blockmon.backend.recorder import Recorder
    from engine.engine import Engine

_SWITCH_INTERVAL = 0.001
"""Seconds a thread may keep the interpreter while others want it; Python's own default is five times that."""

_LONGEST_TURN = 0.002
"""Seconds that commands run together may keep the control plane from anything else."""


class EmbeddedBackend:
    """Backend over an Engine in its own thread. Importing the engine happens in start(), off the caller's loop."""

    title = "embedded"

    def __init__(self, options: CommonOptions) -> None:
        self._options = options
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callbacks: list[EventCallback] = []
        self._early: list[EventCallback] | None = []
        """Given before start(): they hear of what happens once the first state stands, not of how it came about."""
        self._pending: collections.deque[Event] = collections.deque()
        self._scheduled = False
        self._closing = False
        self._pidfile: PidFile | None = None
        self._recorder: Recorder | None = None
        """Given before start(): it hears of all that the start-up does."""
        self._detach: Callable[[], None] = lambda: None

    async def start(self) -> None:
        # The front end shares the interpreter with jobs and guests: it must not wait long for its turn to answer a key.
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._loop = asyncio.get_running_loop()
        self._engine = await self._loop.run_in_executor(None, self._make_engine)
        try:
            await self._start_up()
        except BaseException:
            await self.close()
            raise
        self._deliver()
        early, self._early = self._early or [], None
        self._callbacks += early

    def _make_engine(self) -> Engine:
        from engine.engine import Engine

        engine = Engine()
        # The front end counts as a monitor: what was passed stays while it is there.
        engine.graph.fdsets.monitors += 1
        engine.subscribe(self._on_event)
        engine.on_quit = self._on_quit
        if self._recorder is not None:
            self._attach(self._recorder, engine)
        return engine

    async def _start_up(self) -> None:
        from blockmon.backend.startup import start_up

        assert self._engine is not None
        await start_up(self._engine, self._options)
        for image in self._options.images:
            try:
                await self.execute("x-blockmon-open", {"filename": image, "read-write": self._options.rw})
            except CommandError as exc:
                raise StartupError(image, exc.desc) from exc
        if self._options.prepare is not None:
            await self._options.prepare(self)
        if self._options.pidfile is not None:
            from blockmon.backend.pidfile import PidFile

            self._pidfile = PidFile(self._options.pidfile)

    # -- commands --------------------------------------------------------------------------------------------

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        from engine.errors import QMPError

        engine = self._engine
        if engine is None or self._closing:
            raise CommandError("GenericError", "The engine is not running")
        try:
            return await asyncio.wrap_future(engine.submit(command, arguments))
        except QMPError as exc:
            raise CommandError(exc.error_class, exc.desc) from None

    def observe(self, recorder: Recorder) -> Callable[[], None]:
        """Tell *recorder* of every command from now on, those of the start-up and of monitors' clients included;
        returns what ends it. One recorder at a time."""
        if self._engine is None:
            self._recorder = recorder
        else:
            self._attach(recorder, self._engine)
        return self._forget_recorder

    def _attach(self, recorder: Recorder, engine: Engine) -> None:
        from blockmon.backend.recorder import attach

        self._detach = attach(recorder, engine)

    def _forget_recorder(self) -> None:
        self._recorder = None
        self._detach()

    async def execute_many(
        self, commands: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> tuple[list[Any], CommandError | None]:
        """Run commands one after the other up to the first that fails; returns the values of those that succeeded, and
        that one's error. The way to the engine's thread and back, which costs more than most commands, is gone
        once."""
        from engine.errors import QMPError

        engine = self._engine
        if engine is None or self._closing:
            return [], CommandError("GenericError", "The engine is not running")
        values: list[Any] = []

        async def run() -> None:
            turn = time.monotonic()
            for command, arguments in commands:
                values.append(await engine.run_command(command, arguments))
                # Jobs and clients have their turn between commands, as they have when commands come one by one.
                if not command.startswith("query-") or time.monotonic() - turn > _LONGEST_TURN:
                    await asyncio.sleep(0)
                    turn = time.monotonic()

        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), engine.control.loop))
        except QMPError as exc:
            return values, CommandError(exc.error_class, exc.desc)
        return values, None

    # -- events ----------------------------------------------------------------------------------------------

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        starting = self._engine is not None
        callbacks = self._callbacks if self._early is None or starting else self._early
        callbacks.append(callback)

        def unsubscribe() -> None:
            for found in (self._callbacks, self._early or []):
                if callback in found:
                    found.remove(callback)

        return unsubscribe

    def _on_event(self, event: Event) -> None:
        # On the control plane. One wake-up of the front end's loop carries all that has come up to then.
        self._pending.append(event)
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._pending.clear()  # the front end's loop is gone, and with it whoever would look at events

    def _on_quit(self) -> None:
        # On the control plane. Whoever said quit, the front end or a client of --qmp, the front end has to end; QEMU's
        # own event tells it.
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        self._on_event(
            {
                "timestamp": {"seconds": seconds, "microseconds": microseconds},
                "event": "SHUTDOWN",
                "data": {"guest": False, "reason": "host-qmp-quit"},
            }
        )

    def _deliver(self) -> None:
        self._scheduled = False
        batch = []
        while self._pending:
            batch.append(self._pending.popleft())
        if batch:
            for callback in tuple(self._callbacks):
                callback(batch)

    async def close(self) -> None:
        if self._engine is None or self._closing:
            return
        self._closing = True
        await asyncio.get_running_loop().run_in_executor(None, self._engine.close)
        self._deliver()
        if self._pidfile is not None:
            self._pidfile.remove()

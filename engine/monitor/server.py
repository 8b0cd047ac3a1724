"""The character devices and monitors of one engine, as the command line asks for them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.monitor.addresses import chardev_from_address
from engine.monitor.chardev.kinds import Chardev, make_chardev
from engine.monitor.chardev.options import ChardevOptions, chardev_from_option
from engine.monitor.hmp.session import HMPSession
from engine.monitor.qmp.events import EventHub
from engine.monitor.qmp.session import QMPSession
from engine.monitor.session import Session
from engine.qapi import Enum, Struct
from engine.qapi.keyval import from_option

if TYPE_CHECKING:
    from engine.engine import Engine

log = logging.getLogger("engine.monitor")

STOP_TIMEOUT = 10.0
"""Seconds that commands in progress get to end when the engine closes."""
FLUSH_TIMEOUT = 1.0
"""Seconds that clients get to read what is left for them when the engine closes."""


class MonitorMode(Enum):
    """readline: HMP. control: QMP."""

    READLINE = "readline"
    CONTROL = "control"


class MonitorOptions(Struct):
    """A monitor. chardev: what it talks over. pretty: QMP is indented."""

    id: str | None = None
    mode: MonitorMode | None = None
    pretty: bool | None = None
    chardev: str


class Monitors:
    """Makes character devices and monitors, and ends them with the engine. All but __init__ on the control plane.

    announce: takes sentences for the person at the terminal (any thread).
    """

    def __init__(self, engine: Engine, announce: Callable[[str], None] = log.info) -> None:
        self._engine = engine
        self._announce = announce
        self._hub: EventHub | None = None
        self._sessions: set[Session] = set()
        self.chardevs: dict[str, Chardev] = {}
        self._ids: set[str] = set()
        engine.servers.append(self)

    async def add_chardev(self, text: str) -> None:
        """Carry out --chardev *text*. Errors: GenericError."""
        await self._add_chardev(chardev_from_option(text))

    async def _add_chardev(self, options: ChardevOptions) -> None:
        if options.id in self.chardevs:
            raise GenericError(f"Chardev with id '{options.id}' already exists")
        chardev = make_chardev(options)
        chardev.announce = self._announce
        await chardev.open()
        self.chardevs[options.id] = chardev

    def add_monitor(self, text: str) -> None:
        """Carry out --monitor *text*. Errors: GenericError."""
        self._add_monitor(from_option(MonitorOptions, text, "chardev"))

    def _add_monitor(self, options: MonitorOptions) -> None:
        chardev = self.chardevs.get(options.chardev)
        if chardev is None:
            raise GenericError(f'chardev "{options.chardev}" not found')
        if options.id is not None and options.id in self._ids:
            raise GenericError(f"Duplicate ID '{options.id}' for monitor")
        if options.mode is MonitorMode.READLINE:
            if options.pretty:
                raise GenericError("'pretty' is not compatible with HMP monitors")
            chardev.attach(self._make_hmp)
        else:
            pretty = options.pretty is True
            chardev.attach(lambda keep_open: self._make_qmp(pretty, keep_open))
        if options.id is not None:
            self._ids.add(options.id)

    async def listen(self, mode: str, address: str) -> None:
        """Carry out --qmp ("control") or --hmp ("readline") *address*. Errors: GenericError."""
        number = 0
        while (label := f"compat_monitor{number}") in self.chardevs:
            number += 1
        await self._add_chardev(chardev_from_address(address, label))
        self._add_monitor(MonitorOptions(mode=MonitorMode(mode), chardev=label))

    # -- sessions --------------------------------------------------------------------------------------------

    def _make_qmp(self, pretty: bool, keep_open: bool) -> Session:
        if self._hub is None:
            self._hub = EventHub(self._engine)
        return self._keep(QMPSession(self._engine, self._hub, pretty=pretty, keep_open=keep_open))

    def _make_hmp(self, keep_open: bool) -> Session:
        return self._keep(HMPSession(self._engine, keep_open=keep_open))

    def _keep(self, session: Session) -> Session:
        self._sessions.add(session)
        session.on_lost.append(lambda: self._sessions.discard(session))
        return session

    # -- end -------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Take no more commands, wait for those that run. Events still go out."""
        waiting = [asyncio.ensure_future(session.stop()) for session in self._sessions]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=STOP_TIMEOUT)
            for task in late:
                log.warning("a monitor command does not end; closing without waiting for it")
                task.cancel()

    async def close(self) -> None:
        """Close every connection and character device; socket files are removed."""
        if self._hub is not None:
            self._hub.close()
        gone = []
        for session in tuple(self._sessions):
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            session.on_lost.append(functools.partial(_settle, done))
            gone.append(done)
            session.close()
        for chardev in self.chardevs.values():
            await chardev.close()
        if gone:
            await asyncio.wait(gone, timeout=FLUSH_TIMEOUT)
        for session in tuple(self._sessions):
            session.abort()
        # What the transports do last happens in the next turns of the loop.
        for _ in range(3):
            await asyncio.sleep(0)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def chardevs_of(engine: Engine) -> list[Chardev]:
    """The character devices of *engine*."""
    return [
        chardev for server in engine.servers if isinstance(server, Monitors) for chardev in server.chardevs.values()
    ]

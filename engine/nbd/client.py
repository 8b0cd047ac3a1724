"""An NBD client that outlives its connection: it makes a lost one again, and more than one where the server likes it.

Rules as in QEMU's nbd driver: after a loss requests wait up to the reconnect delay, and from then on fail with EIO
until the server is back, which is tried for in the background with growing pauses. A server that broke the protocol, or
came back as another, is not talked to any more.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Final, TypeVar

from engine.errors import GenericError
from engine.nbd import protocol as nbd
from engine.nbd.channel import Channel, ConnectionLost
from engine.nbd.negotiation import ExportInfo

log = logging.getLogger("engine.nbd")

_R = TypeVar("_R")
_MOST_CHANNELS: Final = 4
_CROWDED: Final = 4
"""Requests on the way from which on another connection is worth while."""
_LONGEST_PAUSE: Final = 16.0
_LAST_CHANCE: Final = 0.2
"""Seconds for an attempt that begins when the time is nearly up."""


class Client:
    """Connections to one export.

    connect: makes a channel (Errors: GenericError). cancel: lets that fail soon, if it is at it.
    reconnect_delay: seconds that requests wait after a loss.
    on_lost: called with a text when the connection is lost, and with None when it is back; in any thread.
    """

    def __init__(
        self,
        connect: Callable[[], Channel],
        reconnect_delay: float,
        cancel: Callable[[], None] = lambda: None,
        on_lost: Callable[[str | None], None] = lambda text: None,
    ) -> None:
        self._connect = connect
        self._cancel = cancel
        self._delay = reconnect_delay
        self._on_lost = on_lost
        self._state = threading.Condition()
        self._channels: list[Channel] = []
        self._connector: threading.Thread | None = None
        self._wait_until = 0.0
        self._alone = False
        """Another connection was refused once: one is all there is."""
        self._closed = False
        self._broken = False
        self.info = ExportInfo()

    def open(self, timeout: float) -> None:
        """Connect; after a failure try again for *timeout* seconds. Errors: GenericError."""
        end = time.monotonic() + timeout
        pause = 1.0
        while True:
            try:
                channel = self._attempt(max(end - time.monotonic(), _LAST_CHANCE)) if timeout else self._connect()
                break
            except GenericError:
                left = end - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
        self.info = channel.info
        self._channels = [channel]

    def _attempt(self, seconds: float) -> Channel:
        """Connect, in a thread: what waits for a host that does not answer can't be ended. Errors: GenericError."""
        made: Future[Channel] = Future()

        def connect() -> None:
            try:
                channel = self._connect()
            except BaseException as exc:
                with contextlib.suppress(InvalidStateError):
                    made.set_exception(exc)
                return
            try:
                made.set_result(channel)
            except InvalidStateError:  # nobody waits for it any more
                channel.close()

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(connect,), name="nbd connect", daemon=True).start()
        try:
            return made.result(seconds)
        except TimeoutError:
            self._cancel()
            if not made.cancel():
                return made.result()
            raise GenericError("Connection attempt cancelled by timeout") from None

    def call(self, request: Callable[[Channel], _R]) -> _R:
        """Run *request* on a connection; once more on the next one when that is lost in time. Errors: OSError."""
        while True:
            channel = self._choose()
            try:
                return request(channel)
            except ConnectionLost as exc:
                self._lost(channel, exc)

    # -- choosing --------------------------------------------------------------------------------------------

    def _choose(self) -> Channel:
        channels = self._channels
        if len(channels) == 1 and channels[0].in_flight < _CROWDED:
            return channels[0]
        with self._state:
            while not self._channels:
                left = self._wait_until - time.monotonic()
                if self._closed or self._broken or left <= 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._state.wait(left)
            channel = min(self._channels, key=lambda each: each.in_flight)
            if (
                channel.in_flight >= _CROWDED
                and len(self._channels) < _MOST_CHANNELS
                and self.info.flags & nbd.CAN_MULTI_CONN
                and not self._alone
            ):
                self._start(self._add)
            return channel

    def _start(self, work: Callable[[], None]) -> None:
        """Let *work* connect in the background, unless something does already. With the lock held."""
        if self._connector is None and not self._closed:
            self._connector = threading.Thread(target=self._run, args=(work,), name="nbd connect", daemon=True)
            self._connector.start()

    def _run(self, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except Exception:
                log.exception("NBD client")
            with self._state:
                # The last connection may have been lost while another was added.
                if self._channels or self._closed or self._broken:
                    self._connector = None
                    self._state.notify_all()
                    return
            work = self._reconnect

    def _add(self) -> None:
        try:
            channel = self._connect()
        except GenericError as exc:
            log.info("NBD client stays with the connections it has: %s", exc.desc)
            self._alone = True
            return
        if self._same(channel.info):
            self._take(channel)
        else:
            self._alone = True
            channel.close()

    # -- losing and coming back ------------------------------------------------------------------------------

    def _lost(self, channel: Channel, exc: ConnectionLost) -> None:
        with self._state:
            if channel not in self._channels:
                return
            self._channels = [each for each in self._channels if each is not channel]
            if self._closed:
                return
            log.warning("NBD connection lost: %s", exc)
            if exc.broken:
                self._broken = True
            if not self._channels:
                self._wait_until = time.monotonic() + self._delay
                if not self._broken:
                    self._start(self._reconnect)
                self._state.notify_all()
                self._on_lost(str(exc))
        threading.Thread(target=channel.abandon, name="nbd abandon", daemon=True).start()

    def _reconnect(self) -> None:
        pause = 0.0
        while True:
            with self._state:
                if self._state.wait_for(lambda: self._closed, pause):
                    return
            try:
                channel = self._connect()
            except GenericError as exc:
                log.info("NBD server is not back yet: %s", exc.desc)
                pause = min(2 * pause, _LONGEST_PAUSE) or 1.0
                continue
            if self._same(channel.info):
                self._take(channel)
                self._on_lost(None)
                return
            channel.close()
            log.error("NBD server has come back with another export")
            with self._state:
                self._broken = True
                self._state.notify_all()
            return

    def _take(self, channel: Channel) -> None:
        with self._state:
            if not self._closed and not self._broken:
                self._channels = [*self._channels, channel]
                self._state.notify_all()
                return
        channel.close()

    def _same(self, info: ExportInfo) -> bool:
        """Whether an export is, as far as one can tell, the one that was opened. It may have grown."""
        before = self.info
        return (
            info.size >= before.size
            and info.min_block <= before.min_block
            and (not info.flags & nbd.READ_ONLY or bool(before.flags & nbd.READ_ONLY))
            and info.extended >= before.extended
            and (info.context_id is None) == (before.context_id is None)
            and not before.flags & ~info.flags & (nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES)
        )

    # -- the end ---------------------------------------------------------------------------------------------

    def give_up_waiting(self) -> None:
        """Let requests that wait for a lost server fail now."""
        with self._state:
            self._wait_until = 0.0
            self._state.notify_all()

    def close(self) -> None:
        """Take leave; no request comes any more."""
        with self._state:
            self._closed = True
            channels, self._channels = self._channels, []
            connector = self._connector
            self._state.notify_all()
        for channel in channels:
            channel.close()
        if connector is not None:
            # Only while the name is looked up or the host does not answer it goes on; what it gets it closes itself.
            self._cancel()
            connector.join(0.1)

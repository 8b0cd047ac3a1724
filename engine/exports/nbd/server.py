"""The NBD server: listens, and gives each client a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from engine.exports.listening import listen
from engine.exports.nbd.connection import Connection
from engine.objects.tls import QCryptoTLSCredsEndpoint, find_tls_creds

if TYPE_CHECKING:
    import ssl

    from engine.engine import ControlPlane
    from engine.exports.addresses import Address
    from engine.exports.nbd.export import NBDExport
    from engine.monitor.chardev.sockets import Listening
    from engine.objects.store import Objects

log = logging.getLogger("engine.nbd")

DEFAULT_MAX_CONNECTIONS = 100
_RETRY = 1.0
"""Seconds until the next try when no client can be taken (no file descriptors left)."""


class NBDServer:
    """A listening NBD server. Control plane, but for find() and exports().

    max_connections: clients at a time, 0 for any number; the next ones wait. inherited: the address may name a file
    descriptor by its number.
    """

    def __init__(
        self,
        control: ControlPlane,
        objects: Objects,
        address: Address,
        *,
        tls_creds: str | None = None,
        tls_authz: str | None = None,
        max_connections: int | None = None,
        inherited: bool = False,
    ) -> None:
        self._control = control
        self.objects = objects
        self._address = address
        self._inherited = inherited
        self._tls_creds = tls_creds
        self.tls_authz = tls_authz
        self.tls: ssl.SSLContext | None = None
        self.max_connections = DEFAULT_MAX_CONNECTIONS if max_connections is None else max_connections
        self._listening: list[Listening] = []
        self._accepting = False
        self._connections: set[Connection] = set()
        self._exports: dict[str, NBDExport] = {}
        self._empty = asyncio.Event()

    # -- exports ---------------------------------------------------------------------------------------------

    def exports(self) -> list[NBDExport]:
        """What clients can ask for, oldest first. Any thread."""
        return list(self._exports.values())

    def find(self, name: str) -> NBDExport | None:
        """The export that clients call *name*. Any thread."""
        return self._exports.get(name)

    def publish(self, export: NBDExport) -> None:
        """Let clients ask for *export*."""
        self._exports = {**self._exports, export.name: export}

    def withdraw(self, export: NBDExport) -> None:
        """Let no new client have *export*."""
        self._exports = {name: other for name, other in self._exports.items() if other is not export}

    # -- listening -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to listen. Errors: GenericError."""
        self._listening = await listen(self._address, inherited=self._inherited)
        try:
            if self._tls_creds is not None:
                creds = find_tls_creds(self.objects, self._tls_creds, QCryptoTLSCredsEndpoint.SERVER)
                self.tls = creds.context()
        except BaseException:
            self._close_listening()
            raise
        self._resume()

    def _resume(self) -> None:
        room = not self.max_connections or len(self._connections) < self.max_connections
        if self._listening and room and not self._accepting:
            self._accepting = True
            for listening in self._listening:
                self._control.loop.add_reader(listening.sock.fileno(), self._accept, listening)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for listening in self._listening:
                self._control.loop.remove_reader(listening.sock.fileno())

    def _accept(self, listening: Listening) -> None:
        try:
            sock, _ = listening.sock.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as exc:
            log.warning("NBD server can't take a client: %s", exc)
            self._pause()
            self._control.loop.call_later(_RETRY, self._resume)
            return
        connection = Connection(sock, self, self._ended)
        self._connections.add(connection)
        if self.max_connections and len(self._connections) >= self.max_connections:
            self._pause()
        try:
            connection.start()
        except RuntimeError as exc:  # no more threads
            log.warning("NBD server can't serve a client: %s", exc)
            sock.close()
            self._gone(connection)

    def _ended(self, connection: Connection) -> None:
        """The thread of *connection* is about to end. In that thread."""
        self._control.post(lambda: self._gone(connection))

    def _gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
        self._resume()

    # -- end -------------------------------------------------------------------------------------------------

    def _close_listening(self) -> None:
        self._pause()
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.remove_file()
            listening.sock.close()
        self._listening = []

    def stop(self) -> None:
        """Take no more clients and cut off those there are."""
        self._close_listening()
        for connection in self._connections:
            connection.cut_off()

    async def wait(self) -> None:
        """After stop(): return when the last client's thread is done."""
        while self._connections:
            self._empty.clear()
            await self._empty.wait()

"""The NBD server: listens in a thread, and gives each client another.

Clients are taken whatever the control plane is at: it may itself be waiting for this server, as a node's nbd driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
from typing import TYPE_CHECKING

from engine.exports.nbd.connection import Connection
from engine.objects.tls import QCryptoTLSCredsEndpoint, find_tls_creds
from engine.sockets.listening import listen

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from engine.engine import ControlPlane
    from engine.exports.nbd.export import NBDExport
    from engine.objects.store import Objects
    from engine.sockets.addresses import Address
    from engine.sockets.streams import Listening

log = logging.getLogger("engine.nbd")

DEFAULT_MAX_CONNECTIONS = 100
_RETRY = 1.0
"""Seconds until the next try when no client can be taken (no file descriptors left)."""


class NBDServer:
    """A listening NBD server. Control plane, but for find(), exports() and what takes and counts clients.

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
        self.check_peer: Callable[[bytes], None] | None = None
        self.max_connections = DEFAULT_MAX_CONNECTIONS if max_connections is None else max_connections
        self._listening: list[Listening] = []
        self._listener: threading.Thread | None = None
        self._wake = -1
        """An eventfd that makes the listener look again."""
        self._lock = threading.Lock()
        self._stopped = False
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
                self.tls, self.check_peer = creds.context(), creds.check_peer
        except BaseException:
            self._close_listening()
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listener = threading.Thread(target=self._listen, name="nbd listener", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Take clients while there is room for them. The listener's thread."""
        by_fd = {listening.sock.fileno(): listening for listening in self._listening}
        tired = False
        while True:
            with self._lock:
                if self._stopped:
                    return
                room = not self.max_connections or len(self._connections) < self.max_connections
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for fd in by_fd if room and not tired else ():
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(_RETRY * 1000 if tired else None)]
            tired = False
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif ready:
                tired = not self._accept(by_fd[ready[0]])

    def _accept(self, listening: Listening) -> bool:
        """Take a client that has come; False if that is not possible just now."""
        try:
            sock, _ = listening.sock.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return True
        except OSError as exc:
            log.warning("NBD server can't take a client: %s", exc)
            return False
        connection = Connection(sock, self, self._ended)
        with self._lock:
            if self._stopped:
                sock.close()
                return True
            self._connections.add(connection)
        try:
            connection.start()
        except RuntimeError as exc:  # no more threads
            log.warning("NBD server can't serve a client: %s", exc)
            sock.close()
            self._ended(connection)
            return False
        return True

    def _ended(self, connection: Connection) -> None:
        """The thread of *connection* is about to end. In that thread."""
        with self._lock:
            self._connections.discard(connection)
            if not self._stopped:
                self._look_again()
                return
            last = not self._connections
        if last:
            self._control.post(self._empty.set)

    def _look_again(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    # -- end -------------------------------------------------------------------------------------------------

    def _close_listening(self) -> None:
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.remove_file()
            listening.sock.close()
        self._listening = []

    def stop(self) -> None:
        """Take no more clients and cut off those there are."""
        with self._lock:
            self._stopped = True
            connections = list(self._connections)
            if not connections:
                self._empty.set()
        if self._listener is not None:
            self._look_again()
            self._listener.join()
            os.close(self._wake)
            self._listener = None
        self._close_listening()
        for connection in connections:
            connection.cut_off()

    async def wait(self) -> None:
        """After stop(): return when the last client's thread is done."""
        await self._empty.wait()

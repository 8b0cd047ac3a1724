"""One NBD client: its thread, its socket, and the ends of both."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.exports.nbd.extended import ExtendedTransmission
from engine.exports.nbd.handshake import Disconnect, Handshake
from engine.exports.nbd.transmission import Transmission
from engine.objects.authz import find_authz
from engine.objects.distinguished_name import distinguished_name

if TYPE_CHECKING:
    from engine.exports.nbd.export import NBDExport
    from engine.exports.nbd.server import NBDServer

log = logging.getLogger("engine.nbd")

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 8))
"""A client whose host has vanished is given up after some three minutes."""
_BUFFER = 1 << 20
_FAREWELL = 1.0
"""Seconds that a client has to read why TLS has failed."""


class Connection:
    """Serves one client in a thread of its own, which ends with the client, or soon after cut_off().

    ended: called by the thread as the last thing it does.
    """

    def __init__(self, sock: socket.socket, server: NBDServer, ended: Callable[[Connection], None]) -> None:
        self._sock = sock
        self._server = server
        self._ended = ended
        self._lock = threading.Lock()
        self._cut = False
        self._export: NBDExport | None = None

    def start(self) -> None:
        """Begin. Errors: RuntimeError (no more threads)."""
        threading.Thread(target=self._run, name="nbd client", daemon=True).start()

    def cut_off(self) -> None:
        """Make the thread end as soon as the request it is at has ended. Any thread; never waits."""
        with self._lock:
            self._cut = True
            with contextlib.suppress(OSError):
                # Not the method of a TLS socket, which would take the session away from under the thread.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._serve()
        except (Disconnect, OSError) as exc:
            log.debug("NBD client is gone: %s", exc)
        except Exception:
            log.exception("NBD client")
        finally:
            with self._lock, contextlib.suppress(OSError):
                self._sock.close()
            if self._export is not None:
                self._export.leave(self)
            self._ended(self)

    def _serve(self) -> None:
        _prepare(self._sock)
        chosen = Handshake(self._sock, self._server, self._start_tls, self._join).run()
        if chosen is None:
            return
        with self._lock:
            if self._cut:
                return
            self._sock.settimeout(None)
        (ExtendedTransmission if chosen.extended else Transmission)(self._sock, chosen).run()

    def _join(self, export: NBDExport) -> bool:
        if export.join(self):
            self._export = export
            return True
        return False

    def _start_tls(self, context: ssl.SSLContext, timeout: float) -> socket.socket:
        with self._lock:
            if self._cut:
                raise Disconnect("the server is stopping")
            self._sock = wrapped = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        wrapped.settimeout(timeout)
        try:
            wrapped.do_handshake()
        except ssl.SSLError:
            _let_read(wrapped)
            raise
        self._authorize(wrapped)
        return wrapped

    def _authorize(self, sock: ssl.SSLSocket) -> None:
        certificate = sock.getpeercert(binary_form=True)
        if certificate is None:
            if sock.context.verify_mode:
                raise Disconnect("the client has no certificate")
            # Rules are about certificates' names; nobody is asked for one, or a key known beforehand is enough.
            return
        try:
            if self._server.check_peer is not None:
                self._server.check_peer(certificate)
            name = distinguished_name(certificate)
            authz = self._server.tls_authz
            allowed = authz is None or find_authz(self._server.objects, authz).is_allowed(name)
        except (GenericError, ValueError) as exc:
            raise Disconnect(f"authorization: {exc}") from exc
        if not name:
            raise Disconnect("the client's certificate has no name")
        if not allowed:
            raise Disconnect(f"{name} is not authorized")


def _prepare(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


def _let_read(sock: ssl.SSLSocket) -> None:
    """Give the client time to read the alert, which an end with data of its own on the way would take from it."""
    end = time.monotonic() + _FAREWELL
    # The socket's own methods: the session is no more.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            if not socket.socket.recv(sock, 1 << 16):
                return

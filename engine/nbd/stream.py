"""The byte stream below an NBD client: a socket, in plain or inside TLS. One thread may read while others write."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Final

from engine.errors import GenericError
from engine.nbd.tls_failures import channel_failure, handshake_failure

_BUFFER: Final = 64 << 10
"""Bytes received at a time, unless more is wanted."""


class Stream:
    """A connected socket that blocks. Errors of all methods: OSError, ConnectionError at the end of the stream."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0

    # -- reading: one thread at a time -----------------------------------------------------------------------

    def take(self, size: int) -> memoryview:
        """The next *size* bytes, at most 4096. Good until the next call."""
        while self._end - self._start < size:
            if self._start:
                left = self._end - self._start
                self._buffer[:left] = self._buffer[self._start : self._end]
                self._start, self._end = 0, left
            self._end += self._receive(self._buffer[self._end :])
        self._start += size
        return self._buffer[self._start - size : self._start]

    def take_into(self, view: memoryview) -> None:
        """Fill *view* with the next bytes."""
        ready = min(self._end - self._start, len(view))
        if ready:
            view[:ready] = self._buffer[self._start : self._start + ready]
            self._start += ready
        while ready < len(view):
            ready += self._receive(view[ready:])

    def skip(self, size: int) -> None:
        """Leave the next *size* bytes out."""
        while size:
            step = min(size, 4096)
            self.take(step)
            size -= step

    def _receive(self, view: memoryview) -> int:
        got = self._sock.recv_into(view)
        if not got:
            raise ConnectionError("the server has closed the connection")
        return got

    # -- writing: one thread at a time -----------------------------------------------------------------------

    def send(self, parts: Sequence[memoryview | bytes]) -> None:
        """Send all of *parts*."""
        if len(parts) == 1:
            self._sock.sendall(parts[0])
            return
        sent = self._sock.sendmsg(parts)
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
            else:
                self._sock.sendall(memoryview(part)[sent:])
                sent = 0

    # -- ends ------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End the stream; whoever waits for it gets an error. Any thread."""
        with contextlib.suppress(OSError):
            # Not the method of a TLS socket, which would take the session away from under other threads.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket. Nobody uses the stream any more."""
        self._sock.close()

    def set_timeout(self, seconds: float | None) -> None:
        """Bound how long any call waits."""
        self._sock.settimeout(seconds)

    def start_tls(self, context: ssl.SSLContext, hostname: str | None) -> Stream:
        """This connection inside TLS; of this stream cut() and close() are left. Errors: GenericError."""
        if self._end != self._start:
            raise GenericError("TLS handshake failed: the server sent something before it")
        timeout = self._sock.gettimeout()
        try:
            wrapped = context.wrap_socket(self._sock, server_hostname=hostname, do_handshake_on_connect=False)
            # For cut() and close(): the plain socket has no descriptor any more.
            self._sock = wrapped
            wrapped.do_handshake()
        except OSError as exc:
            raise handshake_failure(exc, hostname) from None
        if context.verify_mode and hostname is None and wrapped.getpeercert(binary_form=True) is not None:
            # It may be anybody's whom the CA knows; QEMU too takes none then.
            raise GenericError("No hostname for certificate validation")
        return TLSStream(wrapped, timeout)


class TLSStream(Stream):
    """A stream inside TLS. The library's session must not be used by two threads at once, so nobody waits inside it."""

    _sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, timeout: float | None) -> None:
        super().__init__(sock)
        sock.setblocking(False)
        self._timeout = timeout
        self._session = threading.Lock()

    def set_timeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        if not poll.poll(None if self._timeout is None else self._timeout * 1000):
            raise TimeoutError("timed out")

    def _receive(self, view: memoryview) -> int:
        while True:
            try:
                with self._session:
                    got = self._sock.recv_into(view)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
                continue
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
                continue
            except (ssl.SSLError, ConnectionError) as exc:
                raise channel_failure(exc, "read from") from None
            if not got:
                raise ConnectionError("the server has closed the connection")
            return got

    def send(self, parts: Sequence[memoryview | bytes]) -> None:
        for part in parts:
            rest = memoryview(part)
            while len(rest):
                try:
                    with self._session:
                        sent = self._sock.send(rest)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT)
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN)
                except (ssl.SSLError, ConnectionError) as exc:
                    raise channel_failure(exc, "write to") from None
                else:
                    rest = rest[sent:]

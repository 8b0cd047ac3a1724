"""Sockets to listen on and to connect to, with QEMU's error texts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from typing import NamedTuple

from engine.errors import GenericError, os_error_text
from engine.monitor.chardev.options import InetSocketAddress, UnixSocketAddress

_PATH_MAX = 107
_BACKLOG = 128


class Listening(NamedTuple):
    """A listening socket. identity: (device, inode) of the file it made, None for none."""

    sock: socket.socket
    path: str
    identity: tuple[int, int] | None

    def remove_file(self) -> None:
        """Remove the socket's file, unless it has become somebody else's."""
        if self.identity is not None:
            with contextlib.suppress(OSError):
                info = os.lstat(self.path)
                if (info.st_dev, info.st_ino) == self.identity:
                    os.unlink(self.path)


def _unix_name(address: UnixSocketAddress) -> str:
    limit = _PATH_MAX if not address.abstract or address.tight is False else _PATH_MAX - 1
    if len(os.fsencode(address.path)) > limit:
        what = "Abstract UNIX socket name" if address.abstract else "UNIX socket path"
        raise GenericError(
            f"{what} '{address.path}' is too long",
            f"{'Name' if address.abstract else 'Path'} must be less than {limit + 1} bytes",
        )
    if not address.abstract:
        return address.path
    name = "\0" + address.path
    return name.ljust(_PATH_MAX + 1, "\0") if address.tight is False else name


def listen_unix(address: UnixSocketAddress) -> Listening:
    """Listen on a Unix socket. A file that a dead server left is replaced; nothing else is. Errors: GenericError."""
    name = _unix_name(address)
    if not name:
        raise GenericError("Failed to bind socket: the path is empty")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if not address.abstract:
            _remove_stale(name)
        sock.bind(name)
        sock.listen(_BACKLOG)
        if address.abstract:
            return Listening(sock, "", None)
        info = os.lstat(name)
    except OSError as exc:
        sock.close()
        raise GenericError(f"Failed to bind socket to {address.path}: {os_error_text(exc)}") from exc
    return Listening(sock, name, (info.st_dev, info.st_ino))


def _remove_stale(path: str) -> None:
    """Remove the socket file *path* when nobody listens there. (QEMU removes any file, be it an image.)"""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return  # in use (its queue may be full), or not ours to judge: bind() will tell


async def listen_inet(address: InetSocketAddress) -> Listening:
    """Listen on a TCP port, the first free one up to ``to``. Errors: GenericError."""
    found = await _resolve(address, socket.AI_PASSIVE)
    first = _port_number(found)
    last = first if address.to is None else address.to
    error: OSError | None = None
    for port in range(first, last + 1):
        for family, kind, protocol, _, where in found:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.ipv4 is False))
                sock.bind((where[0], port, *where[2:]))
                sock.listen(_BACKLOG)
            except OSError as exc:
                sock.close()
                error = exc
                continue
            return Listening(sock, "", None)
        if error is not None and error.errno != errno.EADDRINUSE:
            raise GenericError(f"Failed to bind socket: {os_error_text(error)}") from error
    reason = os_error_text(error) if error is not None else "the range of ports is empty"
    raise GenericError(f"Failed to find an available port: {reason}") from error


async def connect_unix(address: UnixSocketAddress) -> socket.socket:
    """Connect to a Unix socket. Errors: GenericError."""
    name = _unix_name(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, name)
    except OSError as exc:
        sock.close()
        raise GenericError(f"Failed to connect to '{address.path}': {os_error_text(exc)}") from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_inet(address: InetSocketAddress) -> socket.socket:
    """Connect to a TCP port. Errors: GenericError."""
    error: OSError | None = None
    for family, kind, protocol, _, where in await _resolve(address, 0):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            await asyncio.get_running_loop().sock_connect(sock, where)
        except OSError as exc:
            sock.close()
            error = exc
            continue
        except BaseException:
            sock.close()
            raise
        return sock
    assert error is not None
    raise GenericError(f"Failed to connect to '{address.host}:{address.port}': {os_error_text(error)}") from error


_Resolved = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]


async def _resolve(address: InetSocketAddress, flags: int) -> _Resolved:
    if address.ipv4 is False and address.ipv6 is False:
        raise GenericError("Cannot disable IPv4 and IPv6 at same time")
    family = socket.AF_UNSPEC
    if address.ipv6 is False or (address.ipv4 and not address.ipv6):
        family = socket.AF_INET
    elif address.ipv4 is False or (address.ipv6 and not address.ipv4):
        family = socket.AF_INET6
    port = address.port
    if port.isdecimal() and int(port) > 65535:
        raise GenericError(f"address resolution failed for {address.host}:{port}: the port is above 65535")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            address.host or None, port, family=family, type=socket.SOCK_STREAM, flags=flags | socket.AI_ADDRCONFIG
        )
    except socket.gaierror as exc:
        raise GenericError(f"address resolution failed for {address.host}:{port}: {exc.strerror}") from exc
    return found  # type: ignore[return-value]


def _port_number(found: _Resolved) -> int:
    return int(found[0][4][1])

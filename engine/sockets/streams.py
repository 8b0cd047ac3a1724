"""Sockets to listen on and to connect to, with QEMU's error texts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from typing import Any, Final, NamedTuple, cast

from engine.descriptors.fdsets import is_socket
from engine.descriptors.passing import of_client
from engine.errors import GenericError, os_error_text
from engine.sockets.addresses import Address, InetSocketAddress, UnixSocketAddress, VsockSocketAddress

_PATH_MAX = 107
_BACKLOG = 128
_IPPROTO_MPTCP: Final = 262
"""Linux's number, which Python does not name."""


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


_NO_NAME: Final = "\0" * (_PATH_MAX + 1)
"""The address that an empty path is to QEMU: of the abstract kind, and nobody's."""


def _unix_name(address: UnixSocketAddress) -> str:
    if len(os.fsencode(address.path)) > _PATH_MAX:
        raise GenericError(
            f"UNIX socket path '{address.path}' is too long", f"Path must be less than {_PATH_MAX + 1} bytes"
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
    # By its whole path: a daemon changes its folder.
    return Listening(sock, os.path.abspath(name), (info.st_dev, info.st_ino))


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
    return _listen_on(await _resolve(address, socket.AI_PASSIVE), address)


async def listen_inet_everywhere(address: InetSocketAddress) -> list[Listening]:
    """Listen on every address that the host's name stands for, on those that can be had. Errors: GenericError."""
    listening: list[Listening] = []
    error: GenericError | None = None
    for each in await _resolve(address, socket.AI_PASSIVE):
        try:
            listening.append(_listen_on([each], address))
        except GenericError as exc:
            error = error or exc
    if error is not None and not listening:
        raise error
    return listening


def _listen_on(found: _Resolved, address: InetSocketAddress) -> Listening:
    first = _port_number(found)
    last = first if address.to is None else address.to
    error: OSError | None = None
    for port in range(first, last + 1):
        for family, kind, protocol, _, where in found:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _bind_inet(sock, address, (where[0], port, *where[2:]))
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


def _bind_inet(sock: socket.socket, address: InetSocketAddress, where: Any) -> None:
    """Bind. By IPv6 come clients of IPv4 too, unless one of the two is asked for, or IPv4 has the port already."""
    if sock.family != socket.AF_INET6:
        sock.bind(where)
        return
    only = (address.ipv4, address.ipv6) not in ((None, None), (True, True))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    try:
        sock.bind(where)
    except OSError as exc:
        if only or exc.errno != errno.EADDRINUSE:
            raise
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
        sock.bind(where)


async def connect_unix(address: UnixSocketAddress) -> socket.socket:
    """Connect to a Unix socket; the socket does not block. Errors: GenericError."""
    name = _unix_name(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, name or _NO_NAME)
    except OSError as exc:
        sock.close()
        raise _no_unix(address, exc) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_inet(address: InetSocketAddress) -> socket.socket:
    """Connect to a TCP port; the socket does not block. Errors: GenericError."""
    error: OSError | None = None
    for family, kind, protocol, _, where in await _resolve(address, 0):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            _keep_alive(sock, address)
            await asyncio.get_running_loop().sock_connect(sock, where)
        except OSError as exc:
            sock.close()
            error = exc
            continue
        except BaseException:
            sock.close()
            raise
        return sock
    raise _no_inet(address, error) from error


def connect(address: Address) -> socket.socket:
    """Connect to *address*, for plain blocking calls; waits as long as the system does. Errors: GenericError."""
    if isinstance(address, UnixSocketAddress):
        return _connect_unix(address)
    if isinstance(address, InetSocketAddress):
        return _connect_inet(address)
    if isinstance(address, VsockSocketAddress):
        return _connect_vsock(address)
    sock = passed_socket(address.str_)
    sock.setblocking(True)
    return sock


def passed_socket(name: str) -> socket.socket:
    """The socket that the client whose command runs has passed under *name*. Errors: GenericError."""
    fd = of_client().use(name)
    if not is_socket(fd):
        os.close(fd)
        raise GenericError(f"File descriptor '{name}' is not a socket")
    return socket.socket(fileno=fd)


def _connect_unix(address: UnixSocketAddress) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(_unix_name(address) or _NO_NAME)
    except OSError as exc:
        sock.close()
        raise _no_unix(address, exc) from exc
    except GenericError:
        sock.close()
        raise
    return sock


def _connect_inet(address: InetSocketAddress) -> socket.socket:
    error: OSError | None = None
    try:
        found = socket.getaddrinfo(
            *_question(address), family=_family(address), type=socket.SOCK_STREAM, flags=_flags(address)
        )
    except socket.gaierror as exc:
        raise _unresolved(address, exc) from exc
    for family, kind, protocol, _, where in _with_protocol(found, address):
        sock = socket.socket(family, kind, protocol)
        try:
            _keep_alive(sock, address)
            sock.connect(where)
        except OSError as exc:
            sock.close()
            error = exc
            continue
        return sock
    raise _no_inet(address, error) from error


def _connect_vsock(address: VsockSocketAddress) -> socket.socket:
    cid, port = vsock_numbers(address)
    sock = None
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.connect((cid, port))
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise GenericError(f"Failed to connect to '{address.cid}:{address.port}': {os_error_text(exc)}") from exc
    return sock


def vsock_numbers(address: VsockSocketAddress) -> tuple[int, int]:
    """Context id and port of a vsock address. Errors: GenericError."""
    for what, text in (("cid", address.cid), ("port", address.port)):
        if not text.isdecimal() or int(text) >= 1 << 32:
            raise GenericError(f"Failed to parse {what} '{text}'")
    return int(address.cid), int(address.port)


def _no_unix(address: UnixSocketAddress, exc: OSError) -> GenericError:
    return GenericError(f"Failed to connect to '{address.path}': {os_error_text(exc)}")


def _no_inet(address: InetSocketAddress, exc: OSError | None) -> GenericError:
    reason = os_error_text(exc) if exc is not None else "there is no address"
    return GenericError(f"Failed to connect to '{address.host}:{address.port}': {reason}")


def _keep_alive(sock: socket.socket, address: InetSocketAddress) -> None:
    if address.keep_alive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


_Resolved = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]


def _question(address: InetSocketAddress) -> tuple[bytes, str]:
    """Host and port to ask the resolver for. Errors: GenericError."""
    if address.ipv4 is False and address.ipv6 is False:
        raise GenericError("Cannot disable IPv4 and IPv6 at same time")
    port = address.port
    if port.isdecimal() and int(port) > 65535:
        raise GenericError(f"address resolution failed for {address.host}:{port}: the port is above 65535")
    # In bytes, as it is: the codec for names in other scripts refuses long ones by errors of its own.
    return os.fsencode(address.host), port


def _family(address: InetSocketAddress) -> socket.AddressFamily:
    if address.ipv4 and address.ipv6 and not address.host:
        return socket.AF_INET6  # one socket for both
    if address.ipv6 is False or (address.ipv4 and not address.ipv6):
        return socket.AF_INET
    if address.ipv4 is False or (address.ipv6 and not address.ipv4):
        return socket.AF_INET6
    return socket.AF_UNSPEC


def _flags(address: InetSocketAddress) -> int:
    return socket.AI_ADDRCONFIG | (socket.AI_NUMERICHOST | socket.AI_NUMERICSERV if address.numeric else 0)


def _with_protocol(found: Any, address: InetSocketAddress) -> _Resolved:
    if not address.mptcp:
        return cast(_Resolved, found)
    return [(family, kind, _IPPROTO_MPTCP, name, where) for family, kind, _, name, where in found]


def _unresolved(address: InetSocketAddress, exc: socket.gaierror) -> GenericError:
    return GenericError(f"address resolution failed for {address.host}:{address.port}: {exc.strerror}")


async def _resolve(address: InetSocketAddress, flags: int) -> _Resolved:
    host, port = _question(address)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host if host or not flags else None,
            port,
            family=_family(address),
            type=socket.SOCK_STREAM,
            flags=_flags(address) | flags,
        )
    except socket.gaierror as exc:
        raise _unresolved(address, exc) from exc
    return _with_protocol(found, address)


def _port_number(found: _Resolved) -> int:
    return int(found[0][4][1])

"""Sockets that exports listen on."""

from __future__ import annotations

import os
import socket
import stat

from engine.errors import GenericError, os_error_text
from engine.sockets.addresses import Address, InetSocketAddress, String, UnixSocketAddress, VsockSocketAddress
from engine.sockets.streams import Listening, listen_inet, listen_unix, vsock_numbers

_BACKLOG = 128


async def listen(address: Address, *, inherited: bool) -> list[Listening]:
    """Listen at *address*; the sockets don't block. inherited: a file descriptor may be named by its number.

    Errors: GenericError.
    """
    if isinstance(address, InetSocketAddress):
        return [await listen_inet(address)]
    if isinstance(address, UnixSocketAddress):
        return [listen_unix(address)]
    if isinstance(address, String):
        return [_adopt(address.str_, inherited)]
    return [_listen_vsock(address)]


def _adopt(name: str, inherited: bool) -> Listening:
    """Take over an inherited listening socket."""
    if not inherited:
        raise GenericError("only QEMU supports file descriptor passing")
    if not name.isdecimal():
        raise GenericError(f"Unable to parse FD number {name}")
    fd = int(name)
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        raise GenericError(f"File descriptor '{name}' is not a socket")
    sock = socket.socket(fileno=fd)
    try:
        sock.setblocking(False)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.detach()
        raise GenericError(f"Failed to listen on fd socket: {os_error_text(exc)}") from exc
    return Listening(sock, "", None)


def _listen_vsock(address: VsockSocketAddress) -> Listening:
    numbers = vsock_numbers(address)
    sock = None
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(numbers)
        sock.listen(_BACKLOG)
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise GenericError(f"Failed to bind socket: {os_error_text(exc)}") from exc
    return Listening(sock, "", None)

"""Sockets that exports listen on."""

from __future__ import annotations

import socket

from engine.descriptors.fdsets import is_socket
from engine.errors import GenericError, os_error_text
from engine.sockets.addresses import Address, InetSocketAddress, String, UnixSocketAddress, VsockSocketAddress
from engine.sockets.streams import Listening, listen_inet_everywhere, listen_unix, passed_socket, vsock_numbers

_BACKLOG = 128


async def listen(address: Address, *, inherited: bool) -> list[Listening]:
    """Listen at *address*; the sockets don't block. inherited: a file descriptor may be named by its number.

    Errors: GenericError.
    """
    if isinstance(address, InetSocketAddress):
        return await listen_inet_everywhere(address)
    if isinstance(address, UnixSocketAddress):
        return [listen_unix(address)]
    if isinstance(address, String):
        return [_adopt(address.str_, inherited)]
    return [_listen_vsock(address)]


def _adopt(name: str, inherited: bool) -> Listening:
    """Take over a socket that was inherited, or passed by the client whose command runs."""
    if not inherited:
        sock = passed_socket(name)
    elif not name.isdecimal():
        raise GenericError(f"Unable to parse FD number {name}")
    elif not is_socket(int(name)):
        raise GenericError(f"File descriptor '{name}' is not a socket")
    else:
        sock = socket.socket(fileno=int(name))
    try:
        sock.setblocking(False)
        sock.listen(_BACKLOG)
    except OSError as exc:
        if inherited:
            sock.detach()
        else:
            sock.close()
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

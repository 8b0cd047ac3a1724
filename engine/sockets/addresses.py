"""Where sockets are, as QMP has it: SocketAddress and its older, wrapped form."""

from __future__ import annotations

from engine.errors import GenericError
from engine.qapi import Enum, Struct, UInt16, Union


class SocketAddressType(Enum):
    """Kinds of socket addresses.

    inet: TCP
    unix: a socket in the file system
    vsock: between a guest and its host
    fd: a file descriptor that was passed
    """

    INET = "inet"
    UNIX = "unix"
    VSOCK = "vsock"
    FD = "fd"


class InetSocketAddress(Struct):
    """A TCP address.

    port: number or service name. numeric: the host is a number, not a name to look up. to: last port to try when
    listening. ipv4, ipv6: which to use. keep_alive, mptcp: of connections made.
    """

    host: str
    port: str
    numeric: bool | None = None
    to: UInt16 | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool | None = None
    mptcp: bool | None = None


class UnixSocketAddress(Struct):
    """A Unix socket. abstract: its name is in Linux's own name space, not a path. tight: not padded with zeros."""

    path: str
    abstract: bool | None = None
    tight: bool | None = None


class VsockSocketAddress(Struct):
    """A socket between a host and its virtual machines. cid: context id. port: both are numbers."""

    cid: str
    port: str


class String(Struct):
    """A file descriptor. str_: its name, given by getfd, or its number on the command line."""

    str_: str


class SocketAddress(Union, tag="type"):
    """Where a socket is."""

    type: SocketAddressType


class SocketAddressLegacy(Union, tag="type"):
    """Where a socket is, the rest wrapped in ``data``."""

    type: SocketAddressType


for _kind, _branch in (
    ("inet", InetSocketAddress),
    ("unix", UnixSocketAddress),
    ("vsock", VsockSocketAddress),
    ("fd", String),
):
    SocketAddress.add_branch(_kind, _branch)
    SocketAddressLegacy.add_branch(_kind, _branch, wrap="data")

Address = InetSocketAddress | UnixSocketAddress | VsockSocketAddress | String


def address_of(address: SocketAddress | SocketAddressLegacy) -> Address:
    """What an address says, without its wrapping."""
    branch = address.branch
    found: Address = branch.data if isinstance(address, SocketAddressLegacy) else branch
    return found


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT[,ipv4=…]``, ``[HOST]:PORT``, ``unix:PATH``, ``vsock:CID:PORT`` or ``fd:NAME``, as HMP has them.

    Errors: GenericError.
    """
    kind, colon, rest = text.partition(":")
    if kind == "unix" and colon:
        if not rest:
            raise GenericError("invalid Unix socket address")
        return UnixSocketAddress(path=rest)
    if kind == "fd" and colon:
        if not rest:
            raise GenericError("invalid file descriptor address")
        return String(str_=rest)
    if kind == "vsock" and colon:
        cid, colon, port = rest.partition(":")
        if not colon or not cid.isdecimal() or not port.isdecimal():
            raise GenericError(f"error parsing address '{rest}'")
        return VsockSocketAddress(cid=cid, port=port)
    return _parse_inet(text)


def _parse_inet(text: str) -> InetSocketAddress:
    where, *options = text.split(",")
    if where.startswith("["):
        host, bracket, port = where[1:].partition("]:")
        if not bracket or not port:
            raise GenericError(f"error parsing IPv6 address '{text}'")
    else:
        host, colon, port = where.partition(":")
        if not colon or not port:
            raise GenericError(f"error parsing {'port in ' if where.startswith(':') else ''}address '{text}'")
    address = InetSocketAddress(host=host, port=port)
    for option in options:
        name, equals, value = option.partition("=")
        if name in ("ipv4", "ipv6") and value in ("", "on", "off"):
            setattr(address, name, value != "off")
        elif name == "to" and value.isdecimal():
            address.to = int(value)
        else:
            raise GenericError(f"error parsing '{name}' flag '{equals}{value}'")
    return address

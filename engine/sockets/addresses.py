"""Where sockets are, as QMP has it: SocketAddress and its older, wrapped form."""

from __future__ import annotations

import re
from typing import Final

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
        found = re.match("([^:]{1,32}):([^,]{1,32})", rest)
        if found is None:
            raise GenericError(f"error parsing address '{rest}'")
        if found.end() < len(rest):
            raise GenericError(f"trailing characters in address '{rest}'")
        return VsockSocketAddress(cid=found[1], port=found[2])
    return parse_inet(text.removeprefix("tcp:"))


def parse_inet(text: str) -> InetSocketAddress:
    """Read ``HOST:PORT``, ``:PORT`` or ``[HOST]:PORT`` with options behind it; unknown ones are no errors, as in QEMU.

    Errors: GenericError.
    """
    kind = {":": "port in address", "[": "IPv6 address"}.get(text[:1], "address")
    found = _INET[kind].match(text)
    if found is None:
        raise GenericError(f"error parsing {kind} '{text}'")
    address = InetSocketAddress(host=found["host"], port=found["port"])
    options = text[found.end() :]
    if ",to=" in options:
        number = _NUMBER.match(options.partition(",to=")[2])
        if number is None:
            raise GenericError("error parsing to= argument")
        address.to = int(number[1]) & 0xFFFF
    for name in ("ipv4", "ipv6", "keep-alive", "mptcp"):
        _, given, rest = options.partition(f",{name}")
        if given:
            setattr(address, name.replace("-", "_"), _flag(name, rest))
    return address


_INET: Final = {
    "port in address": re.compile(r"(?P<host>):(?P<port>[^,]{1,32})"),
    "IPv6 address": re.compile(r"\[(?P<host>[^\]]{1,64})\]:(?P<port>[^,]{1,32})"),
    "address": re.compile(r"(?P<host>[^:]{1,64}):(?P<port>[^,]{1,32})"),
}
_NUMBER: Final = re.compile(r"\s*([+-]?[0-9]+)(?=,|$)")


def _flag(name: str, text: str) -> bool:
    """Whether a flag with *text* behind its name is on. Errors: GenericError."""
    value, comma, more = text.partition(",")
    if value not in ("", "=on", "=off") or (comma and more.startswith(",")):
        raise GenericError(f"error parsing '{name}' flag '{text}'")
    return value != "=off"

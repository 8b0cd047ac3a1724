"""Where a QMP server is: ``unix:PATH``, ``tcp:HOST:PORT``, ``ssh://[USER@]HOST[:PORT]/PATH-OF-SOCKET``."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote


class AddressError(ValueError):
    """A text that is no address; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix domain socket of this machine."""

    path: str


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port; *host* is a name or an IP address, without brackets."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class SshAddress:
    """A Unix domain socket of the machine that ssh calls *host*; None leaves user and port to ssh's configuration."""

    host: str
    path: str
    user: str | None = None
    port: int | None = None


Address = UnixAddress | TcpAddress | SshAddress

_FORMS = "unix:PATH, tcp:HOST:PORT or ssh://[USER@]HOST[:PORT]/PATH"


def parse_address(text: str) -> Address:
    """Read an address. Errors: AddressError."""
    if text.startswith("ssh://"):
        return _ssh(text.removeprefix("ssh://"))
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        if not rest or "\0" in rest:
            raise AddressError("the path of the socket is missing" if not rest else "a path cannot contain NUL")
        return UnixAddress(rest)
    if colon and scheme == "tcp":
        host, port = _host_and_port(rest)
        if port is None:
            raise AddressError("the port is missing; expected tcp:HOST:PORT")
        return TcpAddress(host or "localhost", port)
    raise AddressError(f"expected {_FORMS}")


def _ssh(rest: str) -> SshAddress:
    where, slash, path = rest.partition("/")
    user, at, place = where.rpartition("@")
    host, port = _host_and_port(place)
    if not host or (at and not user):
        raise AddressError("the host is missing; expected ssh://[USER@]HOST[:PORT]/PATH")
    if not slash or not path:
        raise AddressError("the path of the socket is missing; expected ssh://[USER@]HOST[:PORT]/PATH")
    path = unquote(path)
    if "\0" in path or "\n" in path:
        raise AddressError("a path cannot contain NUL or a line break")
    # ssh would take them for options of its own, and some of those run commands.
    if host.startswith("-") or user.startswith("-"):
        raise AddressError("neither host nor user can begin with '-'")
    return SshAddress(host, f"/{path}", user or None, port)


def _host_and_port(text: str) -> tuple[str, int | None]:
    """``HOST[:PORT]``, the host in brackets where it has colons itself."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise AddressError(f"'{text}' is no [IPV6-ADDRESS]:PORT")
        port = rest[1:] if rest else None
    else:
        host, colon, found = text.partition(":")
        port = found if colon else None
        if port is not None and ":" in port:
            raise AddressError("an IPv6 address stands in brackets, [::1]")
    if any(character.isspace() for character in host):
        raise AddressError(f"'{host}' is no host name")
    if port is None:
        return host, None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise AddressError(f"'{port}' is no port number")
    return host, int(port)

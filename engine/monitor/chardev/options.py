"""What --chardev takes: QEMU's ``KIND,id=ID,key=value…``, or JSON as for chardev-add."""

from __future__ import annotations

from typing import Any

from engine.errors import GenericError
from engine.graph.graph import id_wellformed
from engine.qapi import Int, Struct, Union, from_wire
from engine.qapi.json_stream import from_json
from engine.qapi.opts import option_bool, option_number, parse_opts
from engine.sockets.addresses import InetSocketAddress, UnixSocketAddress

ID_HINT = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."


class SocketAddressLegacy(Union, tag="type"):
    """Where a socket is."""

    type: str


SocketAddressLegacy.add_branch("inet", InetSocketAddress, wrap="data")
SocketAddressLegacy.add_branch("unix", UnixSocketAddress, wrap="data")


class ChardevStdio(Struct):
    """signal: whether Ctrl+C on the terminal interrupts the program (default) or is input."""

    signal: bool | None = None


class ChardevSocket(Struct):
    """A socket.

    server: listen (default), or connect. wait: a server waits for its first client (default). nodelay: small packets
    are sent at once. reconnect: seconds after which a lost connection is made again, 0 for never.
    """

    addr: SocketAddressLegacy
    server: bool | None = None
    wait: bool | None = None
    nodelay: bool | None = None
    reconnect: Int | None = None


class ChardevBackend(Union, tag="type"):
    """A kind of character device and its options, in ``data``."""

    type: str


ChardevBackend.add_branch("socket", ChardevSocket, wrap="data")
ChardevBackend.add_branch("stdio", ChardevStdio, wrap="data")


class ChardevOptions(Struct):
    """A character device to make."""

    id: str
    backend: ChardevBackend


_COMMON = ("id", "backend")
_ADDRESS = ("path", "abstract", "tight", "host", "port", "to", "ipv4", "ipv6")
_SOCKET = ("server", "wait", "reconnect", "nodelay", "delay")
_UNAVAILABLE = frozenset(
    {"fd", "telnet", "tn3270", "tls-creds", "tls-authz", "websocket", "mux", "logfile", "logappend"}
)
"""Options that QEMU has and this engine has not."""


def chardev_from_option(text: str) -> ChardevOptions:
    """Read the argument of --chardev. Errors: GenericError."""
    if text.startswith("{"):
        options: ChardevOptions = from_wire(ChardevOptions, from_json(text))
        _check_id(options.id)
        return options
    given = dict(parse_opts(text, "backend"))
    for name in given:
        if name not in (*_COMMON, *_ADDRESS, *_SOCKET, "signal", *_UNAVAILABLE):
            raise GenericError(f"Invalid parameter '{name}'")
    if "id" in given:
        _check_id(given["id"])
    else:
        raise GenericError("chardev: no id specified")
    kind = given.get("backend")
    if kind is None:
        raise GenericError(f'chardev: "{given["id"]}" missing backend')
    make = {"stdio": _stdio, "socket": _socket}.get(kind)
    if make is None:
        raise GenericError(f"'{kind}' is not a valid char driver name")
    options_of_kind = {name: value for name, value in given.items() if name not in _COMMON}
    wire = {"id": given["id"], "backend": {"type": kind, "data": make(options_of_kind)}}
    found: ChardevOptions = from_wire(ChardevOptions, wire)
    return found


def _check_id(name: str) -> None:
    if not id_wellformed(name):
        raise GenericError("Parameter 'id' expects an identifier", ID_HINT)


def _refuse_others(kind: str, given: dict[str, str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise GenericError(f"chardev: {kind}: the option '{name}' is not available")


def _stdio(given: dict[str, str]) -> dict[str, Any]:
    _refuse_others("stdio", given, ("signal",))
    return {"signal": option_bool("signal", given["signal"])} if "signal" in given else {}


def _socket(given: dict[str, str]) -> dict[str, Any]:
    _refuse_others("socket", given, (*_ADDRESS, *_SOCKET))
    server = option_bool("server", given.get("server", "off"))
    data: dict[str, Any] = {"server": server}
    if "wait" in given:
        data["wait"] = option_bool("wait", given["wait"])
    if "nodelay" in given:
        data["nodelay"] = option_bool("nodelay", given["nodelay"])
    elif "delay" in given:
        data["nodelay"] = not option_bool("delay", given["delay"])
    if "reconnect" in given:
        data["reconnect"] = option_number("reconnect", given["reconnect"])
    if ("path" in given) == ("host" in given):
        raise GenericError("chardev: socket: one of 'path' and 'host' is required")
    if "path" in given:
        address: dict[str, Any] = {"path": given["path"]}
        for name in ("abstract", "tight"):
            if name in given:
                address[name] = option_bool(name, given[name])
        data["addr"] = {"type": "unix", "data": address}
        return data
    if "port" not in given:
        raise GenericError("chardev: socket: no port given")
    address = {"host": given["host"], "port": given["port"]}
    if "to" in given:
        address["to"] = option_number("to", given["to"])
    for name in ("ipv4", "ipv6"):
        if name in given:
            address[name] = option_bool(name, given[name])
    data["addr"] = {"type": "inet", "data": address}
    return data

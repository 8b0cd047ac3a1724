"""Options of the nbd driver, and the file names that stand for them."""

from __future__ import annotations

import urllib.parse
from typing import Annotated, Any, Final

from engine.errors import GenericError
from engine.nbd.protocol import MAX_STRING
from engine.qapi import Feature, Struct, UInt32
from engine.sockets.addresses import SocketAddress

DEFAULT_PORT: Final = "10809"
_EXPORT_NAME: Final = ":exportname="


class BlockdevOptionsNbd(Struct):
    """server: where the NBD server is.

    export: name of the export ('' by default). tls_creds: id of TLS credentials. tls_hostname: name that the server's
    certificate has to be for. x_dirty_bitmap: a metadata context to show in place of allocation. reconnect_delay:
    seconds that requests wait for a lost server. open_timeout: seconds to go on trying to connect at first.
    """

    server: SocketAddress
    export: str | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    x_dirty_bitmap: Annotated[str | None, Feature("unstable")] = None
    reconnect_delay: UInt32 | None = None
    open_timeout: UInt32 | None = None


class NbdOpenOptions(BlockdevOptionsNbd):
    """What file names and -drive may say besides: host and port, or path, in place of server."""

    server: SocketAddress | None = None  # type: ignore[assignment]
    host: str | None = None
    port: str | None = None
    path: str | None = None


def parse_filename(filename: str) -> dict[str, Any]:
    """Options that ``nbd:…``, ``nbd://…`` or ``nbd+unix://…`` stands for. Errors: GenericError."""
    if "://" in filename:
        return _parse_uri(filename)
    rest, found, export = filename.partition(_EXPORT_NAME)
    if found and not export:
        return {}  # as QEMU has it, which then misses an address
    options: dict[str, Any] = {"export": export} if found else {}
    if not rest.startswith("nbd:"):
        raise GenericError("File name string for NBD must start with 'nbd:'")
    where = rest.removeprefix("nbd:")
    if not where:
        return options
    if where.startswith("unix:"):
        options["server"] = {"type": "unix", "path": where.removeprefix("unix:")}
        return options
    if where.startswith("["):
        host, bracket, port = where[1:].partition("]:")
        if not bracket or not port:
            raise GenericError(f"error parsing IPv6 address '{where}'")
    else:
        host, colon, port = where.partition(":")
        if not colon or not port:
            raise GenericError(f"error parsing address '{where}'")
    options["server"] = {"type": "inet", "host": host, "port": port}
    return options


def _parse_uri(text: str) -> dict[str, Any]:
    bad = GenericError("No valid URL specified")
    try:
        uri = urllib.parse.urlsplit(text)
        port = uri.port
        query = urllib.parse.parse_qsl(uri.query, keep_blank_values=True, strict_parsing=bool(uri.query))
    except ValueError:
        raise bad from None
    kind = uri.scheme.removeprefix("nbd").removeprefix("+") or "tcp"
    if not uri.scheme.startswith("nbd") or kind not in ("tcp", "unix"):
        raise bad
    export = urllib.parse.unquote(uri.path.removeprefix("/"))
    options: dict[str, Any] = {"export": export} if export else {}
    if kind == "unix":
        if uri.hostname or port is not None or len(query) != 1 or query[0][0] != "socket":
            raise bad
        options["server"] = {"type": "unix", "path": query[0][1]}
        return options
    if not uri.hostname or query:
        raise bad
    # urlsplit() gives the host in lower case, which a name doesn't mind.
    options["server"] = {
        "type": "inet",
        "host": urllib.parse.unquote(uri.hostname),
        "port": DEFAULT_PORT if port is None else str(port),
    }
    return options


def check_strings(options: BlockdevOptionsNbd) -> None:
    """Refuse what can't be sent to a server. Errors: GenericError."""
    if len((options.export or "").encode()) > MAX_STRING:
        raise GenericError("export name too long to send to server")
    if len((options.x_dirty_bitmap or "").encode()) > MAX_STRING:
        raise GenericError("x-dirty-bitmap query too long to send to server")

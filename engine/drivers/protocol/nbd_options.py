"""Options of the nbd driver, and the file names that stand for them."""

from __future__ import annotations

import re
import urllib.parse
from typing import Annotated, Any, Final

from engine.errors import GenericError
from engine.nbd.protocol import MAX_STRING
from engine.qapi import Feature, Struct, UInt32
from engine.sockets.addresses import SocketAddress, parse_inet

DEFAULT_PORT: Final = "10809"
_EXPORT_NAME: Final = ":exportname="
_LAST_PORT: Final = 65535


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
    """What file names and -drive may say besides: host and port, or path, in place of server.

    server: read only when it counts, and without its name in errors, as QEMU does.
    """

    server: Any = None
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
    address = parse_inet(where)
    options["server"] = {"type": "inet", "host": address.host, "port": address.port}
    return options


_CHARACTER: Final = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=%s]|%%[0-9A-Fa-f]{2})"
_URI: Final = re.compile(
    rf"nbd(?:\+(?P<kind>tcp|unix))?://"
    rf"(?:{_CHARACTER % ':'}*@)?(?P<host>\[[0-9A-Fa-f:.%\w]*\]|{_CHARACTER % ''}*)(?::(?P<port>[0-9]+))?"
    rf"(?P<path>(?:/{_CHARACTER % ':@'}*)*)"
    rf"(?:\?(?P<query>{_CHARACTER % ':@/?'}*))?(?:#{_CHARACTER % ':@/?'}*)?",
)
"""RFC 3986, section 3, as far as it is of use here."""


def _parse_uri(text: str) -> dict[str, Any]:
    bad = GenericError("No valid URL specified")
    uri = _URI.fullmatch(text)
    if uri is None or "%00" in text:
        raise bad
    # A zero stands for no port.
    host, port = urllib.parse.unquote(uri["host"]), int(uri["port"] or 0)
    query = [part for part in re.split("&" if "&" in (uri["query"] or "") else ";", uri["query"] or "") if part]
    export = urllib.parse.unquote(uri["path"].removeprefix("/"))
    options: dict[str, Any] = {"export": export} if export else {}
    if uri["kind"] == "unix":
        if host or port or len(query) != 1 or not query[0].startswith("socket="):
            raise bad
        options["server"] = {"type": "unix", "path": urllib.parse.unquote(query[0].removeprefix("socket="))}
        return options
    if not host or query or port > _LAST_PORT:
        raise bad
    host = host.removeprefix("[").removesuffix("]")
    options["server"] = {"type": "inet", "host": host, "port": str(port) if port else DEFAULT_PORT}
    return options


def check_strings(options: BlockdevOptionsNbd) -> None:
    """Refuse what can't be sent to a server. Errors: GenericError."""
    if len((options.export or "").encode()) > MAX_STRING:
        raise GenericError("export name too long to send to server")
    if len((options.x_dirty_bitmap or "").encode()) > MAX_STRING:
        raise GenericError("x-dirty-bitmap query too long to send to server")

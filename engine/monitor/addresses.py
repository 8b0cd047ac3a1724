"""The short addresses of --qmp and --hmp: ``unix:PATH``, ``tcp:HOST:PORT``, ``stdio``, each with options behind it."""

from __future__ import annotations

from engine.errors import GenericError
from engine.monitor.chardev.options import ChardevOptions, chardev_from_option
from engine.qapi.opts import option_bool, parse_opts

_SOCKET_OPTIONS = ("server", "wait", "nodelay", "delay", "reconnect", "ipv4", "ipv6", "to", "abstract", "tight")


def chardev_from_address(text: str, label: str) -> ChardevOptions:
    """Read an address. A server by default, and one that does not wait. Errors: GenericError."""
    kind, colon, rest = text.partition(":")
    if text.partition(",")[0] == "stdio":
        return chardev_from_option(f"{text},id={label}")
    if not colon or kind not in ("unix", "tcp"):
        raise GenericError("expects unix:PATH, tcp:HOST:PORT or stdio")
    pairs = parse_opts(rest, "where")
    where = dict(pairs).get("where", "")
    options = {name: value for name, value in pairs if name != "where"}
    for name in options:
        if name not in _SOCKET_OPTIONS:
            raise GenericError(f"Invalid parameter '{name}'")
    if option_bool("server", options.setdefault("server", "on")):
        options.setdefault("wait", "off")
    if kind == "unix":
        if not where:
            raise GenericError("expects a path behind unix:")
        options["path"] = where
    else:
        host, port = _host_and_port(where)
        options |= {"host": host, "port": port}
    joined = ",".join(f"{name}={value.replace(',', ',,')}" for name, value in options.items())
    return chardev_from_option(f"socket,id={label},{joined}")


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]:")
        colon = bracket
    else:
        host, colon, port = text.rpartition(":")
    if not colon or not port or (":" in host and not text.startswith("[")):
        raise GenericError(f"expects HOST:PORT (or [HOST]:PORT) behind tcp:, not '{text}'")
    return host, port

"""What a request must look like, and what a reply looks like."""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.errors import GenericError, QMPError
from engine.qapi.member_order import in_member_order


class Request(NamedTuple):
    """A request that is well formed. oob: to be executed out of band, ahead of what is queued."""

    command: str
    arguments: dict[str, Any]
    oob: bool


def check_request(message: Any, *, oob_enabled: bool) -> Request:
    """Read a request. Errors: GenericError with QEMU's text; of several faults the one that QEMU finds first."""
    if not isinstance(message, dict):
        raise GenericError("QMP input must be a JSON object")
    verb: str | None = None
    for name in in_member_order(message):
        value = message[name]
        if name == "execute" or (name == "exec-oob" and oob_enabled):
            if not isinstance(value, str):
                raise GenericError(f"QMP input member '{name}' must be a string")
            if verb is not None:
                raise GenericError(f"QMP input member '{name}' clashes with '{verb}'")
            verb = name
        elif name == "arguments":
            if not isinstance(value, dict):
                raise GenericError("QMP input member 'arguments' must be an object")
        elif name != "id":
            raise GenericError(f"QMP input member '{name}' is unexpected")
    if verb is None:
        raise GenericError("QMP input lacks member 'execute'")
    return Request(message[verb], message.get("arguments", {}), verb == "exec-oob")


def wants_oob(message: Any) -> bool:
    """Whether *message* asks to be executed out of band, be it well formed or not."""
    return isinstance(message, dict) and "exec-oob" in message and "execute" not in message


def success(message: dict[str, Any], result: Any) -> dict[str, Any]:
    """The reply to *message* when its command returned *result*."""
    reply = {"return": result}
    if "id" in message:
        reply["id"] = message["id"]
    return reply


def failure(message: Any, error: QMPError) -> dict[str, Any]:
    """The reply to *message* when *error* came of it."""
    reply: dict[str, Any] = {}
    if isinstance(message, dict) and "id" in message:
        reply["id"] = message["id"]
    reply["error"] = {"class": error.error_class, "desc": error.desc}
    return reply

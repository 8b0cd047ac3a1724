"""The older option syntax (``-drive``, ``--chardev``, ``-o``): flat ``key=value``, ``key`` is on, ``nokey`` is off."""

from __future__ import annotations

import re
from typing import Final

from engine.errors import GenericError
from engine.qapi import scalars

SIZE_HINT: Final = (
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
)
_VALUE: Final = re.compile(r"(?:[^,]|,,)*")
_KEY: Final = re.compile(r"[^=,]*")


def parse_opts(text: str, implied_key: str | None = None) -> list[tuple[str, str]]:
    """Split *text* into pairs in the order given (a key may come twice).

    implied_key: the key of a first value without ``=``. A bare ``x`` elsewhere is ``x=on``, ``nox`` is ``x=off``.
    """
    pairs: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _KEY.match(text, at)
        assert match is not None
        key, end = match[0], match.end()
        if text[end : end + 1] == "=":
            value_match = _VALUE.match(text, end + 1)
            assert value_match is not None
            pairs.append((key, value_match[0].replace(",,", ",")))
            end = value_match.end()
        elif at == 0 and implied_key is not None:
            value_match = _VALUE.match(text)
            assert value_match is not None
            pairs.append((implied_key, value_match[0].replace(",,", ",")))
            end = value_match.end()
        elif key.startswith("no"):
            pairs.append((key[2:], "off"))
        else:
            pairs.append((key, "on"))
        at = end + 1
    return pairs


def option_bool(name: str, text: str) -> bool:
    """Read a switch. Raises GenericError."""
    value = scalars.parse_bool(text)
    if value is None:
        raise GenericError(f"Parameter '{name}' expects 'on' or 'off'")
    return value


def option_number(name: str, text: str) -> int:
    """Read an unsigned 64-bit number (decimal, octal, hexadecimal; a minus sign wraps). Raises GenericError."""
    value = scalars.read_integer(text)
    if value is None:
        raise GenericError(f"Parameter '{name}' expects a number")
    if not -(1 << 64) < value < 1 << 64:
        raise GenericError(f"Value '{text}' is too large for parameter '{name}'")
    return value % (1 << 64)


def option_size(name: str, text: str) -> int:
    """Read a size in bytes with an optional suffix and fraction. Raises GenericError with a hint about suffixes."""
    value = scalars.read_size(text)
    if value is None:
        raise GenericError(f"Parameter '{name}' expects a non-negative number below 2^64", hint=SIZE_HINT)
    if value >= 1 << 64:
        raise GenericError(f"Value '{text}' is out of range for parameter '{name}'")
    return value

"""Option strings with dotted keys (``driver=qcow2,file.driver=file``), their JSON form, and ``json:`` file names.

A key is a path of names and list indexes; ``,,`` stands for a comma in a value. Parsing gives nested dicts and lists
whose scalars are strings; ``from_wire(..., keyval=True)`` turns these into types. Texts as QEMU's keyval.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from engine.errors import GenericError
from engine.qapi.json_stream import from_json
from engine.qapi.visit import from_wire

_NAME: Final = re.compile(r"(?:__[A-Za-z0-9.-]*_)?[A-Za-z][A-Za-z0-9_-]*")
_INDEX: Final = re.compile(r"[0-9]+")
_KEY: Final = re.compile(r"[^=,]*")
_VALUE: Final = re.compile(r"(?:[^,]|,,)*")
_MAX_FRAGMENT: Final = 127
_MAX_INDEX: Final = (1 << 31) - 1
_HELP: Final = frozenset({"help", "?"})


def parse_with_help(text: str, implied_key: str | None = None) -> tuple[dict[str, Any], bool]:
    """Parse *text*; also tell whether ``help`` or ``?`` stood among the parameters.

    implied_key: the key of a first parameter without ``=``. Raises GenericError.
    """
    root: dict[str, Any] = {}
    wants_help = False
    at = 0
    implied = implied_key
    while at < len(text):
        key_match = _KEY.match(text, at)
        assert key_match is not None
        key = key_match[0]
        after = key_match.end()
        if key and text[after : after + 1] != "=":
            if key in _HELP:
                wants_help = True
                at = after + 1
                continue
            if implied is not None:
                root[implied] = key
                implied = None
                at = after + 1
                continue
        implied = None
        parent, last, end = _descend(root, key)
        if text[at + end : at + end + 1] != "=":
            raise GenericError(f"Expected '=' after parameter '{key[:end]}'")
        value_match = _VALUE.match(text, at + end + 1)
        assert value_match is not None
        _put(parent, last, value_match[0].replace(",,", ","), key)
        at = value_match.end() + 1
    try:
        return _listify(root, ""), wants_help
    except RecursionError:
        raise GenericError("The parameters are nested too deeply") from None


def _descend(root: dict[str, Any], key: str) -> tuple[dict[str, Any], str, int]:
    """Walk to the dict that holds the last fragment of *key*; return it, the fragment and where that ends."""
    current = root
    previous = ""
    at = 0
    while True:
        match = (_INDEX.match(key, at) if at else None) or _NAME.match(key, at)
        if match is None or key[match.end() : match.end() + 1] not in ("", "."):
            raise GenericError(f"Invalid parameter '{key}'")
        fragment, end = match[0], match.end()
        if len(fragment) > _MAX_FRAGMENT:
            part = " fragment" if at or end != len(key) else ""
            raise GenericError(f"Parameter{part} '{fragment}' is too long")
        if at:
            current = _put(current, previous, None, key[: at - 1])
        if end == len(key):
            return current, fragment, end
        previous = fragment
        at = end + 1


def _put(parent: dict[str, Any], fragment: str, value: str | None, key: str) -> Any:
    """Set *fragment* to *value*, or make it a dict when that is None. A later value replaces an earlier one."""
    old = parent.get(fragment)
    if old is not None and isinstance(old, str) != (value is not None):
        raise GenericError(f"Parameters '{key}.*' used inconsistently")
    if value is None:
        return parent.setdefault(fragment, {})
    parent[fragment] = value
    return value


def _listify(node: dict[str, Any], prefix: str) -> Any:
    indexes: dict[int, Any] = {}
    named = False
    for fragment, value in node.items():
        if isinstance(value, dict):
            node[fragment] = value = _listify(value, f"{prefix}{fragment}.")
        if fragment[0].isdigit():
            indexes[min(int(fragment), _MAX_INDEX) if len(fragment) < 20 else _MAX_INDEX] = value
        else:
            named = True
    if not indexes:
        return node
    if named:
        raise GenericError(f"Parameters '{prefix}*' used inconsistently")
    for i in range(len(indexes)):
        if i not in indexes:
            raise GenericError(f"Parameter '{prefix}{i}' missing")
    return [indexes[i] for i in range(len(indexes))]


def parse(text: str, implied_key: str | None = None) -> dict[str, Any]:
    """Parse dotted keys into nested dicts, lists and strings. Raises GenericError, also when help is asked for."""
    root, wants_help = parse_with_help(text, implied_key)
    if wants_help:
        raise GenericError("Help is not available for this option")
    return root


def parse_option(text: str, implied_key: str | None = None) -> tuple[dict[str, Any], bool]:
    """Parse an option's argument in either form: JSON when it starts with ``{``, else dotted keys.

    Returns the value and what to give ``from_wire`` as keyval. Raises GenericError.
    """
    if text.startswith("{"):
        return from_json(text), False
    return parse(text, implied_key), True


def from_option(tp: Any, text: str, implied_key: str | None = None) -> Any:
    """Parse an option's argument and turn it into the type *tp*. Raises GenericError."""
    value, keyval = parse_option(text, implied_key)
    return from_wire(tp, value, keyval=keyval)


# --- json: file names and flat options -------------------------------------------------------------------------------


def parse_json_filename(filename: str) -> dict[str, Any]:
    """Return the options in a ``json:`` file name, nested as written (dotted keys are left alone).

    Raises GenericError with the text that follows ``Could not open 'json:...': ``.
    """
    try:
        value = from_json(filename.removeprefix("json:"))
    except GenericError as exc:
        raise GenericError(f"Could not parse the JSON options: {exc.desc}") from None
    if not isinstance(value, dict):
        raise GenericError("Invalid JSON object given")
    return value


def flatten(value: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested dicts and lists into one dict with dotted keys. Empty ones below the top stay as values."""
    result: dict[str, Any] = {}
    pending: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter(value.items()))]
    while pending:
        prefix, items = pending[-1]
        for key, child in items:
            if child and isinstance(child, (dict, list)):
                inner = child.items() if isinstance(child, dict) else enumerate(child)
                pending.append((f"{prefix}{key}.", iter(inner)))
                break
            result[f"{prefix}{key}"] = child
        else:
            pending.pop()
    return result


def crumple(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys back into nested dicts and lists, as QEMU does before it visits flat options.

    Raises GenericError when a key is both scalar and group, or a list has gaps or names.
    """
    root: dict[str, Any] = {}
    for key, value in flat.items():
        node = root
        *path, last = key.split(".")
        for fragment in path:
            child = node.setdefault(fragment, {})
            if not isinstance(child, _Group):
                if child != {}:
                    raise GenericError("Cannot mix scalar and non-scalar keys")
                child = node[fragment] = _Group()
            node = child
        if last in node:
            raise GenericError("Cannot mix scalar and non-scalar keys")
        node[last] = value
    try:
        return {key: _crumple_group(child) for key, child in root.items()}
    except RecursionError:
        raise GenericError("The options are nested too deeply") from None


class _Group(dict[str, Any]):
    """A dict made from dotted keys, as opposed to one that is a value."""


def _crumple_group(node: Any) -> Any:
    if not isinstance(node, _Group):
        return node
    done = {key: _crumple_group(child) for key, child in node.items()}
    indexes = [key for key in done if key.isascii() and key.isdigit()]
    if not indexes:
        return done
    if len(indexes) != len(done):
        raise GenericError("Cannot mix list and non-list keys")
    largest = max(map(int, indexes))
    if largest != len(done) - 1:
        raise GenericError(f"List indices are not contiguous, saw {len(done)} elements but {largest} largest index")
    return [done[str(i)] for i in range(len(done))]

"""What arguments and their values are for. A server's introspection holds no text.

The texts are those of the engine's docstrings, in `docs.json`, which ``scripts/make_docs.py`` writes. Type names in an
introspection mean nothing, so a text is found by the names that stand beside it: the members of the same object, or
the values of the same enumeration. So a server of another version is served as well.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Any

ALIKE = 0.5
"""An enumeration is taken for a known one if so many of their names are the same, of all that either has."""


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(resources.files("blockmon.repl").joinpath("docs.json").read_text("utf-8"))
    table["scopes"] = [frozenset(names) for names in table["scopes"]]
    return table


def member_doc(command: str, name: str, siblings: Collection[str]) -> str:
    """What the member *name* is for. *siblings* are the members its object can have, itself included; *command* takes
    the object, or holds it somewhere in its arguments. Empty when nothing is known."""
    table = _table()
    best, text = 0.0, ""
    for scope, words, commands in table["members"].get(name, ()):
        if command not in commands:
            continue  # in other commands the same name may mean something else
        names = table["scopes"][scope]
        # Of two that fit as well the one with more members is the surer one.
        score = len(names.intersection(siblings)) / len(names) + len(names) / 1000
        if score > best:
            best, text = score, str(words)
    return text if best > ALIKE / 2 else ""  # an older server has fewer members


@cache
def _values(values: tuple[str, ...]) -> dict[str, str]:
    known: dict[str, dict[str, str]] = _table()["enums"]
    wanted = set(values)
    best = max(known.values(), key=lambda texts: len(wanted & texts.keys()) / len(wanted | texts.keys()))
    return best if len(wanted & best.keys()) >= ALIKE * len(wanted | best.keys()) else {}


def value_doc(values: tuple[str, ...], value: str) -> str:
    """What *value* of the enumeration that has *values* means; empty when nothing is known."""
    return _values(values).get(value, "")

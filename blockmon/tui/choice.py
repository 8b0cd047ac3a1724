"""One action that can be chosen, and how the command that it writes is put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from blockmon.model.graph import GraphModel, NodeInfo, ParentInfo
from blockmon.model.refresher import ScreenState


@dataclass(frozen=True)
class Choice:
    """An action that is possible now: its key, its name, and the command as it would be written."""

    key: str
    """Empty for one that is only chosen from the list."""
    name: str
    command: str

    @property
    def word(self) -> str:
        """The command's name."""
        return self.command.split(" ", 1)[0]

    @property
    def complete(self) -> bool:
        """False while an argument waits for its value."""
        return not any(word.endswith("=") for word in self.command.split())


@dataclass(frozen=True)
class NodeAction:
    """An action on a node. *write* gives the arguments, or None where the node does not allow it."""

    key: str
    name: str
    command: str
    write: Callable[[ScreenState, NodeInfo], str | None]


@dataclass(frozen=True)
class ParentAction:
    """An action on a device or an export."""

    key: str
    name: str
    command: str
    write: Callable[[ScreenState, ParentInfo], str | None]


def value(text: str) -> str:
    """A value for a ``command key=value`` line, quoted where it needs to be."""
    plain = bool(text) and all(char.isalnum() or char in "#-_./:@+%" for char in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def unused_name(graph: GraphModel, stem: str) -> str:
    """A node name that no node has: *stem* with a number."""
    number = 1
    while f"{stem}{number}" in graph.nodes:
        number += 1
    return f"{stem}{number}"

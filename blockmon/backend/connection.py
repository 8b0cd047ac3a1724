"""What a back end over a connection tells besides answers and events: whether there is a connection at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from blockmon.backend import Backend


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """How the connection is at one moment."""

    connected: bool
    reason: str = ""
    """Why there is none; of the last attempt, where several failed."""
    retry_at: float | None = None
    """When the next attempt is made, on the loop's clock; None while one is under way, or when there will be none."""
    unanswered: float | None = None
    """When the question was asked that a connected server leaves unanswered for long (Unix time); None where it does
    answer."""


_T = TypeVar("_T")

StateCallback = Callable[[ConnectionState], None]
TextCallback = Callable[[str], None]


class ConnectionLost(ConnectionError):
    """There is no connection, or not any more. *retrying*: it is being tried to get a new one."""

    def __init__(self, reason: str, retrying: bool) -> None:
        super().__init__(reason)
        self.retrying = retrying


class Connection:
    """
    The connection's life as its back end tells it.

    A lost connection is tried again as long as somebody watches, who can then be told; where nobody does, the loss is
    final and the commands that come after it fail.
    """

    def __init__(self) -> None:
        self.state = ConnectionState(False, "not connected yet")
        self._watchers: list[StateCallback] = []
        self._commanded: list[TextCallback] = []
        self._losses: list[TextCallback] = []

    @property
    def watched(self) -> bool:
        """True while somebody wants a lost connection back."""
        return bool(self._watchers)

    def watch(self, callback: StateCallback) -> Callable[[], None]:
        """Call *callback* on the loop with every new state; returns what ends it."""
        return _add(self._watchers, callback)

    def on_command(self, callback: TextCallback) -> Callable[[], None]:
        """Call *callback* with the name of every command that was carried out or refused; returns what ends it."""
        return _add(self._commanded, callback)

    def on_loss(self, callback: TextCallback) -> Callable[[], None]:
        """Call *callback* with the reason when the connection is lost, which does not have it tried again; for those
        who cannot go on after a gap. Returns what ends it."""
        return _add(self._losses, callback)

    def change(self, state: ConnectionState) -> None:
        """For the back end: tell everybody of a new state."""
        lost = self.state.connected and not state.connected
        self.state = state
        for callback in tuple(self._watchers):
            callback(state)
        if lost:
            for report in tuple(self._losses):
                report(state.reason)

    def commanded(self, command: str) -> None:
        """For the back end: tell everybody of a command."""
        for callback in tuple(self._commanded):
            callback(command)


def _add(callbacks: list[_T], callback: _T) -> Callable[[], None]:
    callbacks.append(callback)

    def remove() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return remove


def connection_of(backend: Backend) -> Connection | None:
    """The connection below *backend* and whatever is wrapped around it (`inner`); None for an embedded engine."""
    found: object = backend
    while found is not None:
        connection = getattr(found, "connection", None)
        if isinstance(connection, Connection):
            return connection
        found = getattr(found, "inner", None)
    return None

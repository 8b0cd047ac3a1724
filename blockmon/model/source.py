"""Where graph snapshots come from: one class for each way of asking a server, chosen by the commands it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from blockmon.backend import Backend
from blockmon.model.graph import GraphModel, from_query_graph


class GraphSource(Protocol):
    """A way of asking for the graph."""

    needs: frozenset[str]
    """The commands without which it does not work."""

    async def fetch(self, backend: Backend) -> GraphModel:
        """A new snapshot. Raises `CommandError` where the server refuses."""

    def is_stale_after(self, event: Mapping[str, Any]) -> bool:
        """True for an event after which the graph may look different."""


class QueryGraphSource:
    """Our own engine's ``x-blockmon-query-graph``: everything in one answer, and an event for each change."""

    needs = frozenset({"x-blockmon-query-graph"})

    async def fetch(self, backend: Backend) -> GraphModel:
        """A new snapshot."""
        return from_query_graph(await backend.execute("x-blockmon-query-graph"))

    def is_stale_after(self, event: Mapping[str, Any]) -> bool:
        """True for the engine's own event."""
        return event.get("event") == "X_BLOCKMON_GRAPH_CHANGE"


_SOURCES: tuple[GraphSource, ...] = (QueryGraphSource(),)
"""In order of preference."""


def choose_source(commands: Collection[str]) -> GraphSource | None:
    """The best source that a server with these commands can serve, or None."""
    return next((source for source in _SOURCES if source.needs <= set(commands)), None)

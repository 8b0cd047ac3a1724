"""Where graph snapshots come from: one class for each way of asking a server, chosen by the commands it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from blockmon.backend import Backend, CommandError
from blockmon.model.graph import GraphModel, from_query_graph
from blockmon.model.standard import Answers, build_graph, counters


class GraphSource(Protocol):
    """A way of asking for the graph."""

    announced: bool
    """True where every change of the graph is announced by an event."""
    problem: str | None
    """Why the last snapshot is not wholly up to date; None where it is."""

    async def fetch(self, backend: Backend) -> GraphModel:
        """A new snapshot. Raises `CommandError` where the server refuses."""

    def is_stale_after(self, event: Mapping[str, Any]) -> bool:
        """True for an event after which the graph may look different."""

    def touch(self) -> None:
        """Note that the graph may look different now, whatever was asked before."""


class QueryGraphSource:
    """
    Our own engine's ``x-blockmon-query-graph``: everything in one answer, and an event for each change. Between two
    changes ``x-blockmon-query-io``, where the engine has it, tells only of the nodes that have moved.
    """

    announced = True
    problem: str | None = None

    def __init__(self, commands: Collection[str] = ()) -> None:
        self._last: GraphModel | None = None
        self._mark: int | None = None
        """Where to go on from with asking for what has moved; None where all is to be asked for."""
        self._brief = "x-blockmon-query-io" in commands

    async def fetch(self, backend: Backend) -> GraphModel:
        """A new snapshot. It shares what did not change with the one before, which makes both cheap to compare."""
        last, mark = self._last, self._mark
        if last is not None and mark is not None:
            self._mark = None  # should it be refused
            moved = await backend.execute("x-blockmon-query-io", {"since": mark})
            if moved["generation"] == last.generation:
                self._mark = int(moved["mark"])
                if moved["nodes"]:
                    self._last = last = last.with_nodes(moved["nodes"])
                return last
        answer = await backend.execute("x-blockmon-query-graph")
        await asyncio.sleep(0)  # a key may have come meanwhile, and a large answer takes its time
        self._mark = answer.get("mark") if self._brief else None
        self._last = from_query_graph(answer, last)
        return self._last

    def is_stale_after(self, event: Mapping[str, Any]) -> bool:
        """True for the engine's own event."""
        return event.get("event") == "X_BLOCKMON_GRAPH_CHANGE"

    def touch(self) -> None:
        """The generation tells of changes."""


OFTEN, SELDOM = 2.0, 10.0
"""Seconds after which the graph is asked for again although nothing told of a change: at first, and after a while
without any. Another client's blockdev-add has no event."""
DUTY = 4.0
"""The graph is not asked for again before this many times the time it took, whatever events come."""

_STALE_AFTER = frozenset(
    {
        *("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_READY", "BLOCK_JOB_PENDING", "JOB_STATUS_CHANGE"),
        *("BLOCK_EXPORT_DELETED", "BLOCK_IMAGE_CORRUPTED", "DEVICE_DELETED", "DEVICE_TRAY_MOVED", "UNPLUG_PRIMARY"),
        *("X_BLOCKMON_GRAPH_CHANGE",),
    }
)


class StandardGraphSource:
    """
    QEMU's own queries, from 2.0 on. Between two times that the graph is asked for only the counters are.

    One object serves one server: it knows which nodes it has seen, and what the server cannot be asked.
    """

    announced = False

    def __init__(self, commands: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._commands = frozenset(commands)
        self._clock = clock
        self._graph = GraphModel()
        self._models: dict[str, str] = {}
        self.problem: str | None = None
        self._flat = True
        self._stale = True
        self._asked = 0.0
        self._took = 0.0
        self._interval = OFTEN
        self._refused = ""

    def is_stale_after(self, event: Mapping[str, Any]) -> bool:
        """True for the events that jobs, exports and devices send when they come and go."""
        return event.get("event") in _STALE_AFTER

    def touch(self) -> None:
        """The next fetch asks for the graph itself."""
        self._stale = True
        self._interval = OFTEN

    async def fetch(self, backend: Backend) -> GraphModel:
        """A new snapshot, or the last one with new counters where nothing tells of a change."""
        age = self._clock() - self._asked
        if not (self._stale or age >= self._interval) or (self._asked and age < DUTY * self._took):
            if self._graph.counters:
                stats = await self._ask(backend, "query-blockstats") or []
                self._graph = self._graph.with_counters(counters(stats))
            return self._graph
        self._stale = False
        started = self._clock()
        try:
            graph = await self._fetch_graph(backend)
        except BaseException:
            self._stale = True
            raise
        self._asked = self._clock()
        self._took = self._asked - started
        last = self._graph
        same = (last.nodes, last.parents, last.edges) == (graph.nodes, graph.parents, graph.edges)
        self._interval = min(SELDOM, 1.5 * self._interval) if same else OFTEN
        self._graph = replace(graph, generation=last.generation + (0 if same else 1))
        return self._graph

    async def _fetch_graph(self, backend: Backend) -> GraphModel:
        # Sent in one go, so that little happens between two answers.
        with_graph = "x-debug-query-block-graph" in self._commands
        nodes, debug, devices, exports, block_jobs, stats, node_stats = await asyncio.gather(
            self._ask_nodes(backend),
            self._ask(backend, "x-debug-query-block-graph"),
            self._ask(backend, "query-block"),
            self._ask(backend, "query-block-exports"),
            self._ask(backend, "query-block-jobs"),
            self._ask(backend, "query-blockstats"),
            _nothing() if with_graph else self._ask(backend, "query-blockstats", {"query-nodes": True}),
        )
        if nodes is None and debug is None:
            raise CommandError("GenericError", self._refused or "the server does not tell its block nodes")
        self.problem = None if nodes is not None else f"old node details: {self._refused}"
        await self._learn_models(backend, devices or ())
        answers = Answers(
            nodes, debug, devices or (), exports or (), block_jobs or (), stats or (), node_stats or (), self._models
        )
        return build_graph(answers, self._graph.nodes)

    async def _ask(self, backend: Backend, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if command not in self._commands:
            return None
        try:
            return await backend.execute(command, arguments)
        except CommandError:
            return None

    async def _ask_nodes(self, backend: Backend) -> Any:
        """The nodes without the images behind each; versions before 5.0 cannot leave these out."""
        try:
            if self._flat:
                try:
                    return await backend.execute("query-named-block-nodes", {"flat": True})
                except CommandError as error:
                    if "flat" not in error.desc:
                        raise
                    self._flat = False
            return await backend.execute("query-named-block-nodes")
        except CommandError as error:
            self._refused = error.desc
            return None

    async def _learn_models(self, backend: Backend, devices: Collection[Mapping[str, Any]]) -> None:
        """What the guest devices are; asked for once each. A virtio device's own name is its parent's."""
        if "qom-get" not in self._commands:
            return
        for device in devices:
            qdev = str(device.get("qdev", ""))
            if qdev and qdev not in self._models:
                path = qdev.removesuffix("/virtio-backend")
                path = path if path.startswith("/") else f"/machine/peripheral/{path}"
                model = await self._ask(backend, "qom-get", {"path": path, "property": "type"})
                self._models[qdev] = str(model or "")


async def _nothing() -> None:
    """No question, no answer."""


def choose_source(commands: Collection[str], clock: Callable[[], float] = time.monotonic) -> GraphSource | None:
    """The best source that a server with these commands can serve, or None."""
    if "x-blockmon-query-graph" in commands:
        return QueryGraphSource(commands)
    if "query-named-block-nodes" in commands:
        return StandardGraphSource(commands, clock)
    return None

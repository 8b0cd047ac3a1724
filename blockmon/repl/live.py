"""Names of what lives in the server (nodes, jobs, devices, exports …), kept at hand so that no keystroke waits for it.

Asked for in the background: at the start, after events that tell of a change, and after commands that may have made
one. Completion reads what is there at that moment.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockmon.backend import Backend, CommandError, Event
from blockmon.model.graph import GraphModel, NodeInfo, from_query_graph
from blockmon.model.schema import Schema

COALESCE = 0.15
"""Seconds that a change waits for others before the server is asked."""

SECTIONS = ("graph", "jobs", "devices", "exports", "objects", "bitmaps")

_GRAPH_EVENTS = frozenset(
    {
        "X_BLOCKMON_GRAPH_CHANGE",
        "BLOCK_JOB_COMPLETED",
        "BLOCK_JOB_CANCELLED",
        "BLOCK_JOB_READY",
        "DEVICE_TRAY_MOVED",
        "DEVICE_DELETED",
    }
)
_BLOCK_JOBS = frozenset({"stream", "commit", "mirror", "backup"})


@dataclass(frozen=True, slots=True)
class JobName:
    """A job as completion shows it."""

    id: str
    type: str
    status: str

    @property
    def block_job(self) -> bool:
        """Whether the block-job-* commands see it; create and amend jobs are none (digest §13.3)."""
        return self.type in _BLOCK_JOBS or not self.type


class LiveNames:
    """The cache. *on_change* is told after every refresh that brought something new."""

    def __init__(self, backend: Backend, schema: Schema, on_change: Callable[[], None] = lambda: None) -> None:
        self._backend = backend
        self._schema = schema
        self._on_change = on_change
        self.graph = GraphModel()
        self.jobs: dict[str, JobName] = {}
        self.devices: dict[str, str] = {}
        self.exports: dict[str, str] = {}
        self.objects: dict[str, str] = {}
        self.bitmaps: dict[str, tuple[str, ...]] = {}
        self.node_names: list[str] = []
        self._stale: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._bitmaps_wanted = False
        self._graph_is_fed = False

    # Reading ---------------------------------------------------------------------------------------------------------

    def nodes_starting(self, prefix: str) -> list[NodeInfo]:
        """The nodes whose names begin with *prefix*, by name."""
        names, found = self.node_names, []
        for index in range(bisect_left(names, prefix), len(names)):
            if not names[index].startswith(prefix):
                break
            found.append(self.graph.nodes[names[index]])
        return found

    def bitmaps_of(self, node: str | None) -> dict[str, str]:
        """Bitmap names with the node they are on; of all nodes when *node* is unknown. The first call asks for them."""
        if not self._bitmaps_wanted:
            self._bitmaps_wanted = True
            self.touch("bitmaps")
        nodes = [node] if node in self.bitmaps else sorted(self.bitmaps)
        return {bitmap: name for name in nodes for bitmap in self.bitmaps[name]}

    def use_schema(self, schema: Schema) -> None:
        """Note what the server can be asked."""
        self._schema = schema

    # Refreshing ------------------------------------------------------------------------------------------------------

    def feed(self, graph: GraphModel) -> None:
        """Take a graph that somebody else fetches anyway; from then on it is not asked for here."""
        self._graph_is_fed = True
        self._stale.discard("graph")
        self._take_graph(graph)

    def touch(self, *sections: str, delay: float = COALESCE) -> None:
        """Note that *sections* (all when none is named) may have changed, and ask for them in *delay* seconds."""
        self._stale.update(sections or SECTIONS)
        if self._graph_is_fed:
            self._stale.discard("graph")
        if not self._bitmaps_wanted:
            self._stale.discard("bitmaps")
        if self._stale and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._refresh_soon(delay))

    def after_command(self, command: str) -> None:
        """Note that the user's *command* was executed, whose effect the next line may be about."""
        if not command.startswith("query-"):
            self.touch(delay=0)

    def on_events(self, events: Sequence[Event]) -> None:
        """Learn from a batch of events."""
        for event in events:
            name, data = event.get("event"), event.get("data", {})
            if name == "JOB_STATUS_CHANGE":
                self._job_status(str(data.get("id", "")), str(data.get("status", "")))
            elif name == "BLOCK_EXPORT_DELETED":
                self.exports = {name: what for name, what in self.exports.items() if name != data.get("id")}
            if name in _GRAPH_EVENTS:
                self.touch("graph", "bitmaps")

    def _job_status(self, job_id: str, status: str) -> None:
        # Never in place: a dictionary once shown stays as it was, so that changes can be told.
        jobs = dict(self.jobs)
        known = jobs.get(job_id)
        jobs[job_id] = JobName(job_id, known.type if known is not None else "", status)
        if status == "null":
            del jobs[job_id]
        elif known is None:
            self.touch("jobs")
        self.jobs = jobs
        self._on_change()

    async def refresh(self) -> None:
        """Ask for what is stale and wait for the answers."""
        while self._stale:
            before = self._contents()
            stale, self._stale = self._stale, set()
            for section in SECTIONS:
                if section in stale:
                    try:
                        await getattr(self, f"_ask_{section}")()
                    except CommandError:
                        # A server may refuse (no medium, a corrupt node); names that were known before still help.
                        continue
            if self._contents() != before:
                self._on_change()

    def _contents(self) -> tuple[object, ...]:
        return (self.node_names, self.jobs, self.devices, self.exports, self.objects, self.bitmaps)

    async def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _refresh_soon(self, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self.refresh()
        except (OSError, EOFError, RuntimeError):
            pass  # The server is gone. Whoever runs the next command tells the user.

    # The queries -----------------------------------------------------------------------------------------------------

    def _has(self, command: str) -> bool:
        return command in self._schema.commands

    def _take_graph(self, graph: GraphModel) -> None:
        self.graph = graph
        self.node_names = sorted(graph.nodes)
        if self._has("x-blockmon-query-graph"):
            known = {p.name: p.model or "" for p in graph.parents.values() if p.kind == "device" and p.name}
            self.devices = {**self.devices, **known}

    async def _ask_graph(self) -> None:
        if self._has("x-blockmon-query-graph"):
            self._take_graph(from_query_graph(await self._backend.execute("x-blockmon-query-graph")))
            return
        listed = await self._named_nodes()
        if listed is not None:
            self._take_graph(GraphModel(nodes={node.name: node for node in map(_node_info, listed)}))

    async def _named_nodes(self) -> list[dict[str, Any]] | None:
        if not self._has("query-named-block-nodes"):
            return None
        if not self._has("x-blockmon-query-graph") and self._has("query-block-jobs"):
            # QEMU 7.2 itself crashes when asked for its nodes while a concluded stream job waits to be dismissed.
            for job in await self._backend.execute("query-block-jobs"):
                if job.get("type") == "stream" and (
                    job.get("status") == "concluded" or not job.get("auto-dismiss", True)
                ):
                    return None
        flat = {"flat": True} if "flat" in self._schema.arguments_of("query-named-block-nodes") else {}
        answer: list[dict[str, Any]] = await self._backend.execute("query-named-block-nodes", flat)
        return answer

    async def _ask_bitmaps(self) -> None:
        listed = await self._named_nodes()
        if listed is None:
            return
        found = {}
        for node in listed:
            names = tuple(str(b["name"]) for b in node.get("dirty-bitmaps", ()) if b.get("name"))
            if names:
                found[str(node["node-name"])] = names
        self.bitmaps = found

    async def _ask_jobs(self) -> None:
        if self._has("query-jobs"):
            listed = await self._backend.execute("query-jobs")
            self.jobs = {str(j["id"]): JobName(str(j["id"]), str(j["type"]), str(j["status"])) for j in listed}

    async def _ask_devices(self) -> None:
        if self._has("query-block"):
            listed = await self._backend.execute("query-block")
            self.devices = {str(d["device"]): _inserted(d) for d in listed if d.get("device")}

    async def _ask_exports(self) -> None:
        if self._has("query-block-exports"):
            listed = await self._backend.execute("query-block-exports")
            self.exports = {str(e["id"]): f"{e.get('type', '')} {e.get('node-name', '')}".strip() for e in listed}

    async def _ask_objects(self) -> None:
        if self._has("qom-list"):
            listed = await self._backend.execute("qom-list", {"path": "/objects"})
            kinds = {str(o["name"]): str(o["type"]) for o in listed}
            self.objects = {name: kind[6:-1] for name, kind in kinds.items() if kind.startswith("child<")}


def _inserted(device: Mapping[str, Any]) -> str:
    medium = device.get("inserted")
    return f"{medium.get('drv', '')} {medium.get('node-name', '')}".strip() if medium else "empty"


def _node_info(item: Mapping[str, Any]) -> NodeInfo:
    image = item.get("image", {})
    return NodeInfo(
        name=str(item["node-name"]),
        driver=str(item.get("drv", "")),
        filename=str(item.get("file", "")),
        read_only=bool(item.get("ro", False)),
        size=int(image.get("virtual-size", 0)),
        allocated=image.get("actual-size"),
        backing_file=item.get("backing_file"),
    )

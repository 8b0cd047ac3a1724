"""Names of what lives in the server (nodes, jobs, devices, exports …), kept at hand so that no keystroke waits for it.

Asked for in the background: at the start, after events that tell of a change, and after commands that may have made
one. Completion reads what is there at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockmon.backend import Backend, CommandError, Event
from blockmon.model.graph import GraphModel
from blockmon.model.schema import Schema
from blockmon.model.source import choose_source
from blockmon.repl.matching import NameIndex

COALESCE = 0.15
"""Seconds that a change waits for others before the server is asked."""

SECTIONS = (
    "graph",
    "jobs",
    "devices",
    "exports",
    "objects",
    "images",
    "chardevs",
    "peripherals",
    "types",
    "properties",
)
ON_DEMAND = frozenset({"images", "chardevs", "peripherals", "types", "properties"})
"""Asked for only once something was completed that needs them: few do, and some answers are long."""
CHANGING = tuple(section for section in SECTIONS if section not in ("types", "properties"))

_GRAPH_EVENTS = frozenset(
    {
        "X_BLOCKMON_GRAPH_CHANGE",
        "BLOCK_JOB_COMPLETED",
        "BLOCK_JOB_CANCELLED",
        "BLOCK_JOB_READY",
    }
)
_DEVICE_EVENTS = frozenset({"DEVICE_TRAY_MOVED", "DEVICE_DELETED"})
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


@dataclass(frozen=True, slots=True)
class Drive:
    """A guest's drive, as query-block tells of it. `name` is the back end's and `qdev` the guest device's id or path;
    either may be empty. `tray_open` is None where there is no tray, `node` empty where there is no medium."""

    name: str
    qdev: str = ""
    removable: bool = False
    tray_open: bool | None = None
    locked: bool = False
    node: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap. `count` and `granularity` in bytes."""

    name: str
    node: str
    count: int = 0
    granularity: int = 0
    recording: bool = True
    busy: bool = False
    persistent: bool = False
    inconsistent: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An internal snapshot of an image; `vm_state` in bytes, 0 where it holds none, `seconds` since 1970."""

    name: str
    id: str
    node: str
    vm_state: int = 0
    seconds: int = 0


class LiveNames:
    """The cache. *on_change* is told after every refresh that brought something new."""

    def __init__(self, backend: Backend, schema: Schema, on_change: Callable[[], None] = lambda: None) -> None:
        self._backend = backend
        self._schema = schema
        self._on_change = on_change
        self.graph = GraphModel()
        self.jobs: dict[str, JobName] = {}
        self.devices: dict[str, str] = {}
        self.drives: tuple[Drive, ...] = ()
        self.exports: dict[str, str] = {}
        self.objects: dict[str, str] = {}
        self.bitmaps: dict[str, tuple[Bitmap, ...]] = {}
        self.snapshots: dict[str, tuple[Snapshot, ...]] = {}
        self.chardevs: dict[str, str] = {}
        self.peripherals: dict[str, str] = {}
        self.types: tuple[str, ...] = ()
        self.properties: dict[str, dict[str, str]] = {}
        """The properties of QOM objects, by path, with their types."""
        self._index = NameIndex(())
        self._unused: tuple[str, ...] | None = None
        self._owners_known = False
        self._stale: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._wanted: set[str] = set()
        self._graph_is_fed = False

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def index(self) -> NameIndex:
        """The nodes' names, to be searched."""
        return self._index

    @property
    def node_names(self) -> list[str]:
        """The nodes' names, sorted."""
        return sorted(self._index.names)

    def want(self, section: str) -> None:
        """Have one of ON_DEMAND asked for, now and after every change that may concern it."""
        if section not in self._wanted:
            self._wanted.add(section)
            self.touch(section, delay=0)

    def properties_of(self, path: str) -> dict[str, str]:
        """The properties of the QOM object at *path*, with their types; empty until they are known. The first call for
        a path has them asked for."""
        if path and path not in self.properties:
            self.properties = {**self.properties, path: {}}
            self._wanted.add("properties")
            self.touch("properties", delay=0)
        return self.properties.get(path, {})

    def root_of(self, name: str) -> str:
        """The node that *name* stands for: its own, or the one in the drive of that name or id; empty if none."""
        if name in self.graph.nodes:
            return name
        for drive in self.drives:
            if name and name in (drive.name, drive.qdev):
                return drive.node
        edges = self.graph.children(f"device:{name}")
        return (edges[0].child or "") if edges else ""

    def unused_nodes(self) -> tuple[str, ...] | None:
        """The user's own nodes that nothing uses, which blockdev-del can delete; None where the graph does not tell who
        owns a node."""
        if self._unused is None:
            graph = self.graph
            owned = [name for name, node in graph.nodes.items() if node.monitor_owned]
            self._unused = tuple(
                name for name in owned if all(edge.parent_kind == "monitor" for edge in graph.parents_of(name))
            )
            self._owners_known = bool(owned)
        return self._unused if self._owners_known else None

    def bitmaps_of(self, nodes: Sequence[str]) -> list[Bitmap]:
        """The bitmaps on *nodes*; of all nodes when none is named. The first call has them asked for."""
        self.want("images")
        return [bitmap for node in nodes or sorted(self.bitmaps) for bitmap in self.bitmaps.get(node, ())]

    def snapshots_of(self, node: str) -> list[Snapshot]:
        """The internal snapshots in the image of *node*; of all when it is empty. The first call asks for them."""
        self.want("images")
        return [snap for name in ([node] if node else sorted(self.snapshots)) for snap in self.snapshots.get(name, ())]

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
        """Note that *sections* (if none is named, all that can) may have changed, and ask for them in *delay* s."""
        self._stale.update(sections or CHANGING)
        if self._graph_is_fed:
            self._stale.discard("graph")
        self._stale -= ON_DEMAND - self._wanted
        if self._stale and (self._task is None or self._task.done()):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # asked for from another thread; the next change takes it along
            self._task = loop.create_task(self._refresh_soon(delay))

    def after_command(self, command: str) -> None:
        """Note that the user's *command* was executed, whose effect the next line may be about."""
        if not command.startswith("query-"):
            self.properties = {}
            self.touch(delay=0)

    def on_events(self, events: Sequence[Event]) -> None:
        """Learn from a batch of events. However many there are, one change is told."""
        statuses: list[tuple[str, str]] = []
        for event in events:
            name, data = event.get("event"), event.get("data", {})
            if name == "JOB_STATUS_CHANGE":
                statuses.append((str(data.get("id", "")), str(data.get("status", ""))))
            elif name == "BLOCK_EXPORT_DELETED":
                self.exports = {name: what for name, what in self.exports.items() if name != data.get("id")}
            if name in _GRAPH_EVENTS:
                self.touch("graph", "images")
            elif name in _DEVICE_EVENTS:
                self.touch("graph", "devices", "peripherals")
        if statuses:
            self._job_statuses(statuses)

    def _job_statuses(self, statuses: Sequence[tuple[str, str]]) -> None:
        # Never in place: a dictionary once shown stays as it was, so that changes can be told.
        jobs = dict(self.jobs)
        for job_id, status in statuses:
            known = jobs.pop(job_id, None) if status == "null" else jobs.get(job_id)
            if status != "null":
                jobs[job_id] = JobName(job_id, known.type if known is not None else "", status)
                if known is None:
                    self.touch("jobs")
        if jobs != self.jobs:
            self.jobs = jobs
            self._on_change()

    async def ask(self) -> None:
        """Ask now for everything that may have changed, bitmaps and snapshots too, and wait for the answers."""
        self._wanted.add("images")
        self._stale.update(section for section in CHANGING if section not in ON_DEMAND or section in self._wanted)
        await self.refresh()

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
        return (
            self._index.names,
            self.jobs,
            self.drives,
            self.devices,
            self.exports,
            self.objects,
            self.bitmaps,
            self.snapshots,
            self.chardevs,
            self.peripherals,
            self.types,
            self.properties,
        )

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
        if graph.nodes.keys() != self.graph.nodes.keys():
            self._index = NameIndex(list(graph.nodes))
        self.graph, self._unused = graph, None
        if self._has("x-blockmon-query-graph"):
            known = {p.name: p.model or "" for p in graph.parents.values() if p.kind == "device" and p.name}
            self.devices = {**self.devices, **known}

    async def _ask_graph(self) -> None:
        # A new one each time: it spares the server by answering from what it knows, but here something has changed.
        source = choose_source(self._schema.commands)
        if source is not None and await self._nodes_can_be_asked():
            self._take_graph(await source.fetch(self._backend))

    async def _nodes_can_be_asked(self) -> bool:
        """QEMU 7.2 itself crashes when asked for its nodes while a concluded stream job waits to be dismissed."""
        if self._has("x-blockmon-query-graph") or not self._has("query-block-jobs"):
            return True
        for job in await self._backend.execute("query-block-jobs"):
            if job.get("type") == "stream" and (job.get("status") == "concluded" or not job.get("auto-dismiss", True)):
                return False
        return True

    async def _named_nodes(self) -> list[dict[str, Any]] | None:
        if not self._has("query-named-block-nodes") or not await self._nodes_can_be_asked():
            return None
        flat = {"flat": True} if "flat" in self._schema.arguments_of("query-named-block-nodes") else {}
        answer: list[dict[str, Any]] = await self._backend.execute("query-named-block-nodes", flat)
        return answer

    async def _ask_images(self) -> None:
        listed = await self._named_nodes()
        if listed is None:
            return
        bitmaps, snapshots = {}, {}
        for item in listed:
            node = str(item["node-name"])
            if found := tuple(_bitmap(node, b) for b in item.get("dirty-bitmaps", ()) if b.get("name")):
                bitmaps[node] = found
            if inside := tuple(_snapshot(node, s) for s in item.get("image", {}).get("snapshots", ())):
                snapshots[node] = inside
        self.bitmaps, self.snapshots = bitmaps, snapshots

    async def _ask_jobs(self) -> None:
        if self._has("query-jobs"):
            listed = await self._backend.execute("query-jobs")
            self.jobs = {str(j["id"]): JobName(str(j["id"]), str(j["type"]), str(j["status"])) for j in listed}

    async def _ask_devices(self) -> None:
        if self._has("query-block"):
            listed = await self._backend.execute("query-block")
            self.devices = {str(d["device"]): _inserted(d) for d in listed if d.get("device")}
            self.drives = tuple(map(_drive, listed))

    async def _ask_peripherals(self) -> None:
        self.peripherals = await self._children("/machine/peripheral")

    async def _ask_chardevs(self) -> None:
        if self._has("query-chardev"):
            listed = await self._backend.execute("query-chardev")
            self.chardevs = {str(c["label"]): str(c.get("filename", "")) for c in listed}

    async def _ask_types(self) -> None:
        if self._has("qom-list-types"):
            listed = await self._backend.execute("qom-list-types", {"implements": "device", "abstract": False})
            self.types = tuple(sorted(str(t["name"]) for t in listed))

    async def _ask_exports(self) -> None:
        if self._has("query-block-exports"):
            listed = await self._backend.execute("query-block-exports")
            present = (e for e in listed if not e.get("shutting-down"))
            self.exports = {str(e["id"]): f"{e.get('type', '')} {e.get('node-name', '')}".strip() for e in present}

    async def _ask_properties(self) -> None:
        for path, known in list(self.properties.items()):
            if not known and self._has("qom-list"):
                try:
                    listed = await self._backend.execute("qom-list", {"path": path})
                except CommandError:
                    continue  # no such object; half a path, mostly
                found = {str(p["name"]): str(p["type"]) for p in listed}
                self.properties = {**self.properties, path: found}

    async def _ask_objects(self) -> None:
        self.objects = await self._children("/objects")

    async def _children(self, path: str) -> dict[str, str]:
        """The objects at a QOM path by name, with their types."""
        if not self._has("qom-list"):
            return {}
        listed = await self._backend.execute("qom-list", {"path": path})
        kinds = {str(o["name"]): str(o["type"]) for o in listed}
        return {name: kind[6:-1] for name, kind in kinds.items() if kind.startswith("child<")}


def _inserted(device: Mapping[str, Any]) -> str:
    medium = device.get("inserted")
    return f"{medium.get('drv', '')} {medium.get('node-name', '')}".strip() if medium else "empty"


def _drive(item: Mapping[str, Any]) -> Drive:
    return Drive(
        name=str(item.get("device", "")),
        qdev=str(item.get("qdev", "")),
        removable=bool(item.get("removable", False)),
        tray_open=item.get("tray_open"),
        locked=bool(item.get("locked", False)),
        node=str(item.get("inserted", {}).get("node-name", "")),
        about=_inserted(item),
    )


def _bitmap(node: str, item: Mapping[str, Any]) -> Bitmap:
    return Bitmap(
        name=str(item["name"]),
        node=node,
        count=int(item.get("count", 0)),
        granularity=int(item.get("granularity", 0)),
        recording=bool(item.get("recording", True)),
        busy=bool(item.get("busy", False)),
        persistent=bool(item.get("persistent", False)),
        inconsistent=bool(item.get("inconsistent", False)),
    )


def _snapshot(node: str, item: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        name=str(item.get("name", "")),
        id=str(item.get("id", "")),
        node=node,
        vm_state=int(item.get("vm-state-size", 0)),
        seconds=int(item.get("date-sec", 0)),
    )

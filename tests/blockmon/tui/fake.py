"""A server for the screen's tests: a graph as a host in use has it, jobs in several states, a clock set by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blockmon.backend import CommandError, Event

KIB, MIB, GIB = 1024, 1024**2, 1024**3
ALL = ["consistent-read", "write", "write-unchanged", "resize"]
CR, W, WU, RS = ALL
START = 1_700_000_000
"""2023-11-14 22:13:20 UTC."""

COMMANDS = [
    "query-commands", "query-qmp-schema", "query-named-block-nodes", "query-jobs", "query-block-jobs", "query-version",
    "x-blockmon-query-graph", "block-stream", "block-commit", "blockdev-snapshot-sync", "block_resize",
    "change-backing-file", "blockdev-del", "blockdev-add", "job-pause", "job-resume", "job-cancel", "job-complete",
    "job-finalize", "job-dismiss", "block-job-set-speed", "block-job-cancel",
]  # fmt: skip


def node(name: str, driver: str, filename: str, size: int, allocated: int | None = None, **more: Any) -> dict[str, Any]:
    """A node as x-blockmon-query-graph lists it."""
    return {
        "node-name": name,
        "driver": driver,
        "filename": filename,
        "read-only": True,
        "size": size,
        "monitor-owned": False,
        "implicit": False,
        "filter": False,
        "auto-name": False,
        "rd-bytes": 0,
        "rd-operations": 0,
        "wr-bytes": 0,
        "wr-operations": 0,
        "busy": [],
        **({"allocated": allocated} if allocated is not None else {}),
        **{key.replace("_", "-"): value for key, value in more.items()},
    }


def edge(
    parent: str, name: str, child: str | None, perm: Sequence[str] = (), shared: Sequence[str] = ALL, **more: Any
) -> dict[str, Any]:
    """An edge as x-blockmon-query-graph lists it."""
    return {
        "parent": parent,
        "parent-kind": "node",
        "name": name,
        "roles": {"backing": ["cow"], "file": ["data", "metadata", "primary"]}.get(name, []),
        "perm": list(perm),
        "shared-perm": list(shared),
        "frozen": False,
        **({"child": child} if child is not None else {}),
        **{key.replace("_", "-"): value for key, value in more.items()},
    }


def layer(name: str, size: int, allocated: int, backing: str | None, **more: Any) -> list[dict[str, Any]]:
    """A qcow2 node and its file node."""
    path = f"/img/{name}.qcow2"
    if backing is not None:
        more |= {"backing_file": f"{backing}.{'raw' if backing == 'base' else 'qcow2'}", "backing_format": "qcow2"}
    return [
        node(name, "qcow2", path, size, allocated, cluster_size=64 * KIB, monitor_owned=True, **more),
        node(f"{name}-file", "file", path, allocated, allocated, read_only=more.get("read_only", True)),
    ]


def busy_graph() -> dict[str, Any]:
    """A guest's disk of four layers with a stream job, its base shared with a second disk, an export, a broken link."""
    nodes = [
        *layer("overlay2", 20 * GIB, 1288490188, "overlay1", read_only=False),
        *layer("overlay1", 20 * GIB, 3650722201, "snap", read_only=False,
               busy=["node is used as backing hd of 'overlay2'"]),
        *layer("snap", 20 * GIB, 214748364, "base"),
        node("base", "raw", "/img/base.raw", 20 * GIB, 8 * GIB, monitor_owned=True),
        node("base-file", "file", "/img/base.raw", 20 * GIB, 8 * GIB),
        *layer("clone", 20 * GIB, 196608, "base"),
        *layer("#block317", 40 * GIB, 5 * GIB, "golden", auto_name=True),
        node("scratch", "null-co", "", GIB, monitor_owned=True, read_only=False),
    ]  # fmt: skip
    edges = [
        edge("/machine/vda", "root", "overlay2", [CR, W, RS], [CR, WU], parent_kind="device"),
        edge("overlay2", "file", "overlay2-file", [CR, W, RS], [CR, WU]),
        edge("overlay2", "backing", "overlay1", [CR], [CR, WU], frozen=True),
        edge("overlay1", "file", "overlay1-file", [CR, W, RS], [CR, WU]),
        edge("overlay1", "backing", "snap", [CR], [CR, WU], frozen=True),
        edge("snap", "file", "snap-file", [CR], [CR, WU]),
        edge("snap", "backing", "base", [CR], [CR, WU]),
        edge("base", "file", "base-file", [CR], [CR, WU], roles=["filtered", "primary"]),
        edge("exp0", "root", "clone", [CR], ALL, parent_kind="export"),
        edge("clone", "file", "clone-file", [CR], [CR, WU]),
        edge("clone", "backing", "base", [CR], [CR, WU]),
        edge("monitor", "", "#block317", [], ALL, parent_kind="monitor"),
        edge("#block317", "file", "#block317-file", [CR], [CR, WU]),
        edge("#block317", "backing", None, filename="/img/golden.qcow2",
             error="Could not open '/img/golden.qcow2': No such file or directory"),
        edge("stream0", "main node", "overlay2", [], ALL, parent_kind="job"),
        edge("stream0", "intermediate node", "overlay1", [], [CR, WU], parent_kind="job"),
    ]  # fmt: skip
    for item in edges:
        if item["child" if "child" in item else "name"] == "#block317-file":
            item["roles"] = ["data", "metadata", "primary"]
    nodes[8]["filename"] = "/srv/templates/golden-server-2023-11-base.qcow2"
    return {
        "generation": 7,
        "nodes": nodes,
        "parents": [
            {"id": "/machine/vda", "kind": "device", "name": "vda", "model": "virtio-blk"},
            {"id": "exp0", "kind": "export", "name": "exp0", "model": "nbd"},
            {"id": "monitor", "kind": "monitor", "name": "monitor"},
            {"id": "stream0", "kind": "job", "name": "stream0", "model": "stream"},
        ],
        "edges": edges,
    }


def event(name: str, second: float = 0.0, **data: Any) -> Event:
    """An event so many seconds after START."""
    whole = int(second)
    return {
        "timestamp": {"seconds": START + whole, "microseconds": round((second - whole) * 1e6)},
        "event": name,
        "data": {key.replace("_", "-"): value for key, value in data.items()},
    }


def block_job(job_id: str, kind: str, status: str, done: int, total: int, **more: Any) -> dict[str, Any]:
    """A job as query-block-jobs lists it; query-jobs' view is made from it."""
    return {
        "device": job_id, "type": kind, "status": status, "offset": done, "len": total, "busy": True,
        "paused": status in ("paused", "standby"), "ready": status in ("ready", "standby"), "speed": 0,
        "io-status": "ok",
        "auto-finalize": True, "auto-dismiss": True, **{key.replace("_", "-"): value for key, value in more.items()},
    }  # fmt: skip


class FakeBackend:
    """Answers queries from what it is given; nothing moves unless a test says so."""

    title = "embedded"

    def __init__(self, graph: dict[str, Any] | None = None, jobs: Sequence[dict[str, Any]] = ()) -> None:
        self.graph: dict[str, Any] = (
            graph if graph is not None else {"generation": 0, "nodes": [], "parents": [], "edges": []}
        )
        self.jobs: list[dict[str, Any]] = list(jobs)
        self.commands = list(COMMANDS)
        self.executed: list[str] = []
        self.started = False
        self.now = 1000.0
        self._callbacks: list[Callable[[Sequence[Event]], None]] = []

    def clock(self) -> float:
        """The monotonic clock, as the test has set it."""
        return self.now

    async def start(self) -> None:
        self.started = True

    async def close(self) -> None:
        self.started = False

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self.executed.append(command)
        if command not in self.commands:
            raise CommandError("CommandNotFound", f"The command {command} has not been found")
        if command == "query-commands":
            return [{"name": name} for name in self.commands]
        if command == "x-blockmon-query-graph":
            return copy.deepcopy(self.graph)
        if command == "query-block-jobs":
            return copy.deepcopy(self.jobs)
        if command == "query-jobs":
            return [
                {"id": job["device"], "type": job["type"], "status": job["status"], "current-progress": job["offset"],
                 "total-progress": job["len"], **({"error": job["error"]} if "error" in job else {})}
                for job in self.jobs
            ]  # fmt: skip
        if command == "query-named-block-nodes":
            return [
                {"node-name": item["node-name"], "drv": item["driver"], "file": item["filename"],
                 "ro": item["read-only"],
                 "image": {"filename": item["filename"], "format": item["driver"], "virtual-size": item["size"]}}
                for item in self.graph["nodes"]
            ]  # fmt: skip
        return {}

    def subscribe(self, callback: Callable[[Sequence[Event]], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def emit(self, *events: Event) -> None:
        """Deliver a batch of events."""
        for callback in list(self._callbacks):
            callback(events)

    def change_graph(self) -> None:
        """Say that the graph is another one now."""
        self.graph["generation"] += 1
        self.emit(event("X_BLOCKMON_GRAPH_CHANGE", generation=self.graph["generation"]))

    def count_io(self, name: str, read: int = 0, written: int = 0) -> None:
        """Let a node have read and written so many bytes more."""
        item = next(item for item in self.graph["nodes"] if item["node-name"] == name)
        item["rd-bytes"] += read
        item["rd-operations"] += read // 4096
        item["wr-bytes"] += written
        item["wr-operations"] += written // 4096

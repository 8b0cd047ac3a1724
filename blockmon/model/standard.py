"""A block graph from QEMU's own queries, for servers without `x-blockmon-query-graph`: pure functions of their answers.

What QEMU does not tell stays empty (why a node is busy, which links are frozen) or is concluded from what it tells:
a node that nothing uses belongs to the monitor, for else it would be gone; an anonymous user of a node is the export
that names the node, or the job that works on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blockmon.model.graph import EdgeInfo, GraphModel, IoCounters, NodeInfo, ParentInfo

Item = Mapping[str, Any]

FILTERS = frozenset(
    {
        *("blkdebug", "blklogwrites", "blkreplay", "blkverify", "compress", "copy-before-write", "copy-on-read"),
        *("backup-top", "commit_top", "mirror_top", "preallocate", "replication", "throttle"),
    }
)
"""Drivers that hand on what their one child holds; no query tells which they are."""

_JOB_FILTERS = frozenset({"backup-top", "commit_top", "mirror_top", "copy-before-write", "copy-on-read"})
"""Filters that jobs put into the graph, and take out again."""

_BACKING_FILTERS = frozenset({"commit_top", "mirror_top", "backup-top"})
"""Filters whose one child is called backing."""

_PROTOCOLS = frozenset(
    {
        *("file", "host_device", "host_cdrom", "nbd", "nfs", "http", "https", "ftp", "ftps", "ssh", "iscsi", "rbd"),
        *("gluster", "curl", "null-co", "null-aio", "nvme", "blkio", "vvfat", "io_uring", "virtio-blk-vhost-vdpa"),
    }
)


@dataclass(frozen=True)
class Answers:
    """What the queries said; None for one that the server does not have or did not answer."""

    nodes: Sequence[Item] | None = None
    """query-named-block-nodes"""
    debug: Item | None = None
    """x-debug-query-block-graph"""
    devices: Sequence[Item] = ()
    """query-block"""
    exports: Sequence[Item] = ()
    """query-block-exports"""
    block_jobs: Sequence[Item] = ()
    """query-block-jobs"""
    stats: Sequence[Item] = ()
    """query-blockstats"""
    node_stats: Sequence[Item] = ()
    """query-blockstats with query-nodes; only asked for where there is no graph query, for it has links in it."""
    models: Mapping[str, str] = field(default_factory=dict)
    """The device models by the devices' QOM paths or ids."""


def build_graph(answers: Answers, known: Mapping[str, NodeInfo] | None = None, generation: int = 0) -> GraphModel:
    """Put a snapshot together. *known*: nodes as they were, for those that are linked to but not listed."""
    known = known or {}
    nodes = {node.name: node for node in map(node_info, answers.nodes or ())}
    if answers.debug is not None:
        for entry in answers.debug.get("nodes", ()):
            name = str(entry.get("name", ""))
            if entry.get("type") == "block-driver" and name and name not in nodes:
                nodes[name] = known.get(name, NodeInfo(name, auto_name=name.startswith("#")))
    for device in answers.devices:
        # Versions before 4.2 tell of bitmaps here only.
        name = str((device.get("inserted") or {}).get("node-name"))
        if device.get("dirty-bitmaps") and name in nodes and not nodes[name].bitmaps:
            nodes[name] = replace(nodes[name], bitmaps=_named_bitmaps(device))
    holders = _Holders(answers, nodes)
    edges = _debug_edges(answers.debug, nodes, holders) if answers.debug is not None else _derived(answers, nodes)
    if answers.debug is None:
        edges += _above_job_filters(holders.device_edges(), edges, nodes) + holders.export_edges()
    edges = _with_data_elsewhere(edges, answers.nodes or ())
    used = {edge.child for edge in edges}
    for name, node in nodes.items():
        if name not in used and not node.monitor_owned:
            nodes[name] = replace(node, monitor_owned=True)
    known_permissions = answers.debug is not None
    return GraphModel(generation, nodes, holders.parents, tuple(edges), counters(answers.stats), known_permissions)


def node_info(item: Item) -> NodeInfo:
    """A node of query-named-block-nodes."""
    image = item.get("image") or {}
    specific = _specific(item)
    name, driver = str(item.get("node-name", "")), str(item.get("drv", ""))
    is_filter = driver in FILTERS
    return NodeInfo(
        name=name,
        driver=driver,
        filename=str(item.get("file", "")),
        read_only=bool(item.get("ro", False)),
        size=int(image.get("virtual-size", 0)),
        # A filter repeats what its child takes.
        allocated=None if is_filter else image.get("actual-size"),
        implicit=name.startswith("#") and driver in _JOB_FILTERS,
        filter=is_filter,
        auto_name=name.startswith("#"),
        encrypted=bool(item.get("encrypted", False) or image.get("encrypted", False)),
        backing_file=image.get("backing-filename"),
        backing_format=image.get("backing-filename-format"),
        cluster_size=image.get("cluster-size"),
        error="the image is marked corrupt" if specific.get("corrupt") else None,
        bitmaps=_named_bitmaps(item),
    )


def _named_bitmaps(item: Item) -> int:
    return sum(bool(bitmap.get("name")) for bitmap in item.get("dirty-bitmaps", ()))


def counters(stats: Iterable[Item]) -> dict[str, IoCounters]:
    """What guests did, by the node their devices stand on: QEMU counts at the devices only."""
    found: dict[str, IoCounters] = {}
    for entry in stats:
        name, said = entry.get("node-name"), entry.get("stats") or {}
        if not name:
            continue
        before = found.get(name, IoCounters())
        found[name] = IoCounters(
            rd_bytes=before.rd_bytes + int(said.get("rd_bytes", 0)),
            rd_ops=before.rd_ops + int(said.get("rd_operations", 0)),
            wr_bytes=before.wr_bytes + int(said.get("wr_bytes", 0)),
            wr_ops=before.wr_ops + int(said.get("wr_operations", 0)),
        )
    return found


def jobs_from_block_jobs(block_jobs: Iterable[Item]) -> list[dict[str, Any]]:
    """The answer of query-jobs, from query-block-jobs, for servers from before there was the former."""
    return [
        {
            "id": job["device"],
            "type": job.get("type", ""),
            "status": job.get("status") or _old_status(job),
            "current-progress": job.get("offset", 0),
            "total-progress": job.get("len", 0),
            **({"error": job["error"]} if job.get("error") is not None else {}),
        }
        for job in block_jobs
    ]


def _old_status(job: Item) -> str:
    if job.get("ready"):
        return "standby" if job.get("paused") else "ready"
    return "paused" if job.get("paused") else "running"


# -- links ---------------------------------------------------------------------------------------------------------


def roles_of(node: NodeInfo, name: str) -> tuple[str, ...]:
    """What a child called *name* is for *node*, as in QEMU's block drivers."""
    if (node.driver, name) == ("blkverify", "raw"):
        return ("filtered", "primary")
    if (node.driver, name) == ("blklogwrites", "log"):
        return ("metadata",)
    if node.driver in FILTERS or (node.driver == "raw" and not _shows_a_part(node.filename)):
        return ("filtered", "primary") if name in ("file", "backing", "image") else ("data",)
    if name == "backing":
        return ("cow",)
    if name == "file":
        return ("data", "primary") if node.driver in ("raw", "snapshot-access") else ("data", "metadata", "primary")
    return ("data",)


def _with_data_elsewhere(edges: Sequence[EdgeInfo], items: Iterable[Item]) -> list[EdgeInfo]:
    """The links with the roles that they have where a format keeps the data in other files than its own."""
    elsewhere = {edge.parent for edge in edges if edge.name == "data-file" or edge.name.startswith("extents.")}
    if not elsewhere:
        return list(edges)
    types = {
        str(item.get("node-name")): str(_specific(item).get("create-type", ""))
        for item in items
        if item.get("node-name") in elsewhere
    }
    found: list[EdgeInfo] = []
    for edge in edges:
        if edge.parent in elsewhere and edge.name == "file":
            edge = replace(edge, roles=("metadata", "primary"))
        elif edge.parent in elsewhere and edge.name.startswith("extents.") and "Sparse" in types.get(edge.parent, ""):
            edge = replace(edge, roles=("data", "metadata"))
        found.append(edge)
    return found


def _specific(item: Item) -> Item:
    """What a node's image says that only its format has."""
    found: Item = ((item.get("image") or {}).get("format-specific") or {}).get("data") or {}
    return found


def _shows_a_part(filename: str) -> bool:
    """Whether a raw node shows only a part of its file, which its name then tells."""
    if not filename.startswith("json:"):
        return False
    try:
        options = json.loads(filename.removeprefix("json:"))
    except ValueError:
        return False
    return isinstance(options, dict) and bool({"offset", "size"} & options.keys())


class _Holders:
    """The parents that are no nodes."""

    def __init__(self, answers: Answers, nodes: Mapping[str, NodeInfo]) -> None:
        self.parents: dict[str, ParentInfo] = {}
        self._nodes = nodes
        self._devices: dict[str, tuple[ParentInfo, Item]] = {}
        self._exports: dict[str, list[ParentInfo]] = {}
        self._types = {str(job.get("device")): str(job.get("type", "")) for job in answers.block_jobs}
        self._anonymous: dict[str, int] = {}
        for device in answers.devices:
            qdev, name = str(device.get("qdev", "")), str(device.get("device", ""))
            if not (qdev or name):
                continue
            parent = ParentInfo(qdev or name, "device", name or short_device(qdev), answers.models.get(qdev))
            self._add(parent)
            for key in filter(None, (qdev, name)):
                self._devices[key] = (parent, device)
        for export in answers.exports:
            parent = ParentInfo(str(export["id"]), "export", str(export["id"]), export.get("type"))
            self._add(parent)
            self._exports.setdefault(str(export.get("node-name")), []).append(parent)

    def _add(self, parent: ParentInfo) -> ParentInfo:
        return self.parents.setdefault(parent.key, parent)

    def job(self, name: str) -> ParentInfo:
        """The job of this id."""
        return self._add(ParentInfo(name, "job", name, self._types.get(name) or None))

    def backend(self, name: str) -> ParentInfo:
        """The device, or drive without one, of this name or QOM path."""
        found = self._devices.get(name)
        return found[0] if found is not None else self._add(ParentInfo(name, "device", short_device(name)))

    def anonymous(self, node: str, jobs: Sequence[str]) -> ParentInfo:
        """Who uses *node* without a name: an export of it, else one of the *jobs* on it, else somebody."""
        if self._exports.get(node):
            return self._exports[node].pop(0)
        if jobs:
            return self.job(jobs[0])
        number = self._anonymous[node] = self._anonymous.get(node, 0) + 1
        return self._add(ParentInfo(f"{node}#{number}", "user", ""))

    def device_edges(self) -> list[EdgeInfo]:
        """From query-block: each device to what is inserted."""
        found = []
        for parent, device in {id(entry[0]): entry for entry in self._devices.values()}.values():
            inserted = device.get("inserted") or {}
            if inserted.get("node-name") in self._nodes:
                perm = {"consistent-read"} if inserted.get("ro") else {"consistent-read", "write"}
                found.append(_edge(parent, "root", inserted["node-name"], perm))
        return found

    def export_edges(self) -> list[EdgeInfo]:
        """From query-block-exports: each export to its node."""
        return [
            _edge(parent, "root", node, ())  # whether it can be written through is not told
            for node, parents in self._exports.items()
            if node in self._nodes
            for parent in parents
        ]


def _edge(parent: ParentInfo, name: str, child: str, perm: Iterable[str], shared: Iterable[str] = ()) -> EdgeInfo:
    # What devices, exports and jobs do I/O through hands everything on.
    roles = ("filtered", "primary") if name == "root" else ()
    return EdgeInfo(parent.key, parent.kind, name, child, roles, frozenset(perm), frozenset(shared))


def short_device(qdev: str) -> str:
    """A device's id out of its QOM path: ``/machine/peripheral/vda/virtio-backend`` is vda."""
    return qdev.removesuffix("/virtio-backend").rpartition("/")[2] or qdev


def _debug_edges(debug: Item, nodes: Mapping[str, NodeInfo], holders: _Holders) -> list[EdgeInfo]:
    entries = {entry["id"]: entry for entry in debug.get("nodes", ())}
    links = [link for link in debug.get("edges", ()) if link.get("parent") in entries and link.get("child") in entries]
    jobs: dict[str, list[str]] = {}
    for link in links:
        if entries[link["parent"]].get("type") == "block-job":
            jobs.setdefault(str(entries[link["child"]].get("name")), []).append(
                str(entries[link["parent"]].get("name"))
            )
    edges = []
    for link in links:
        above, name = entries[link["parent"]], str(link.get("name", ""))
        title, child = str(above.get("name", "")), str(entries[link["child"]].get("name", ""))
        if child not in nodes:
            continue
        perm, shared = link.get("perm", ()), link.get("shared-perm", ())
        if above.get("type") == "block-driver":
            roles = roles_of(nodes.get(title, NodeInfo(title)), name)
            edges.append(EdgeInfo(title, "node", name, child, roles, frozenset(perm), frozenset(shared)))
        elif above.get("type") == "block-job":
            edges.append(_edge(holders.job(title), name, child, perm, shared))
        elif title:
            edges.append(_edge(holders.backend(title), name, child, perm, shared))
        else:
            edges.append(_edge(holders.anonymous(child, jobs.get(child, ())), name, child, perm, shared))
    return edges


def _derived(answers: Answers, nodes: Mapping[str, NodeInfo]) -> list[EdgeInfo]:
    """Links between nodes where no query tells them: by the children that newer versions list, the chains in
    query-blockstats, and file names that only fit in one way."""
    found: dict[tuple[str, str], str] = {}
    for item in answers.nodes or ():
        for child in item.get("children", ()):
            found[str(item.get("node-name")), str(child.get("child"))] = str(child.get("node-name"))
    if not found:
        for entry in (*answers.node_stats, *answers.stats):
            _stat_links(entry, nodes, found)
        _name_links(answers.nodes or (), nodes, found)
    return [
        EdgeInfo(parent, "node", name, child, roles_of(nodes[parent], name))
        for (parent, name), child in found.items()
        if parent in nodes and child in nodes
    ]


def _above_job_filters(
    held: Iterable[EdgeInfo], edges: Iterable[EdgeInfo], nodes: Mapping[str, NodeInfo]
) -> list[EdgeInfo]:
    """query-block passes over the filters of jobs, on which the devices really stand."""
    filters = {edge.child: edge.parent for edge in edges if nodes[edge.parent].implicit}

    found = []
    for edge in held:
        seen: set[str | None] = set()
        child = edge.child
        while child in filters and child not in seen:
            seen.add(child)
            child = filters[child]
        found.append(replace(edge, child=child))
    return found


def _stat_links(entry: Item, nodes: Mapping[str, NodeInfo], found: dict[tuple[str, str], str]) -> None:
    name = str(entry.get("node-name", ""))
    for member, link in (("parent", "file"), ("backing", "backing")):
        below = entry.get(member)
        if not isinstance(below, Mapping):
            continue
        child = str(below.get("node-name", ""))
        if name in nodes and child in nodes:
            driver = nodes[name].driver
            found.setdefault((name, "backing" if driver in _BACKING_FILTERS else link), child)
        _stat_links(below, nodes, found)


def _name_links(items: Iterable[Item], nodes: Mapping[str, NodeInfo], found: dict[tuple[str, str], str]) -> None:
    protocols: dict[str, list[str]] = {}
    formats: dict[str, list[str]] = {}
    for node in nodes.values():
        (protocols if node.driver in _PROTOCOLS else formats).setdefault(node.filename, []).append(node.name)
    for item in items:
        name = str(item.get("node-name", ""))
        if name not in nodes:
            continue
        node = nodes[name]
        if node.driver in _PROTOCOLS or node.filter:
            continue
        for link, places, file in (
            ("file", protocols, node.filename),
            ("backing", formats, str((item.get("image") or {}).get("full-backing-filename", item.get("backing_file")))),
        ):
            fitting = [other for other in places.get(file, ()) if other != name]
            if (name, link) not in found and len(fitting) == 1:
                found[name, link] = fitting[0]

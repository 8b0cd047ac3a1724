"""The inspector's pages: which there are for a thing, and the overviews, made from the model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from blockmon.model.details import by_id, device_entry
from blockmon.model.events import LoggedEvent
from blockmon.model.format import percent, rate_short, safe_text, size_exact, size_long
from blockmon.model.graph import EdgeInfo, NodeInfo, ParentInfo
from blockmon.model.jobs import Job
from blockmon.model.refresher import ScreenState
from blockmon.tui.inspect_details import bitmaps, device_io, image, node_io, node_json, options
from blockmon.tui.inspect_links import edge_table, permissions
from blockmon.tui.inspect_text import Page, Pieces, View, asked, bar, json_lines, labelled, permission_letters
from blockmon.tui.look import Look
from blockmon.tui.subject import BrokenEdgeSubject, EventSubject, JobSubject, NodeSubject, ParentSubject, Subject

QUERY_OPTIONS = "x-blockmon-query-node-options"


def pages_for(state: ScreenState, subject: Subject | None) -> dict[str, Page]:
    """The pages that there are for *subject*, by name, in order; those that the server cannot fill are left out."""
    graph = state.graph
    found: dict[str, Page] = {}
    if isinstance(subject, NodeSubject):
        node = graph.nodes.get(subject.name)
        if node is None:
            return {}
        named = "query-named-block-nodes" in state.commands
        edge = subject.edge
        found["Overview"] = lambda view: _node_overview(view.state, node, edge, view.look)
        if QUERY_OPTIONS in state.commands:
            found["Options"] = lambda view: options(view, node)
        found["Permissions"] = lambda view: permissions(view, node.name)
        if named:
            found["Bitmaps"] = lambda view: bitmaps(view, node)
        found["I/O"] = lambda view: node_io(view, node)
        if named:
            found["Image"] = lambda view: image(view, node)
            found["JSON"] = lambda view: node_json(view, node)
    elif isinstance(subject, ParentSubject):
        parent = graph.parents.get(subject.key)
        if parent is None:
            return {}
        found["Overview"] = lambda view: _parent_overview(view, parent)
        found["Permissions"] = lambda view: permissions(view, parent.key)
        if parent.kind == "device" and "query-blockstats" in state.commands:
            found["I/O"] = lambda view: device_io(view, parent)
        if _PARENT_QUERIES.get(parent.kind) in state.commands:
            found["JSON"] = lambda view: _parent_json(view, parent)
    elif isinstance(subject, BrokenEdgeSubject):
        link = subject.edge
        found["Overview"] = lambda view: _broken_edge(view.state, link)
        found["Permissions"] = lambda view: permissions(view, link.parent)
    elif isinstance(subject, JobSubject):
        job = state.jobs.by_serial(subject.serial)
        if job is not None:
            found["Overview"] = lambda view: _job_overview(view.state, job, view.look)
            if not job.gone:
                found["JSON"] = lambda view: _job_json(view, job)
    elif isinstance(subject, EventSubject):
        entry = subject.entry
        found["Overview"] = lambda view: _event(view, entry)
    return found


_PARENT_QUERIES = {"device": "query-block", "export": "query-block-exports", "job": "query-jobs"}


def _parent_entry(parent: ParentInfo, answer: Any) -> Mapping[str, Any] | None:
    """A parent's entry in the answer to the query about its kind."""
    if parent.kind == "device":
        return device_entry(answer, parent.id, parent.name)
    return by_id(answer, parent.id)


def _parent_json(view: View, parent: ParentInfo) -> list[Pieces]:
    command = _PARENT_QUERIES[parent.kind]
    answer = view.ask(command, None, 2.0)
    entry = _parent_entry(parent, answer.value)
    return (
        asked(answer, command, view.look)
        or (json_lines(entry) if entry is not None else None)
        or [[(f"{command} does not list it", "dim")]]
    )


def _job_json(view: View, job: Job) -> list[Pieces]:
    lines: list[Pieces] = []
    for command, key in (("query-jobs", "id"), ("query-block-jobs", "device")):
        if not view.has(command):
            continue
        answer = view.ask(command, None, 1.0)
        entry = by_id(answer.value, job.id, key)
        if entry is not None or not answer.known:
            lines += [[(command, "dim")]]
            lines += asked(answer, command, view.look) or json_lines(entry)
    return lines or [[("the server does not list it any more", "dim")]]


def _node_overview(state: ScreenState, node: NodeInfo, edge: EdgeInfo | None, look: Look) -> list[Pieces]:
    graph, dot = state.graph, f" {look.symbols.dot} "
    lines: list[Pieces] = []
    if node.error:
        lines.append(labelled("error", (safe_text(node.error), "state.error")))
    # A format has its file below it; name the file here all the same.
    lines.append(labelled("file", (safe_text(node.filename or "none"), "strong" if node.filename else "dim")))
    features = [node.driver]
    if node.cluster_size:
        features.append(f"clusters of {size_long(node.cluster_size)}")
    if node.encrypted:
        features.append("encrypted")
    if node.filter:
        features.append("filter")
    if node.implicit:
        features.append("put in by a job")
    lines.append(labelled("format" if graph.children(node.name) else "driver", dot.join(features)))
    mode = "ro" if node.read_only else "rw"
    lines.append(labelled("access", (mode, f"state.{mode}"), "  read-only" if node.read_only else "  read-write"))
    lines.append(labelled("size", size_exact(node.size)))
    if node.allocated is not None:
        used = labelled("allocated", f"{size_long(node.allocated)} of {size_long(node.size)}  ")
        share = percent(node.allocated, node.size)
        if share is not None:
            used += [*bar(look, node.allocated / node.size), (f" {share} %", "strong")]
        lines.append(used)
    lines += _backing_lines(state, node, look)
    lines += _chain(state, node.name, look)
    own_edges = [edge for edge in graph.children(node.name) if edge.name != "backing"]
    for number, below in enumerate(own_edges):
        target = safe_text(below.child) if below.child is not None else "broken"
        roles = f"  {', '.join(below.roles)}" if below.roles else ""
        lines.append(labelled("" if number else "children", (f"{below.name} ", "edge"), target, (roles, "dim")))
    holders = [above for above in graph.parents_of(node.name) if above.parent_kind != "job"]
    for number, above in enumerate(holders):
        lines.append(labelled("" if number else "parents", *_use(state, above, look)))
    if not holders:
        lines.append(labelled("parents", ("none", "dim")))
    for number, (text, style) in enumerate(_reasons(state, node, look)):
        lines.append(labelled("" if number else "busy", (text, style)))
    owner = [word for word, yes in (("monitor", node.monitor_owned), ("named automatically", node.auto_name)) if yes]
    if owner:
        lines.append(labelled("held by", ", ".join(owner)))
    if edge is not None and edge.frozen:
        lines.append(labelled("link", f"the {edge.name} link from {state.graph.parent_label(edge.parent)} is frozen"))
    return lines


def _backing_lines(state: ScreenState, node: NodeInfo, look: Look) -> list[Pieces]:
    backing = state.graph.child(node.name, "backing")
    header = safe_text(node.backing_file) if node.backing_file else ""
    if node.backing_format and header:
        header += f", {node.backing_format}"
    if backing is None:
        if node.backing_file is not None:
            return [labelled("backing", ("not opened ", "state.notable"), (f"({header})", "dim"))]
        return []
    if backing.child is not None:
        note = f"  ({header})" if header else ""
        return [labelled("backing", (safe_text(backing.child), "strong"), (note, "dim"))]
    return [
        labelled("backing", (f"{look.symbols.error} broken ", "state.error"), (f"({header})" if header else "", "dim")),
        labelled("", (safe_text(backing.error or ""), "state.error")),
    ]


def _use(state: ScreenState, edge: EdgeInfo, look: Look) -> Pieces:
    """Who uses a node, and how: ``vda (root: rw-- · shares r-u-)``."""
    name = safe_text(state.graph.parent_label(edge.parent))
    link = edge.name or edge.parent_kind
    if not state.graph.permissions_known:
        return [(name, "strong"), (f" ({link})", "dim")]
    shares = f"{look.symbols.dot} shares {permission_letters(edge.shared)})"
    return [(name, "strong"), (f" ({link}: ", "dim"), (permission_letters(edge.perm), "text"), (f" {shares}", "dim")]


def _reasons(state: ScreenState, node: NodeInfo, look: Look) -> Pieces:
    reasons: Pieces = []
    for edge in state.graph.jobs_on(node.name):
        job_id = state.graph.parent_label(edge.parent)
        job = state.jobs.live(job_id)
        status = job.status if job is not None else "running"
        text = f"{look.symbols.state(status)} {safe_text(job_id)} ({status}): {edge.name}"
        reasons.append((text, f"state.{status}"))
    reasons += [(safe_text(reason), "state.busy") for reason in node.busy]
    return reasons


def _parent_overview(view: View, parent: ParentInfo) -> list[Pieces]:
    state, look, key = view.state, view.look, parent.key
    lines = [
        labelled(parent.kind, (safe_text(parent.name or parent.id), "strong")),
        labelled("type", safe_text(parent.model or parent.kind)),
    ]
    if parent.id != parent.name:
        lines.append(labelled("id", safe_text(parent.id)))
    for edge in state.graph.children(key):
        if edge.child is None:
            lines.append(labelled("uses", (f"{edge.name} ", "edge"), (f"{look.symbols.error} broken", "state.error")))
            lines.append(labelled("", (safe_text(edge.error or ""), "state.error")))
            continue
        node = state.graph.nodes[edge.child]
        lines.append(
            labelled("uses", (f"{edge.name} {look.symbols.arrow} ", "edge"), (safe_text(edge.child), "strong"))
        )
        mode = "rw" if "write" in edge.perm else "ro"
        told = state.graph.permissions_known or edge.perm
        access = labelled("access", (mode, f"state.{mode}") if told else ("not told by this server", "dim"))
        if state.graph.permissions_known:
            shares = f" {look.symbols.dot} shares {permission_letters(edge.shared)}"
            access += [(f"  takes {permission_letters(edge.perm)}", "text"), (shares, "dim")]
        lines.append(access)
        lines.append(labelled("size", size_exact(node.size)))
        lines += _chain(state, edge.child, look)
    command = _PARENT_QUERIES.get(parent.kind, "")
    if parent.kind in ("device", "export") and view.has(command):
        entry = _parent_entry(parent, view.ask(command, None, None).value)
        if entry is not None:
            lines += _device(entry, look) if parent.kind == "device" else _export(entry)
    return lines


def _device(entry: Mapping[str, Any], look: Look) -> list[Pieces]:
    """What ``query-block`` says of a device beyond the graph: its medium, its state, its limits."""
    medium = entry.get("inserted")
    words = ["removable" if entry.get("removable") else "fixed"]
    if entry.get("locked"):
        words.append("locked")
    if entry.get("tray_open"):
        words.append("tray open")
    if medium is None:
        words.append("no medium")
    lines = [labelled("medium", f" {look.symbols.dot} ".join(words))]
    status = entry.get("io-status")
    if status is not None:
        lines.append(labelled("I/O status", (str(status), "text" if status == "ok" else "state.error")))
    if isinstance(medium, Mapping):
        limits = [f"{name} {medium[name]:,}" for name in _LIMITS if medium.get(name)]
        if limits:
            lines.append(labelled("limits", ", ".join(limits)))
        cache = medium.get("cache")
        if isinstance(cache, Mapping):
            on = [name for name in ("writeback", "direct", "no-flush") if cache.get(name)]
            lines.append(labelled("cache", ", ".join(on) or "writethrough"))
    return lines


_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")


def _export(entry: Mapping[str, Any]) -> list[Pieces]:
    lines: list[Pieces] = []
    if entry.get("shutting-down"):
        lines.append(labelled("state", ("shutting down", "state.waiting")))
    return lines


def _chain(state: ScreenState, name: str, look: Look) -> list[Pieces]:
    """The backing chain from a node down, where there is one."""
    layers = [name]
    broken = False
    while True:
        edge = state.graph.backing(layers[-1])
        if edge is None or edge.child in layers:
            break
        if edge.child is None:
            broken = True
            break
        layers.append(edge.child)
    if len(layers) == 1 and not broken:
        return []
    filters = {layer for layer in layers if (node := state.graph.nodes.get(layer)) is not None and node.filter}
    count = len(layers) - len(filters)
    pieces: Pieces = [("one layer: " if count == 1 else f"{count} layers: ", "text")]
    for number, layer in enumerate(layers):
        pieces += [(f" {look.symbols.arrow} ", "edge")] if number else []
        # A filter holds no data: it is on the way, but no layer.
        name = safe_text(layer)
        pieces.append((f"[{name}]", "dim") if layer in filters else (name, "strong"))
    if broken:
        pieces.append((f" {look.symbols.arrow} {look.symbols.error} broken", "state.error"))
    return [labelled("chain", *pieces)]


def _broken_edge(state: ScreenState, edge: EdgeInfo) -> list[Pieces]:
    lines = [
        labelled("link", (edge.name, "edge"), f" of {safe_text(state.graph.parent_label(edge.parent))}"),
        labelled("error", (safe_text(edge.error or "it leads nowhere"), "state.error")),
    ]
    if edge.filename:
        lines.insert(1, labelled("file", (safe_text(edge.filename), "strong")))
    if edge.roles:
        lines.append(labelled("roles", ", ".join(edge.roles)))
    return lines


def _job_overview(state: ScreenState, job: Job, look: Look) -> list[Pieces]:
    word = job.word
    lines = [
        labelled("job", (safe_text(job.id), "strong"), f"  {job.type}"),
        labelled("status", (f"{look.symbols.state(word)} {word}", f"state.{word}")),
    ]
    if job.error:
        lines.append(labelled("error", (safe_text(job.error), "state.error")))
    share = job.percent
    done = labelled("progress", f"{size_long(job.current)} of {size_long(job.total)}  ")
    if share is not None:
        done += [*bar(look, job.fraction), (f" {share} %", "strong")]
    lines.append(done)
    if job.block_job and not job.gone:
        lines.append(labelled("speed", "unlimited" if not job.speed else f"at most {size_long(job.speed)}/s"))
        lines.append(labelled("rate", rate_short(job.rate) or "-"))
        lines.append(labelled("I/O status", (job.io_status, "text" if job.io_status == "ok" else "state.error")))
        finalize = "by itself" if job.auto_finalize else "waits for job-finalize"
        lines.append(labelled("finalize", finalize))
        lines.append(labelled("dismiss", "by itself" if job.auto_dismiss else "waits for job-dismiss"))
    verbs = sorted(job.verbs())
    if verbs:
        lines.append(labelled("takes", ", ".join(verbs)))
    keys = [
        parent.key
        for parent in state.graph.parents.values()
        if parent.kind == "job" and job.id in (parent.name, parent.id)
    ]
    edges = [edge for key in keys for edge in state.graph.children(key)]
    if edges and not job.gone:
        lines.append([])
        known = state.graph.permissions_known
        lines += edge_table("nodes it holds", [(edge, edge.child) for edge in edges], look, permissions_known=known)
    return lines


def _event(view: View, entry: LoggedEvent) -> list[Pieces]:
    """When it was, what it is about, and the event as it was on the wire."""
    style = {"error": "state.error", "notable": "state.notable"}.get(entry.severity, "strong")
    moment = time.strftime("%Y-%m-%d ", time.localtime(entry.time)) + entry.clock
    lines = [labelled("event", (safe_text(entry.name), style)), labelled("time", moment)]
    if entry.job:
        lines.append(labelled("job", (safe_text(entry.job), "strong")))
    for name in entry.nodes:
        where = "" if name in view.state.graph.nodes else "  not a node of the graph now"
        lines.append(labelled("about", (safe_text(name), "strong"), (where, "dim")))
    return [*lines, [], *json_lines(dict(entry.event))]

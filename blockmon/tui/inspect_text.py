"""What the inspector says about a thing: pages of styled lines, made from the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.cells import cell_len

from blockmon.model.format import count_short, percent, rate_short, safe_text, size_exact, size_long, sparkline
from blockmon.model.graph import PERMISSIONS, EdgeInfo, NodeInfo
from blockmon.model.jobs import Job
from blockmon.model.refresher import ScreenState
from blockmon.tui.look import Look
from blockmon.tui.subject import BrokenEdgeSubject, EventSubject, JobSubject, NodeSubject, ParentSubject, Subject

Pieces = list[tuple[str, str]]
"""A line: texts, each with the name of its style."""

Page = Callable[[Look], list[Pieces]]

LABEL = 11
_LETTERS = {"consistent-read": "r", "write": "w", "write-unchanged": "u", "resize": "s"}


def wrap(pieces: Pieces, width: int) -> list[Pieces]:
    """Break a line at *width* cells, between words where that is possible; what follows is indented as the value is."""
    if width <= LABEL + 4 or sum(cell_len(text) for text, _ in pieces) <= width:
        return [pieces]
    labelled = len(pieces) > 1 and cell_len(pieces[0][0]) == LABEL
    lead = pieces[0][0]
    indent = LABEL if labelled else min(len(lead) - len(lead.lstrip()), width // 2)
    lines: list[Pieces] = []
    current: Pieces = []
    used = 0
    for text, style in pieces:
        rest = text
        while rest:
            room = width - used
            if cell_len(rest) <= room:
                current.append((rest, style))
                used += cell_len(rest)
                break
            cut = _cut(rest, room)
            if not cut and used <= indent:
                cut = max(1, room)
            if cut:
                current.append((rest[:cut], style))
            lines.append(current)
            rest = rest[cut:].lstrip(" ")
            current, used = [(" " * indent, "text")], indent
    if len(current) > 1 or not lines:
        lines.append(current)
    return lines


def _cut(text: str, room: int) -> int:
    """How many characters of *text* go into *room* cells: to the last good place to break."""
    used = 0
    best = 0
    for index, char in enumerate(text):
        used += cell_len(char)
        if used > room:
            break
        if char in " /,:":
            best = index + 1
    else:
        return len(text)
    return best if best > room // 3 else (index if room >= 8 else 0)


_JSON_TOKEN = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"(?=\s*:))|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d[\d.eE+-]*)
    |(?P<word>true|false|null)|(?P<mark>[{}\[\],:])""",
    re.VERBOSE,
)
_JSON_STYLES = {"key": "syntax.nt", "string": "syntax.s", "number": "syntax.m", "word": "syntax.kc", "mark": "syntax.p"}


def json_lines(value: Any) -> list[Pieces]:
    """A value as indented JSON, in styled pieces a line."""
    lines: list[Pieces] = []
    for text in json.dumps(value, indent=2, ensure_ascii=False).splitlines():
        pieces: Pieces = []
        end = 0
        for match in _JSON_TOKEN.finditer(text):
            if match.start() > end:
                pieces.append((text[end : match.start()], "text"))
            pieces.append((safe_text(match.group()), _JSON_STYLES[match.lastgroup or "mark"]))
            end = match.end()
        if end < len(text):
            pieces.append((safe_text(text[end:]), "text"))
        lines.append(pieces)
    return lines


def labelled(label: str, *value: tuple[str, str] | str) -> Pieces:
    """A line of a label and its value."""
    pieces: Pieces = [(f"{label:<{LABEL}}", "dim")]
    pieces += [(part, "text") if isinstance(part, str) else part for part in value]
    return pieces


def permission_letters(permissions: frozenset[str]) -> str:
    """Permissions as letters in fixed places: read, write, write unchanged, resize (size)."""
    return "".join(_LETTERS[name] if name in permissions else "-" for name in PERMISSIONS)


def pages_for(state: ScreenState, subject: Subject | None) -> dict[str, Page]:
    """The pages that there are for *subject*, by name, in order."""
    graph = state.graph
    if isinstance(subject, NodeSubject):
        node = graph.nodes.get(subject.name)
        if node is None:
            return {}
        return {
            "Overview": lambda look: _node_overview(state, node, subject.edge, look),
            "Permissions": lambda look: _permissions(state, node.name, look),
            "I/O": lambda look: _node_io(state, node, look),
        }
    if isinstance(subject, ParentSubject):
        if subject.key not in graph.parents:
            return {}
        return {
            "Overview": lambda look: _parent_overview(state, subject.key, look),
            "Permissions": lambda look: _permissions(state, subject.key, look),
        }
    if isinstance(subject, BrokenEdgeSubject):
        return {"Overview": lambda look: _broken_edge(state, subject.edge)}
    if isinstance(subject, JobSubject):
        job = state.jobs.by_serial(subject.serial)
        return {} if job is None else {"Overview": lambda look: _job_overview(state, job, look)}
    if isinstance(subject, EventSubject):
        if not state.events.first <= subject.number < state.events.end:
            return {}
        return {"Overview": lambda look: _event(state, subject.number)}
    return {}


def _bar(look: Look, fraction: float, cells: int = 12) -> Pieces:
    full = min(cells, int(fraction * cells + 0.5))
    return [(look.symbols.bar_full * full, "bar"), (look.symbols.bar_rest * (cells - full), "bar-rest")]


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
            used += [*_bar(look, node.allocated / node.size), (f" {share} %", "strong")]
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


def _permissions(state: ScreenState, key: str, look: Look) -> list[Pieces]:
    graph = state.graph
    lines: list[Pieces] = []
    tables = [("used by", graph.parents_of(key), True)] if key in graph.nodes else []
    tables.append(("uses", graph.children(key), False))
    for title, edges, above in tables:
        others = [graph.parent_label(edge.parent) if above else edge.child for edge in edges]
        lines += _edge_table(title, list(zip(edges, others, strict=True)), look)
        lines.append([])
    lines.append([("r consistent read   w write", "dim")])
    lines.append([("u write unchanged   s resize   = frozen link", "dim")])
    return lines


def _edge_table(title: str, edges: Sequence[tuple[EdgeInfo, str | None]], look: Look) -> list[Pieces]:
    """Edges, each with its name, what is at its other end, and the permissions taken and shared."""
    names = min(20, max((len(edge.name or edge.parent_kind) for edge, _ in edges), default=0))
    ends = min(24, max((len(safe_text(other)) for _, other in edges if other is not None), default=0))
    width = max(len(title), 2 + names + 1 + ends)
    lines: list[Pieces] = [[(f"{title:<{width}}  takes  shares", "dim")]]
    for edge, other in edges:
        link = f"{'=' if edge.frozen else ' '} {safe_text(edge.name or edge.parent_kind):<{names}.{names}} "
        if other is None:
            lines.append([(link, "edge"), (f"{look.symbols.error} broken link", "state.error")])
            continue
        taken, shared = permission_letters(edge.perm), permission_letters(edge.shared)
        lines.append(
            [
                (link, "edge"),
                (f"{safe_text(other):<{ends}.{ends}}".ljust(width - len(link)), "strong"),
                (f"  {taken}   {shared}", "text"),
                (f"  {', '.join(edge.roles)}" if edge.roles else "", "dim"),
            ]
        )
    if not edges:
        lines.append([("  none", "dim")])
    return lines


def _node_io(state: ScreenState, node: NodeInfo, look: Look) -> list[Pieces]:
    counters = state.graph.counters.get(node.name)
    rate = state.io.rate(node.name)
    lines: list[Pieces] = [[(" " * LABEL + f"{'bytes':>10}{'requests':>10}{'now':>10}{'req/s':>8}", "dim")]]
    if counters is not None:
        for label, total, ops, now, ops_now in (
            ("read", counters.rd_bytes, counters.rd_ops, rate.rd_bytes, rate.rd_ops),
            ("written", counters.wr_bytes, counters.wr_ops, rate.wr_bytes, rate.wr_ops),
        ):
            speed = rate_short(now) or "-"
            per_second = count_short(ops_now) if ops_now >= 0.5 else "-"
            lines.append(labelled(label, f"{size_long(total):>10}{ops:>10,}{speed:>10}{per_second:>8}"))
    lines.append([])
    picture = sparkline(state.io.bins(node.name, 24), look.symbols.spark)
    lines.append(labelled("24 s", (picture, "spark")) if picture.strip() else labelled("24 s", ("still", "dim")))
    return lines


def _parent_overview(state: ScreenState, key: str, look: Look) -> list[Pieces]:
    parent = state.graph.parents[key]
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
        lines.append(
            labelled(
                "access",
                (mode, f"state.{mode}"),
                f"  takes {permission_letters(edge.perm)}",
                (f" {look.symbols.dot} shares {permission_letters(edge.shared)}", "dim"),
            )
        )
        lines.append(labelled("size", size_exact(node.size)))
        lines += _chain(state, edge.child, look)
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
    pieces: Pieces = [("one layer: " if len(layers) == 1 else f"{len(layers)} layers: ", "text")]
    for number, layer in enumerate(layers):
        pieces += [(f" {look.symbols.arrow} ", "edge")] if number else []
        pieces.append((safe_text(layer), "strong"))
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
        done += [*_bar(look, job.fraction), (f" {share} %", "strong")]
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
        lines += _edge_table("nodes it holds", [(edge, edge.child) for edge in edges], look)
    return lines


def _event(state: ScreenState, number: int) -> list[Pieces]:
    return json_lines(dict(state.events[number].event))

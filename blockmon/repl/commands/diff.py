"""`\\diff`: what has changed in the graph since a mark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from blockmon.model.format import safe_text, size_short
from blockmon.model.graph import EdgeInfo, GraphModel, NodeInfo, diff
from blockmon.model.source import choose_source
from blockmon.repl.commands import PromptCommand
from blockmon.repl.host import PromptError
from blockmon.repl.printers import Fragments
from blockmon.repl.settings import did_you_mean

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

DEFAULT = "mark"
ADDED, REMOVED, CHANGED = "class:diff.added", "class:diff.removed", "class:diff.changed"

_SIZES = frozenset({"size", "allocated", "cluster_size"})


async def run(session: ReplSession, argument: str) -> bool:
    """Set a mark, or compare with one."""
    words = argument.split()
    if words[:1] == ["mark"] and len(words) <= 2:
        name = words[1] if len(words) == 2 else DEFAULT
        graph = session.marks[name] = await _graph(session)
        again = "\\diff" if name == DEFAULT else f"\\diff {name}"
        session.notice(f"marked the graph: {_counted(len(graph.nodes), 'node')}; {again} compares with it")
        return True
    if len(words) > 1:
        raise PromptError("takes one mark's name, or `mark` and the name of a new one")
    name = words[0] if words else DEFAULT
    old = session.marks.get(name)
    if old is None:
        if name == DEFAULT:
            raise PromptError("there is no mark yet; \\diff mark sets one")
        raise PromptError(f"there is no mark '{name}'{did_you_mean(name, session.marks)}")
    session.last_answer = ""
    await session.host.show(describe(old, await _graph(session)))
    return True


async def _graph(session: ReplSession) -> GraphModel:
    source = choose_source(session.knowledge.schema.commands)
    if source is None:
        raise PromptError("this server does not tell its graph")
    return await source.fetch(session.backend)


def describe(old: GraphModel, new: GraphModel) -> Fragments:
    """The differences, one a line: what is new begins with +, what is gone with -, what is otherwise with ~."""
    found = diff(old, new)
    lines: Fragments = []

    def add(style: str, sign: str, text: str) -> None:
        lines.extend([(style, f"{sign} {safe_text(text)}"), ("", "\n")])

    for name in found.nodes_added:
        add(ADDED, "+", f"node {name}  {_node(new.nodes[name])}")
    for name in found.nodes_removed:
        add(REMOVED, "-", f"node {name}  {_node(old.nodes[name])}")
    for name in found.nodes_changed:
        add(CHANGED, "~", f"node {name}  {_changes(old.nodes[name], new.nodes[name])}")
    for key in found.parents_changed:
        if key not in old.parents:
            add(ADDED, "+", f"{new.parents[key].kind} {new.parent_label(key)}")
        elif key not in new.parents:
            add(REMOVED, "-", f"{old.parents[key].kind} {old.parent_label(key)}")
        else:
            add(CHANGED, "~", f"{new.parents[key].kind} {new.parent_label(key)}")
    before = {edge.key: edge for edge in old.edges}
    for edge in found.edges_added:
        add(ADDED, "+", f"edge {_edge(edge, new)}{_permissions(edge)}")
    for edge in found.edges_removed:
        add(REMOVED, "-", f"edge {_edge(edge, old)}")
    for edge in found.edges_changed:
        add(CHANGED, "~", f"edge {_edge(edge, new)}  {_edge_changes(before[edge.key], edge)}")
    return lines or [("class:notice", "no difference"), ("", "\n")]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _node(node: NodeInfo) -> str:
    parts = [node.driver, size_short(node.size), "ro" if node.read_only else "rw", node.filename]
    return " ".join(part for part in parts if part)


def _changes(old: NodeInfo, new: NodeInfo) -> str:
    changed = []
    for field in fields(NodeInfo):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if was != now:
            changed.append(f"{field.name.replace('_', '-')}: {_shown(field.name, was)} → {_shown(field.name, now)}")
    return ", ".join(changed)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if name in _SIZES:
        return size_short(value)
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value) or "none"
    return str(value) or "none"


def _edge(edge: EdgeInfo, graph: GraphModel) -> str:
    parent = edge.parent if edge.parent_kind == "node" else graph.parent_label(edge.parent)
    arrow = f"─{edge.name}→" if edge.name else "→"
    return f"{parent} {arrow} {edge.child or 'broken'}"


def _permissions(edge: EdgeInfo) -> str:
    if not edge.perm and not edge.shared:
        return ""
    return f"  takes {_set(edge.perm)}; shares {_set(edge.shared)}"


def _edge_changes(old: EdgeInfo, new: EdgeInfo) -> str:
    changed = []
    for what, was, now in (("takes", old.perm, new.perm), ("shares", old.shared, new.shared)):
        parts = [*(f"+{name}" for name in sorted(now - was)), *(f"-{name}" for name in sorted(was - now))]
        if parts:
            changed.append(f"{what} {' '.join(parts)}")
    if old.roles != new.roles:
        changed.append(f"roles: {' '.join(old.roles)} → {' '.join(new.roles)}")
    if old.frozen != new.frozen:
        changed.append("frozen" if new.frozen else "not frozen any more")
    if old.error != new.error:
        changed.append(f"error: {new.error or 'none any more'}")
    if old.filename != new.filename:
        changed.append(f"filename: {new.filename or 'none'}")
    return ", ".join(changed)


def _set(names: frozenset[str]) -> str:
    return " ".join(sorted(names)) or "nothing"


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """The word that sets a mark, and the marks there are."""
    marks = [(name, _counted(len(graph.nodes), "node")) for name, graph in session.marks.items() if name != DEFAULT]
    return [("mark", "set a mark"), *marks]


COMMAND = PromptCommand(
    "diff",
    "[mark [NAME]|NAME]",
    "what has changed in the graph since a mark",
    run,
    complete,
    more="\\diff mark sets the mark, \\diff compares: + is new, - is gone, ~ is otherwise; nodes, edges, permissions.\n"
    "\\diff mark NAME sets another one, \\diff NAME compares with it.",
)

"""Graph changes that are all or nothing: change edges without checking, refresh permissions, then commit or undo.

Everything here runs on the control plane. The nodes whose edges move are drained by the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType

from engine.errors import GenericError
from engine.graph.blockers import BACKING_CHILD_ALLOWS
from engine.graph.edge import Edge, Parent, held_together
from engine.graph.node import Node
from engine.graph.permissions import Perm, Role, error_names

log = logging.getLogger("engine")


class Transaction:
    """Steps that can be undone. As a context manager: commits at the end, undoes everything on an exception."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[[], None] | None, Callable[[], None] | None]] = []
        self._undone: dict[Callable[[], None], None] = {}

    def add(self, *, commit: Callable[[], None] | None = None, undo: Callable[[], None] | None = None) -> None:
        self._steps.append((commit, undo))

    def when_undone(self, function: Callable[[], None]) -> None:
        """Call *function* once after all steps were undone, if they are: when it sees the graph as it was before."""
        self._undone[function] = None

    def commit(self) -> None:
        """Make all steps final, in the order they were added."""
        steps, self._steps = self._steps, []
        self._undone.clear()
        for commit, _ in steps:
            if commit is not None:
                commit()

    def undo(self) -> None:
        """Undo all steps, newest first."""
        steps, self._steps = self._steps, []
        for _, undo in reversed(steps):
            if undo is not None:
                undo()
        last, self._undone = self._undone, {}
        for function in last:
            function()

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.undo()


# -- edges ---------------------------------------------------------------------------------------------------------


def reaches(start: Node, target: Node) -> bool:
    """Whether *target* is *start* or below it."""
    seen: set[Node] = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node is target:
            return True
        if node not in seen:
            seen.add(node)
            stack.extend(edge.child for edge in node.children.values())
    return False


def _link(edge: Edge, child: Node) -> None:
    """Put *edge* on *child*; the parent takes over the child's quiescence before the edge can be seen."""
    if child.quiesce_count:
        edge.quiesces_parent = True
        edge.parent.drained_begin()
        edge.parent.drained_wait()
    edge.child = child
    child.parents.append(edge)
    child.graph.changed()
    if edge.role & Role.COW:
        reason = f"node is used as backing hd of '{edge.parent.parent_name}'"
        child.blockers.block(edge, reason, allow=BACKING_CHILD_ALLOWS)


def _unlink(edge: Edge) -> None:
    edge.child.parents.remove(edge)
    edge.child.graph.changed()
    edge.child.blockers.unblock(edge)
    if edge.quiesces_parent:
        edge.quiesces_parent = False
        edge.parent.drained_end()


def _relink(edge: Edge, to: Node) -> None:
    """Point *edge* at *to*. A parent that is drained stays so throughout: no request may slip into the old child."""
    hold = edge.quiesces_parent
    if hold:
        edge.parent.drained_begin()
    try:
        _unlink(edge)
        _link(edge, to)
    finally:
        if hold:
            edge.parent.drained_end()


def attach(
    txn: Transaction,
    parent: Parent,
    child: Node,
    name: str,
    role: Role = Role.NONE,
    perm: Perm = Perm.NONE,
    shared: Perm = Perm.ALL,
    *,
    holder: Callable[[Edge | None], None] | None = None,
) -> Edge:
    """Add an edge; permissions of node parents are worked out by the next refresh.

    holder: called with the edge (and with None when undone) to store it at parents that are not nodes.
    Errors: GenericError when the edge would close a cycle.
    """
    if isinstance(parent, Node) and reaches(child, parent):
        raise GenericError(f"Making '{child.name}' a {name} child of '{parent.name}' would create a cycle")
    edge = Edge(parent, child, name, role, perm, shared)
    _link(edge, child)
    if isinstance(parent, Node):
        parent.children[name] = edge
    if holder is not None:
        holder(edge)

    def undo() -> None:
        if isinstance(parent, Node):
            parent.children.pop(name, None)
        if holder is not None:
            holder(None)
        _unlink(edge)

    txn.add(undo=undo)
    follow(txn, edge)
    return edge


def linked(start: Node) -> list[Node]:
    """All nodes that a path of links, up or down, or a job that works on several, leads to."""
    found = {start: None}
    pending = [start]
    while pending:
        node = pending.pop()
        near = [edge.child for edge in node.children.values()]
        for edge in node.parents:
            near += [edge.parent] if isinstance(edge.parent, Node) else held_together(edge.parent)
        for other in near:
            if other not in found:
                found[other] = None
                pending.append(other)
    return list(found)


def follow(txn: Transaction, edge: Edge) -> None:
    """*edge* is new: linked nodes share one iothread, so the child's side moves to the parent's, or, when a guest
    device holds the child's side where it is, the parent's to the child's. Errors: GenericError (both are held).
    """
    parent, child = edge.parent, edge.child
    if not isinstance(parent, Node) or parent.iothread is child.iothread:
        return
    wanted, other = parent.iothread, child.iothread
    nodes = linked(child)
    if any(node.iothread is other and _stays(node) for node in nodes):
        if any(node.iothread is wanted and _stays(node) for node in nodes):
            raise GenericError("Cannot change iothread of active block backend")
        wanted = other
    for node in nodes:
        before, node.iothread = node.iothread, wanted
        txn.add(undo=partial(setattr, node, "iothread", before))


def _stays(node: Node) -> bool:
    """Whether a user of *node* can't follow it to another iothread."""
    return any(getattr(edge.parent, "stays_in_iothread", False) for edge in node.parents)


def detach(txn: Transaction, edge: Edge, *, holder: Callable[[Edge | None], None] | None = None) -> None:
    """Remove an edge. Errors: GenericError when it is frozen. The child is released when the transaction commits."""
    parent, child = edge.parent, edge.child
    if edge.frozen:
        raise GenericError(f"Cannot change frozen '{edge.name}' link from '{parent.parent_name}' to '{child.name}'")
    slots = list(parent.children.items()) if isinstance(parent, Node) else []
    position = child.parents.index(edge)
    _unlink(edge)
    if isinstance(parent, Node):
        parent.children.pop(edge.name, None)
    if holder is not None:
        holder(None)

    def undo() -> None:
        _link(edge, child)
        child.parents.remove(edge)
        child.parents.insert(position, edge)
        if isinstance(parent, Node):
            parent.children.clear()
            parent.children.update(slots)
        if holder is not None:
            holder(edge)

    txn.add(commit=lambda: child.graph.release_if_unused(child), undo=undo)


def move(txn: Transaction, edge: Edge, to: Node, *, check_frozen: bool = True) -> None:
    """Point *edge* at another node; the old child is released when the transaction commits."""
    old = edge.child
    if check_frozen and edge.frozen:
        raise GenericError(f"Cannot change '{edge.name}' link to '{old.name}'")
    position = old.parents.index(edge)
    _relink(edge, to)
    if isinstance(edge.parent, Node):
        # As in QEMU a moved edge counts as the newest of its parent; this shows in x-debug-query-block-graph.
        edge.parent.children[edge.name] = edge.parent.children.pop(edge.name)

    def undo() -> None:
        _relink(edge, old)
        old.parents.remove(edge)
        old.parents.insert(position, edge)

    txn.add(commit=lambda: old.graph.release_if_unused(old), undo=undo)
    follow(txn, edge)


def replace_node(txn: Transaction, old: Node, new: Node, *, auto_skip: bool = True) -> list[Edge]:
    """Move the parents of *old* to *new* and return the moved edges.

    Stay behind: edges of parents that stay at their node (jobs), of *new* itself and of nodes below *new* (moving
    would make a loop; an error unless *auto_skip*). Errors: GenericError, also for a frozen edge.
    """
    moved = []
    for edge in list(old.parents):
        parent = edge.parent
        if parent.stays_at_node:
            continue
        if parent is new or (isinstance(parent, Node) and reaches(new, parent)):
            if not auto_skip:
                raise GenericError(f"Cannot change '{edge.name}' link to '{old.name}'")
            continue
        move(txn, edge, new)
        moved.append(edge)
    return moved


def append(txn: Transaction, overlay: Node, base: Node, *, name: str = "backing") -> Edge:
    """Put *overlay* on top of *base*: base becomes its backing (or filtered) child, base's parents move to it."""
    role = Role.FILTERED | Role.PRIMARY if overlay.driver.is_filter else Role.COW
    edge = attach(txn, overlay, base, name, role)
    replace_node(txn, base, overlay)
    return edge


# -- permissions ---------------------------------------------------------------------------------------------------


def describe(edge: Edge) -> str:
    """``PARENT (uses node 'X' as 'NAME' child)``, as permission errors have it."""
    return f"{edge.parent.describe_edge(edge)} (uses node '{edge.child.name}' as '{edge.name}' child)"


def _check_conflicts(node: Node) -> None:
    taken, shared = node.cumulative_permissions()
    if not taken & ~shared:
        return
    # The newest first, as in QEMU: where several conflict it shows which one is told.
    for b in reversed(node.parents):
        for a in reversed(node.parents):
            if a is b:
                continue
            conflict = a.perm & ~b.shared
            if conflict:
                raise GenericError(
                    f"Permission conflict on node '{node.name}': permissions '{error_names(Perm(conflict))}' "
                    f"are both required by {describe(a)} and unshared by {describe(b)}."
                )


def _topological(start: Iterable[Node]) -> list[Node]:
    """All nodes at or below *start*, every parent before its children."""
    order: list[Node] = []
    done: set[Node] = set()
    for root in start:
        if root in done:
            continue
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, children_done = stack.pop()
            if children_done:
                order.append(node)
            elif node not in done:
                done.add(node)
                stack.append((node, True))
                stack.extend((edge.child, False) for edge in node.children.values() if edge.child not in done)
    order.reverse()
    return order


def refresh_permissions(txn: Transaction, nodes: Iterable[Node]) -> None:
    """Work out and check the permissions of *nodes* and of everything below them that is affected.

    Errors: GenericError (conflict, read-only node, or the driver's own, e.g. a lock held by another process).
    """
    pending = set(nodes)
    for node in _topological(list(pending)):
        if node not in pending:
            continue
        _check_conflicts(node)
        taken, shared = node.cumulative_permissions()
        writable = node.writable
        if taken & (Perm.WRITE | Perm.WRITE_UNCHANGED) and not writable:
            if node.read_only:
                raise GenericError("Block node is read-only")
            raise GenericError(f"Read-only block node '{node.name}' cannot support read-write users")
        if taken & (Perm.WRITE | Perm.WRITE_UNCHANGED) and not taken & Perm.RESIZE:
            if node.length % max(node.limits.request_alignment, 1):
                raise GenericError(
                    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment"
                )
        driver = node.driver
        txn.add(commit=partial(driver.set_permissions, taken, shared))
        txn.when_undone(driver.abort_permissions)
        driver.check_permissions(taken, shared, writable=writable)
        for edge in node.children.values():
            perm, share = driver.child_permissions(edge, taken, shared, writable=writable)
            if node.force_share:
                share = Perm.ALL
            if perm != edge.perm or share != edge.shared:
                _set_edge(txn, edge, perm, share)
                pending.add(edge.child)


def _set_edge(txn: Transaction, edge: Edge, perm: Perm, shared: Perm) -> None:
    old = (edge.perm, edge.shared)
    edge.perm, edge.shared = perm, shared
    edge.child.graph.changed()

    def undo() -> None:
        edge.perm, edge.shared = old

    txn.add(undo=undo)


def set_edge_permissions(edge: Edge, perm: Perm, shared: Perm) -> None:
    """Change what a parent that is not a node takes and shares. Errors: GenericError, nothing changed then."""
    with Transaction() as txn:
        _set_edge(txn, edge, perm, shared)
        refresh_permissions(txn, [edge.child])


def loosen(nodes: Iterable[Node]) -> None:
    """Refresh after permissions were given up.

    An error (a driver could not clean up while it still may) is only logged: what was given up can't be taken back.
    """
    try:
        with Transaction() as txn:
            refresh_permissions(txn, [node for node in nodes if not node.closed])
    except GenericError as exc:
        log.warning("permissions that are not needed any more stay taken: %s", exc.desc)


# -- freezing ------------------------------------------------------------------------------------------------------


def freeze_chain(top: Node, bottom: Node | None) -> list[Edge]:
    """Freeze the filter-or-COW links from *top* down to *bottom* (to the end when None); returns the edges.

    Errors: GenericError when a link is frozen already or its node must not be frozen.
    """
    edges = []
    node = top
    while node is not bottom:
        edge = node.filter_or_cow
        if edge is None:
            break
        if edge.frozen or edge.child.never_freeze:
            raise GenericError(f"Cannot freeze '{edge.name}' link to '{edge.child.name}'")
        edges.append(edge)
        node = edge.child
    for edge in edges:
        edge.frozen = True
        edge.child.graph.changed()
    return edges


def check_not_frozen(top: Node, bottom: Node | None) -> None:
    """Raise GenericError if a link between *top* and *bottom* is frozen."""
    node = top
    while node is not bottom:
        edge = node.filter_or_cow
        if edge is None:
            return
        if edge.frozen:
            raise GenericError(f"Cannot change '{edge.name}' link from '{node.name}' to '{edge.child.name}'")
        node = edge.child


def thaw(edges: Iterable[Edge]) -> None:
    for edge in edges:
        edge.frozen = False
        edge.child.graph.changed()

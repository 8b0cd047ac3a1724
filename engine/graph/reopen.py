"""Reopening nodes with other options or flags, several in one atomic step (QEMU's bdrv_reopen_multiple).

A node that is reopened pulls in the children that were opened inline for it, as they inherit options from it. Which
value an option gets, strongest first: given now; given before (only where the old options are kept); inherited from
the parent that is reopened; in force before (again only where they are kept); the default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from engine.errors import GenericError, os_error_text
from engine.graph.change import Transaction, attach, detach, move, reaches, refresh_permissions
from engine.graph.drain import drained
from engine.graph.driver import ReopenState
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Role
from engine.graph.status import skip_implicit_filters
from engine.graph.typed_options import typed_options
from engine.qapi.keyval import crumple, flatten

log = logging.getLogger("engine.graph")

_RESETTABLE = frozenset(
    {"node-name", "discard", "cache.direct", "cache.no-flush", "read-only", "auto-read-only", "detect-zeroes"}
)
"""Generic options that return to their default when they are not given."""
_FLAGS = _RESETTABLE - {"node-name"}
_SAME_OR_GIVEN = ("driver", "force-share")
"""Generic options that may be given only as they are."""


class ReopenQueue:
    """The nodes of one reopen, in order: those asked for, each followed by the children pulled in."""

    def __init__(self) -> None:
        self.states: dict[Node, ReopenState] = {}

    def add(self, node: Node, given: Mapping[str, Any], *, keep_old: bool = False) -> None:
        """Reopen *node* with the options *given* (wire form, nested). keep_old: others stay, else they are reset."""
        self._add(node, given, keep_old, None, None)

    def _add(
        self, node: Node, given: Mapping[str, Any], keep_old: bool, parent: ReopenState | None, role: Role | None
    ) -> None:
        earlier = self.states.get(node)
        child_names = node.driver.child_options | {edge.name for edge in node.children.values()}
        refs = {key: value for key, value in given.items() if key in child_names}
        options = flatten({key: value for key, value in given.items() if key not in child_names})
        if earlier is not None:
            _fill(options, earlier.explicit)
        elif keep_old:
            _fill(options, _own_values(node, node.explicit_options))
        explicit = dict(options)
        if parent is not None and role is not None:
            _fill(options, _inherited(parent.effective, role))
        if keep_old:
            _fill(options, _own_values(node, node.options))
        state = ReopenState(node, None, _is_on(options.get("read-only")))
        state.auto_read_only = _is_on(options.get("auto-read-only"))
        state.cache_direct = _is_on(options.get("cache.direct"))
        state.cache_no_flush = _is_on(options.get("cache.no-flush"))
        if "discard" in options:
            state.discard_unmap = options["discard"] in ("unmap", "on")
        state.detect_zeroes = str(options.get("detect-zeroes") or "off")
        state.explicit, state.effective = explicit, options
        state.references = refs
        state.keeps_old = keep_old
        state.says_backing = "backing" in given
        self.states[node] = state
        for edge in list(node.children.values()):
            child = edge.child
            if child.inherits_from is not node:
                continue
            ref = refs.get(edge.name, _ABSENT)
            if ref is None or isinstance(ref, str):
                if ref != child.name:
                    continue  # replaced: the old child stays as it is
                refs.pop(edge.name)
                self._add(child, {}, True, state, edge.role)
            else:
                refs.pop(edge.name, None)
                self._add(child, ref if isinstance(ref, Mapping) else {}, keep_old, state, edge.role)
        for name, ref in list(refs.items()):
            if isinstance(ref, Mapping):
                # Options for a child that is not ours to change, or not there.
                del refs[name]
                options.update(flatten({name: ref}))

    def run(self) -> None:
        """Prepare all, refresh permissions once, then commit all; on any failure nothing has changed.

        Control plane. Errors: GenericError.
        """
        states = list(self.states.values())
        with drained(self.states):
            for state in states:
                try:
                    state.node.flush()
                except OSError as exc:
                    raise GenericError(f"Error flushing drive: {os_error_text(exc)}") from exc
            prepared: list[ReopenState] = []
            touched: list[Node] = []
            try:
                with Transaction() as txn:
                    for state in states:
                        if state.node.ejected:
                            # QEMU 7.2 dies of this.
                            raise GenericError(f"Block device {state.node.name} is ejected")
                        state.node.driver.check_reopen(state)
                        _check_flags(state)
                        _prepare_options(state)
                        state.node.driver.reopen_prepare(state)
                        prepared.append(state)
                        touched += _change_children(txn, state)
                        _check_unchanged(state)
                    for state in states:
                        state.node.pending_read_only = state.read_only
                    refresh_permissions(txn, [*self.states, *touched])
            except BaseException:
                for state in reversed(prepared):
                    state.node.driver.reopen_abort(state)
                raise
            finally:
                for state in states:
                    state.node.pending_read_only = None
            for state in reversed(states):
                state.take_effect()
                state.node.driver.reopen_commit(state)
            _refresh_limits(self.states)
            for state in reversed(states):
                state.node.driver.reopen_commit_post(state)
        if states:
            states[0].node.graph.changed()


_ABSENT = object()


def _refresh_limits(nodes: Iterable[Node]) -> None:
    """Limits of *nodes* and of all that build upon theirs, from below upwards."""
    pending = dict.fromkeys(nodes)
    while pending:
        node = next(iter(pending))
        del pending[node]
        before = node.driver.limits
        node.driver.refresh_limits()
        if node.driver.limits != before or node.driver.is_protocol:
            pending.update(dict.fromkeys(edge.parent for edge in node.parents if isinstance(edge.parent, Node)))


def _fill(options: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        options.setdefault(key, value)


def _own_values(node: Node, options: Mapping[str, Any]) -> dict[str, Any]:
    """*options* of *node* as flat keys, without those of its children."""
    names = node.driver.child_options
    return flatten({key: value for key, value in options.items() if key not in names})


def _is_on(value: Any) -> bool:
    return value in (True, "on")


def _inherited(parent: Mapping[str, Any], role: Role) -> dict[str, Any]:
    """Options a child gets from the options of its parent, flat keys on both sides."""
    result = {key: parent[key] for key in ("cache.direct", "cache.no-flush", "force-share") if key in parent}
    if role & Role.COW:
        result.update({"read-only": True, "auto-read-only": False})
    else:
        result.update({key: parent[key] for key in ("read-only", "auto-read-only") if key in parent})
    # Formats are careful about what they discard, whatever the guest may do.
    result["discard"] = "unmap"
    return result


def _check_flags(state: ReopenState) -> None:
    node = state.node
    if state.detect_zeroes == "unmap" and not state.discard_unmap:
        raise GenericError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    if node.force_share and not state.read_only:
        raise GenericError("force-share=on can only be used with read-only images")


def _prepare_options(state: ReopenState) -> None:
    """Check what is to return to its default, and give the driver its options if they are other than before."""
    node, driver = state.node, state.node.driver
    old = _own_values(node, node.options)
    mutable = driver.mutable_options
    for key in old:
        if key not in state.effective and key not in _RESETTABLE and not _is_among(key, mutable):
            if key == "driver":
                state.effective[key] = old[key]
                continue
            raise GenericError(f"Option '{key}' cannot be reset to its default value")
    own = {key: value for key, value in state.effective.items() if not _is_generic(key)}
    before = {key: value for key, value in old.items() if not _is_generic(key)}
    if own == before:
        return
    mutable |= driver.mutable_when_given
    if any(not _is_among(key, mutable) and not _is_same(value, before.get(key)) for key, value in own.items()):
        return  # an error, which comes after those of the driver
    state.options = typed_options(driver, crumple(own))


def _check_unchanged(state: ReopenState) -> None:
    """Refuse options that the driver can't change."""
    node, driver = state.node, state.node.driver
    old = _own_values(node, node.options)
    for key, value in state.effective.items():
        if key in _FLAGS or _is_among(key, driver.mutable_options | driver.mutable_when_given):
            continue
        current = node.name if key == "node-name" else old.get(key)
        if not _is_same(value, current):
            raise GenericError(f"Cannot change the option '{key}'")
    for name, ref in state.references.items():
        edge = node.children.get(name)
        if edge is None or ref != edge.child.name:
            raise GenericError(f"Cannot change the option '{name}'")


def _is_generic(key: str) -> bool:
    return key in _RESETTABLE or key in _SAME_OR_GIVEN


def _is_among(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def _is_same(new: Any, old: Any) -> bool:
    if new == old and isinstance(new, bool) == isinstance(old, bool):
        return True
    # A node opened by a file name has the text of what is a number or a switch here.
    if isinstance(old, str) and isinstance(new, (bool, int)):
        return old == ({True: "on", False: "off"}[new] if isinstance(new, bool) else str(new))
    return False


# -- children --------------------------------------------------------------------------------------------------------


def _change_children(txn: Transaction, state: ReopenState) -> list[Node]:
    """Put other nodes in the place of the backing and the file child, where asked for; the nodes affected."""
    node = state.node
    if node.driver.supports_backing and not state.keeps_old and not state.says_backing:
        if "backing" in node.children or node.auto_backing_file:
            raise GenericError(f"backing is missing for '{node.name}'")
    touched: list[Node] = []
    for name in ("backing", "file"):
        if name in state.references:
            touched += _change_child(txn, node, name, state.references.pop(name))
    return touched


def _change_child(txn: Transaction, node: Node, name: str, ref: str | None) -> list[Node]:
    edge = node.children.get(name)
    old = edge.child if edge is not None else None
    new: Node | None = None
    if ref is not None:
        new = node.graph.find(None, ref)
        if reaches(new, node):
            raise GenericError(f"Making '{ref}' a {name} child of '{node.name}' would create a cycle")
    if new is old:
        return []
    if old is not None:
        if skip_implicit_filters(old) is new:
            return []
        if old.implicit:
            raise GenericError(f"Cannot replace implicit {name} child of {node.name}")
    elif node.driver.is_filter:
        raise GenericError(f"'{node.name}' is a {node.driver.name} filter node that does not support a {name} child")
    if edge is not None and edge.frozen:
        assert old is not None
        raise GenericError(f"Cannot change frozen '{name}' link from '{node.name}' to '{old.name}'")
    touched = [child for child in (old, new) if child is not None]
    if edge is None:
        assert new is not None
        attach(txn, node, new, name, Role.COW)
    elif new is None:
        detach(txn, edge)
    else:
        move(txn, edge, new)
    if name == "backing":
        _note_backing(txn, node, new)
    _note_heritage(txn, node, old, new, edge)
    return touched


def _note_backing(txn: Transaction, node: Node, new: Node | None) -> None:
    before = node.no_backing
    node.no_backing = new is None

    def undo() -> None:
        node.no_backing = before

    txn.add(undo=undo)


def _note_heritage(txn: Transaction, node: Node, old: Node | None, new: Node | None, edge: Edge | None) -> None:
    """A child that leaves its parent inherits nothing of it any more; what comes back from below inherits again."""
    if old is None or old.inherits_from is not node:
        return
    if any(other is not edge and other.child is old for other in node.children.values()):
        return
    heir = new if new is not None and reaches(new, old) else None
    before = (old.inherits_from, heir.inherits_from if heir is not None else None)
    if heir is not None:
        heir.inherits_from = node
    else:
        old.inherits_from = None

    def undo() -> None:
        old.inherits_from = before[0]
        if heir is not None:
            heir.inherits_from = before[1]

    txn.add(undo=undo)


# -- for the engine itself -------------------------------------------------------------------------------------------


def reopen(node: Node, given: Mapping[str, Any], *, keep_old: bool = False) -> None:
    """Reopen one node; see ReopenQueue. Errors: GenericError."""
    queue = ReopenQueue()
    queue.add(node, given, keep_old=keep_old)
    queue.run()


def set_read_only(node: Node, read_only: bool) -> None:
    """Make *node* read-only or writable, with the children opened for it; all else stays. Errors: GenericError."""
    if node.read_only != read_only:
        reopen(node, {"read-only": read_only}, keep_old=True)


def back_to_read_only(node: Node) -> None:
    """Make *node* read-only again after an operation that needed it writable. Who writes to it since keeps it so."""
    try:
        set_read_only(node, True)
    except GenericError as exc:
        log.warning("node %s stays writable: %s", node.name, exc.desc)

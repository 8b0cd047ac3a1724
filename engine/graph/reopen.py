"""Reopening nodes with other options or flags, several in one atomic step (QEMU's bdrv_reopen_multiple)."""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import GenericError, os_error_text
from engine.graph.change import Transaction, refresh_permissions
from engine.graph.drain import drained
from engine.graph.driver import ReopenState
from engine.graph.node import Node
from engine.graph.permissions import Role


def reopen(states: Iterable[ReopenState]) -> None:
    """Prepare all, refresh permissions once, then commit all; on any failure nothing has changed.

    Control plane. Errors: GenericError.
    """
    queue = list(states)
    with drained(state.node for state in queue):
        for state in queue:
            try:
                state.node.flush()
            except OSError as exc:
                raise GenericError(f"Error flushing drive: {os_error_text(exc)}") from exc
        prepared: list[ReopenState] = []
        try:
            with Transaction() as txn:
                for state in queue:
                    state.node.driver.reopen_prepare(state)
                    prepared.append(state)
                    state.node.pending_read_only = state.read_only
                refresh_permissions(txn, [state.node for state in queue])
        except BaseException:
            for state in reversed(prepared):
                state.node.driver.reopen_abort(state)
            raise
        finally:
            for state in queue:
                state.node.pending_read_only = None
        for state in reversed(queue):
            state.node.read_only = state.read_only
            state.node.driver.reopen_commit(state)
        for state in reversed(queue):
            state.node.driver.reopen_commit_post(state)
    if queue:
        queue[0].node.graph.changed()


def read_only_states(node: Node, read_only: bool) -> list[ReopenState]:
    """What to reopen to make *node* read-only or writable: itself and the children that inherit the flag from it."""
    states = [ReopenState(node, None, read_only)]
    for edge in node.children.values():
        child = edge.child
        if edge.role & Role.COW or child.inherits_from is not node or "read-only" in child.explicit_options:
            continue
        if child.read_only != read_only:
            states.extend(read_only_states(child, read_only))
    return states


def set_read_only(node: Node, read_only: bool) -> None:
    """Make *node* read-only or writable, with the children opened for it. Errors: GenericError."""
    if node.read_only == read_only:
        return
    if not read_only and node.force_share:
        raise GenericError("force-share=on can only be used with read-only images")
    reopen(read_only_states(node, read_only))

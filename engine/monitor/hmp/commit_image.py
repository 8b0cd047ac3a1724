"""What HMP's commit does: write a layer's data into its backing file and empty the layer; the graph stays as it is."""

from __future__ import annotations

import errno
import os
from typing import Any

from engine.copying.copier import BackendTarget, Copier, CopyError
from engine.drivers.filter.internal import CommitTopDriver, new_filter_node
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.blockers import Op
from engine.graph.change import Transaction, attach, refresh_permissions
from engine.graph.drain import drained
from engine.graph.graph import Graph
from engine.graph.node import Node
from engine.graph.permissions import Perm, Role
from engine.graph.reopen import back_to_read_only, set_read_only
from engine.graph.status import is_allocated, skip_implicit_filters
from engine.jobs.chain import set_backing
from engine.monitor.threads import in_thread


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


async def commit_image(graph: Graph, node: Node) -> None:
    """Commit *node*; its users wait meanwhile. Control plane. Errors: OSError, GenericError."""
    top = skip_implicit_filters(node)
    edge = top.backing
    if edge is None:
        raise _fail(errno.ENOTSUP)
    base = edge.child
    if top.blockers.reason(Op.COMMIT_SOURCE) is not None or base.blockers.reason(Op.COMMIT_TARGET) is not None:
        raise _fail(errno.EBUSY)
    owner = object()
    for member in (top, base):
        member.pins += 1
        member.blockers.block(owner, "it is being committed")
    try:
        was_read_only = base.read_only
        if was_read_only:
            try:
                set_read_only(base, False)
            except GenericError as exc:
                raise _fail(errno.EACCES) from exc
        try:
            await _commit(graph, top, base)
        finally:
            if was_read_only:
                back_to_read_only(base)
    finally:
        for member in (top, base):
            member.blockers.unblock(owner)
            graph.unpin(member)


async def _commit(graph: Graph, top: Node, base: Node) -> None:
    # What *top* gets to see of the base is inconsistent from the first write on; other overlays of the base keep their
    # own links, and their permissions keep this from happening to them.
    between = new_filter_node(graph, CommitTopDriver, None, read_only=True)
    try:
        with Transaction() as txn:
            attach(txn, between, base, "backing", Role.FILTERED | Role.PRIMARY)
            refresh_permissions(txn, [base])
        with drained([top, base]):
            set_backing(top, between)
        try:
            writer = graph.add_backend("user", "", base, Perm.WRITE | Perm.RESIZE, Perm.ALL)
            try:
                with drained([top]):
                    await in_thread(lambda: _copy(top, writer))
            finally:
                graph.remove_backend(writer)
        finally:
            with drained([top, base]):
                set_backing(top, base)
    finally:
        graph.unpin(between)


def _copy(top: Node, writer: BlockBackend) -> None:
    length = top.length
    if writer.length < length:
        writer.truncate(length, exact=False)
    copier = Copier(top, BackendTarget(writer))
    offset = 0
    while offset < length:
        wanted, run = is_allocated(top, offset, length - offset)
        if wanted:
            try:
                copier.copy(offset, run)
            except CopyError as exc:
                raise exc.error from exc
        offset += run
    writer.flush()
    # Only now that the base has it all may the layer lose it.
    make_empty: Any = getattr(top.driver, "make_empty", None)
    if make_empty is not None and not top.read_only:
        make_empty()
        top.mark_unflushed()
        top.flush()

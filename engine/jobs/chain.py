"""Backing chains as jobs need them: finding images by name, and changing what is backing what."""

from __future__ import annotations

import os

from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.change import Transaction, attach, detach, move, refresh_permissions, replace_node
from engine.graph.drain import drained
from engine.graph.filenames import dirname_of, full_backing_name, protocol_of, refresh_filename
from engine.graph.graph import Graph
from engine.graph.node import Node
from engine.graph.permissions import Role
from engine.graph.reopen import back_to_read_only, set_read_only
from engine.graph.status import backing_chain_next, chain, skip_filters


def root_node(graph: Graph, name: str) -> Node:
    """The node or device called *name*, which no node or job is to be a parent of. Errors: GenericError."""
    node = graph.find_either(name)
    if not all(isinstance(edge.parent, BlockBackend) for edge in node.parents):
        raise GenericError("Need a root block node")
    return node


def find_base(node: Node) -> Node:
    """The bottom of the backing chain, filters not counted; *node* itself when it has no backing image."""
    below = skip_filters(node)
    while (next_below := backing_chain_next(below)) is not None:
        below = next_below
    return below


def find_backing_image(node: Node, name: str) -> Node | None:
    """The backing image of *node* or of one below it that the file name *name* means (QEMU's bdrv_find_backing_image).

    A name is taken as seen from the image that has it as its backing file, symbolic links resolved.
    """
    with_protocol = protocol_of(name) is not None
    current = skip_filters(node)
    while (below := backing_chain_next(current)) is not None:
        if current.backing_overridden:
            refresh_filename(below)
            found = name == below.filename
        elif with_protocol or protocol_of(current.auto_backing_file) is not None:
            found = name in (current.auto_backing_file, _full_name(current))
        else:
            wanted = _full_name(current, name)
            actual = _full_name(current)
            found = (
                wanted is not None
                and actual is not None
                and os.path.exists(wanted)
                and os.path.exists(actual)
                and os.path.realpath(wanted) == os.path.realpath(actual)
            )
        if found:
            return below
        current = below
    return None


def _full_name(node: Node, name: str | None = None) -> str | None:
    try:
        if name is not None:
            return name if name.startswith("/") else dirname_of(node) + name
        return full_backing_name(node)
    except GenericError:
        return None


def inherits_from(node: Node, ancestor: Node) -> bool:
    """Whether *node* got its inherited options from *ancestor*, at any distance."""
    current: Node | None = node
    while current is not None:
        if current is ancestor:
            return True
        current = current.inherits_from
    return False


def set_backing(node: Node, backing: Node | None) -> None:
    """Make *backing* the backing node of *node*, or leave it without. The caller drains. Errors: GenericError."""
    edge = node.backing
    if edge is None and backing is None:
        return
    if backing is not None:
        backing.pins += 1
    try:
        if backing is not None and inherits_from(backing, node):
            backing.inherits_from = node
        with Transaction() as txn:
            if edge is None:
                assert backing is not None
                attach(txn, node, backing, "backing", Role.COW)
            elif backing is None:
                detach(txn, edge)
            elif edge.child is not backing:
                move(txn, edge, backing)
            refresh_permissions(txn, [node])
    finally:
        if backing is not None:
            node.graph.unpin(backing)
    node.graph.changed()


def write_backing_string(node: Node, filename: str | None, fmt: str | None) -> None:
    """Put the name and format of the backing file into the image of *node*. Errors: OSError, GenericError."""
    node.driver.change_backing_string(filename, fmt)
    refresh_filenames_above(node)


def refresh_filenames_above(node: Node) -> None:
    """Work out anew the file names that depend on *node*: its own and those of the nodes that show it."""
    seen = {node}
    stack = [node]
    tops = []
    while stack:
        current = stack.pop()
        above = [edge.parent for edge in current.parents if isinstance(edge.parent, Node)]
        if not above:
            tops.append(current)
        for parent in above:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    for top in tops:
        refresh_filename(top)
    node.graph.changed()


def refresh_limits_above(node: Node) -> None:
    """Have the nodes that show *node* take its limits over."""
    for edge in node.parents:
        if isinstance(edge.parent, Node):
            edge.parent.driver.refresh_limits()
            refresh_limits_above(edge.parent)


def drop_intermediate(top: Node, base: Node, backing_file: str | None) -> None:
    """Take *top* down to the node above *base* out of the chain.

    Whoever was above *top* is above *base* then, and has its header say so, by the name *backing_file* (*base*'s own
    when None).

    Errors: GenericError, nothing changed; OSError when a header could not be written, then the graph has changed.
    """
    graph = top.graph
    if backing_file is None:
        refresh_filename(base)
        backing_file = base.filename
    first = skip_filters(top)
    takes_over = inherits_from(base, first)
    new_source = first.inherits_from
    for node in (top, base):
        node.pins += 1
    try:
        with drained([top, base]):
            with Transaction() as txn:
                moved = replace_node(txn, top, base, auto_skip=False)
                refresh_permissions(txn, [base, *(edge.parent for edge in moved if isinstance(edge.parent, Node))])
            if takes_over:
                base.inherits_from = new_source
            for edge in moved:
                parent = edge.parent
                if edge.role & Role.COW and isinstance(parent, Node):
                    _rewrite_overlay(parent, backing_file, base.driver.name)
    finally:
        for node in (base, top):
            graph.unpin(node)
    graph.changed()


def _rewrite_overlay(overlay: Node, backing_file: str, fmt: str) -> None:
    was_read_only = overlay.read_only
    if was_read_only:
        set_read_only(overlay, False)
    try:
        write_backing_string(overlay, backing_file, fmt)
    finally:
        if was_read_only:
            back_to_read_only(overlay)


def insert_filter(filter_node: Node, below: Node, *, name: str) -> None:
    """Put the filter *filter_node* above *below*, whose parents move to it. Errors: GenericError."""
    with drained([below]), Transaction() as txn:
        edge = attach(txn, filter_node, below, name, Role.FILTERED | Role.PRIMARY)
        replace_node(txn, below, filter_node)
        refresh_permissions(txn, [filter_node, below])
        filter_node.driver.refresh_limits()
        assert edge.child is below
    refresh_filename(filter_node)
    below.graph.changed()


def drop_filter(filter_node: Node) -> None:
    """Take a filter out: its parents move to the node below, and it goes. Errors: GenericError."""
    edge = filter_node.filter_or_cow
    assert edge is not None
    below = edge.child
    graph = filter_node.graph
    filter_node.pins += 1
    below.pins += 1
    try:
        with drained([filter_node, below]), Transaction() as txn:
            replace_node(txn, filter_node, below)
            detach(txn, edge)
            refresh_permissions(txn, [below])
    finally:
        filter_node.monitor_owned = False
        graph.unpin(below)
        graph.unpin(filter_node)
    refresh_filenames_above(below)


def above(top: Node, base: Node | None) -> Node:
    """The node in the chain of *top* right above *base* (the last one when None)."""
    last = top
    for node in chain(top):
        if node is base:
            break
        last = node
    return last

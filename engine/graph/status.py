"""Walks over backing chains: which layer holds this byte, where on the host does it lie."""

from __future__ import annotations

from collections.abc import Iterator

from engine.graph.driver import Extent, Status
from engine.graph.node import Node

_DATA, _ZERO, _VALID = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID)
_ALLOCATED, _EOF, _RAW = int(Status.ALLOCATED), int(Status.EOF), int(Status.RAW)


def skip_filters(node: Node) -> Node:
    """The first node at or below *node* that is not a filter."""
    while (edge := node.filtered) is not None:
        node = edge.child
    return node


def skip_implicit_filters(node: Node) -> Node:
    """The first node at or below *node* that is not an implicit filter."""
    while node.implicit and (edge := node.filtered) is not None:
        node = edge.child
    return node


def backing_chain_next(node: Node) -> Node | None:
    """The next non-filter node of the backing chain, or None."""
    cow = skip_filters(node).backing
    return skip_filters(cow.child) if cow is not None else None


def chain(node: Node) -> Iterator[Node]:
    """*node* and every node below it by filtered and COW links, filters included."""
    current: Node | None = node
    while current is not None:
        yield current
        edge = current.filter_or_cow
        current = edge.child if edge is not None else None


def find_overlay(active: Node, base: Node) -> Node | None:
    """The nearest non-filter node above *base* in the chain of *active*."""
    base = skip_filters(base)
    node: Node | None = skip_filters(active)
    while node is not None:
        below = backing_chain_next(node)
        if below is base:
            return node
        node = below
    return None


def in_chain(active: Node, node: Node) -> bool:
    """Whether *node* belongs to the chain of *active* (filters included)."""
    return any(member is node for member in chain(active))


def status_above(
    top: Node, base: Node | None, offset: int, length: int, want_zero: bool = True, *, include_base: bool = False
) -> tuple[Extent, int]:
    """(extent, depth): what is at *offset* in the layers from *top* down to *base* (excluded unless *include_base*).

    depth counts from 0 at *top* and names the layer that decides the content. An extent without ALLOCATED: no layer in
    the range decides; then depth is that of the last layer looked at. *base* None means the whole chain.
    """
    if top is base and not include_base:
        return Extent(min(length, max(top.length - offset, 1)), 0), 0
    extent = top.block_status(offset, length, want_zero)
    total = top.length
    depth = 0
    node = top
    while not extent.flags & _ALLOCATED and node is not base and offset < total:
        edge = node.filter_or_cow
        if edge is None or (edge.child is base and not include_base):
            break
        node = edge.child
        depth += 1
        if offset >= node.length:
            # A layer shorter than its overlay reads as zeros past its end and hides what is below it.
            extent = Extent(extent.length, _ZERO | _ALLOCATED)
            break
        extent = node.block_status(offset, extent.length, want_zero)
    flags = extent.flags & ~_EOF
    if offset + extent.length >= total:
        flags |= _EOF
    return Extent(extent.length, flags, extent.node, extent.offset), depth


def is_allocated(node: Node, offset: int, length: int) -> tuple[bool, int]:
    """(whether this layer decides the content at *offset*, for how many bytes)."""
    extent = node.block_status(offset, length, False)
    return bool(extent.flags & _ALLOCATED), extent.length


def allocated_above(top: Node, base: Node | None, include_base: bool, offset: int, length: int) -> tuple[int, int]:
    """(depth, run): which layer from *top* (1) down to *base* decides the content at *offset*; depth 0: none does."""
    extent, depth = status_above(top, base, offset, length, False, include_base=include_base)
    return (depth + 1 if extent.flags & _ALLOCATED else 0), extent.length


def resolve_host(extent: Extent) -> Extent:
    """Follow an OFFSET_VALID extent down through pass-through drivers to the protocol node that holds it.

    The result lacks OFFSET_VALID where a layer on the way transforms the bytes.
    """
    while extent.flags & _VALID and extent.node is not None and not extent.node.driver.is_protocol:
        below = extent.node.driver.block_status(extent.offset, extent.length, False)
        if not below.flags & (_RAW | _VALID) or below.node is None:
            return Extent(min(extent.length, below.length), extent.flags & ~_VALID)
        extent = Extent(min(extent.length, below.length), extent.flags, below.node, below.offset)
    return extent

"""Commands about file descriptors that a client passes over its socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from engine.descriptors.passing import of_client
from engine.qapi import Int, Struct, command

if TYPE_CHECKING:
    from engine.engine import Engine


class AddfdInfo(Struct):
    """Where a descriptor went. fd: its number in this process."""

    fdset_id: Int
    fd: Int


class FdsetFdInfo(Struct):
    """A descriptor of a set. opaque: what whoever passed it wrote down about it."""

    fd: Int
    opaque: str | None = None


class FdsetInfo(Struct):
    """A set of descriptors."""

    fdset_id: Int
    fds: list[FdsetFdInfo]


@command(since="1.2")
def add_fd(engine: Engine, *, fdset_id: Int | None = None, opaque: str | None = None) -> AddfdInfo:
    """Put the descriptor that comes with this command into a set, which can be opened as /dev/fdset/ID.

    fdset-id: the set; the lowest free number by default
    opaque: a note for query-fdsets
    """
    fd = of_client().take()
    try:
        number = engine.graph.fdsets.add(fd, fdset_id, opaque)
    except BaseException:
        os.close(fd)
        raise
    return AddfdInfo(fdset_id=number, fd=fd)


@command(since="1.2")
def remove_fd(engine: Engine, *, fdset_id: Int, fd: Int | None = None) -> None:
    """Remove a descriptor from its set. Nodes that have opened it keep their copies.

    fdset-id: the set
    fd: the descriptor; all by default
    """
    engine.graph.fdsets.remove(fdset_id, fd)


@command(since="1.2")
def query_fdsets(engine: Engine) -> list[FdsetInfo]:
    """List the sets of descriptors."""
    return [
        FdsetInfo(fdset_id=found.id, fds=[FdsetFdInfo(fd=each.fd, opaque=each.opaque) for each in found.fds])
        for found in engine.graph.fdsets.sets
    ]


@command(since="0.14")
def getfd(engine: Engine, *, fdname: str) -> None:
    """Give the descriptor that comes with this command a name, for commands that take one (socket addresses).

    fdname: the name; it does not begin with a digit
    """
    of_client().name(fdname)


@command(since="0.14")
def closefd(engine: Engine, *, fdname: str) -> None:
    """Close a descriptor that was given a name and not used.

    fdname: the name
    """
    of_client().close_named(fdname)

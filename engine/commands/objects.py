"""Objects and what nodes have to do with them: object-add, object-del, x-blockdev-set-iothread, query-iothreads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import engine.objects.types  # noqa: F401  (registers them)
from engine.errors import GenericError
from engine.graph.iothreads import has_backend, set_iothread
from engine.objects.base import ObjectOptions
from engine.objects.iothread import IOThread
from engine.qapi import Alternate, Int, Null, Struct, command

if TYPE_CHECKING:
    from engine.engine import Engine

StrOrNull: TypeAlias = Annotated[str | Null, Alternate("StrOrNull", s=str, n=Null)]


@command(since="2.0", boxed=True, allow_preconfig=True)
def object_add(engine: Engine, options: ObjectOptions) -> None:
    """Create an object."""
    engine.objects.add(options)


@command(since="2.0", allow_preconfig=True)
def object_del(engine: Engine, *, id: str) -> None:
    """Delete an object that nothing uses.

    id: its name
    """
    engine.objects.delete(id)


@command(since="2.12", features=("unstable",), allow_preconfig=True)
def x_blockdev_set_iothread(engine: Engine, *, node_name: str, iothread: StrOrNull, force: bool | None = None) -> None:
    """Move a node, and all nodes linked with it, to an iothread or back to the main loop.

    node_name: the node
    iothread: name of the iothread, null for the main loop
    force: move the node even if a device or an export uses it
    """
    node = engine.graph.node(node_name)
    if not force and has_backend(node):
        raise GenericError(
            f"Node {node_name} is associated with a BlockBackend and could be in use "
            "(use force=true to override this check)"
        )
    thread: IOThread | None = None
    if isinstance(iothread, str):
        thread = engine.objects.get(iothread, IOThread)
        if thread is None:
            raise GenericError(f"Cannot find iothread {iothread}")
    set_iothread(node, thread)


class IOThreadInfo(Struct):
    """An iothread.

    thread_id: the system's id of its thread. poll_max_ns, poll_grow, poll_shrink, aio_max_batch: as it was made.
    """

    id: str
    thread_id: Int
    poll_max_ns: Int
    poll_grow: Int
    poll_shrink: Int
    aio_max_batch: Int


@command(since="2.0", allow_preconfig=True)
def query_iothreads(engine: Engine) -> list[IOThreadInfo]:
    """List the iothreads."""
    return [
        IOThreadInfo(
            id=found.id,
            thread_id=found.thread_id,
            poll_max_ns=found.get_property("poll-max-ns"),
            poll_grow=found.get_property("poll-grow"),
            poll_shrink=found.get_property("poll-shrink"),
            aio_max_batch=found.get_property("aio-max-batch"),
        )
        for found in engine.objects.all()
        if isinstance(found, IOThread)
    ]

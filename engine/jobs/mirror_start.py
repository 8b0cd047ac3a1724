"""Starting a mirror: the filter goes above the source, then the job takes hold of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from engine.drivers.filter.internal import MirrorTopDriver, new_filter_node
from engine.errors import GenericError
from engine.graph.node import Node
from engine.graph.status import in_chain, skip_filters
from engine.jobs.chain import drop_filter, insert_filter
from engine.jobs.mirror import MirrorJob
from engine.jobs.mirror_settings import MirrorSettings
from engine.jobs.transaction import JobTransaction

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

J = TypeVar("J", bound=MirrorJob)


def start_mirror(
    job_class: type[J],
    manager: JobManager,
    job_id: str | None,
    source: Node,
    target: Node,
    settings: MirrorSettings,
    *,
    speed: int,
    filter_node_name: str | None,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> J:
    """Start mirroring *source*, which may be written to, into *target*. job_id None: the name of the device.

    Errors: GenericError, the graph is as before then.
    """
    graph = manager.graph
    if settings.buf_size < 0:
        raise GenericError("Invalid parameter 'buf-size'")
    if skip_filters(source) is skip_filters(target):
        raise GenericError("Can't mirror node into itself")
    filter_node = new_filter_node(graph, MirrorTopDriver, filter_node_name, read_only=False)
    driver = filter_node.driver
    assert isinstance(driver, MirrorTopDriver)
    driver.active_commit = in_chain(source, target)
    inserted = False
    try:
        insert_filter(filter_node, source, name="backing")
        inserted = True
        job = job_class(
            manager,
            job_id,
            source,
            target,
            filter_node,
            settings,
            speed=speed,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
    except BaseException:
        try:
            if inserted:
                drop_filter(filter_node)
        finally:
            graph.unpin(filter_node)
        raise
    graph.unpin(filter_node)
    job.start()
    return job

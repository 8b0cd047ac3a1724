"""x-blockdev-amend: change the format's own options of an image in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.graph.driver import drivers
from engine.graph.options import BlockdevAmendOptions
from engine.qapi import command

if TYPE_CHECKING:
    from engine.engine import Engine


@command(since="5.1", features=("unstable",), allow_preconfig=True)
def x_blockdev_amend(
    engine: Engine, *, job_id: str, node_name: str, options: BlockdevAmendOptions, force: bool | None = None
) -> None:
    """Change an image in a job, which stays until job-dismiss so that its error can be read.

    job_id: the job's id
    node_name: the node of the image
    options: what to change, and the node's driver
    force: do it even if data may become unreadable by that
    """
    node = engine.graph.find(None, node_name)
    name = str(getattr(options, "driver"))  # noqa: B009  (the tag of the union)
    driver = drivers.get(name)
    if driver is None:
        raise GenericError(f"Block driver '{name}' not found or not supported")
    if node.driver.name != name:
        raise GenericError("x-blockdev-amend doesn't support changing the block driver")
    if driver.AmendOptions is None:
        raise GenericError("Driver does not support x-blockdev-amend")
    from engine.jobs.amend import AmendJob

    AmendJob(engine.jobs, job_id, node, options.branch, bool(force)).start()

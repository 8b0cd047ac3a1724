"""block-commit of a layer that is written to: a mirror of it, and of all above the base, into the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.graph.node import Node
from engine.graph.reopen import back_to_read_only, set_read_only
from engine.jobs.mirror import MirrorJob
from engine.jobs.mirror_settings import MirrorSettings
from engine.jobs.mirror_start import start_mirror
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import BlockdevOnError, JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager


class ActiveCommitJob(MirrorJob):
    """One active commit: when it is completed, everybody on the source moves to the base.

    base_was_read_only: the base was made writable for the job; it becomes read-only again unless it is moved to.
    """

    job_type = JobType.COMMIT
    base_was_read_only = False

    def leave_target(self) -> None:
        if self.base_was_read_only:
            back_to_read_only(self._target_node)


def start_active_commit(
    manager: JobManager,
    job_id: str | None,
    source: Node,
    base: Node,
    *,
    speed: int,
    on_error: BlockdevOnError,
    filter_node_name: str | None,
    auto_finalize: bool = True,
    auto_dismiss: bool = True,
    transaction: JobTransaction | None = None,
) -> ActiveCommitJob:
    """Start committing *source*, which may be written to, and the layers below it into *base*. Errors: GenericError."""
    was_read_only = base.read_only
    if was_read_only:
        set_read_only(base, False)
    try:
        job = start_mirror(
            ActiveCommitJob,
            manager,
            job_id,
            source,
            base,
            MirrorSettings(base=base, on_source_error=on_error, on_target_error=on_error),
            speed=speed,
            filter_node_name=filter_node_name,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
            transaction=transaction,
        )
    except BaseException:
        if was_read_only:
            back_to_read_only(base)
        raise
    # The job ends on the control plane, after this.
    job.base_was_read_only = was_read_only
    return job

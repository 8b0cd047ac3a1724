"""x-blockdev-amend: change an image that is open in a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.graph.node import Node
from engine.jobs.job import Job
from engine.jobs.types import JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager


class AmendJob(Job):
    """Runs a driver's amend(). It is not dismissed by itself, so that a client can read the error."""

    job_type = JobType.AMEND

    def __init__(self, manager: JobManager, job_id: str, node: Node, options: Any, force: bool) -> None:
        """options: an instance of the driver's AmendOptions. Errors: GenericError."""
        super().__init__(manager, job_id, auto_dismiss=False)
        self._node = node
        self._options = options
        self._force = force
        node.pins += 1

    def run(self) -> None:
        self.set_remaining(1)
        try:
            self._node.driver.amend(self._options, self._force)
        finally:
            self.progress(1)

    def clean(self) -> None:
        self.manager.graph.unpin(self._node)

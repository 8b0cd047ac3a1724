"""blockdev-create: make an image in a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.graph.backend import BlockBackend
from engine.graph.creation import GraphCreateContext
from engine.graph.driver import Driver
from engine.graph.permissions import Perm
from engine.jobs.job import Job
from engine.jobs.types import JobType

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager


class CreateJob(Job):
    """Runs one driver's create(). It is not dismissed by itself, so that a client can read the error."""

    job_type = JobType.CREATE

    def __init__(self, manager: JobManager, job_id: str, driver: type[Driver], options: Any) -> None:
        """options: an instance of the driver's CreateOptions. Errors: GenericError."""
        super().__init__(manager, job_id, auto_dismiss=False)
        self._driver = driver
        self._options = options

    def run(self) -> None:
        self.set_remaining(1)
        context = _Context(self)
        try:
            self._driver.create(self._options, context)
        finally:
            context.close_all()
            self.progress(1)


class _Context(GraphCreateContext):
    """What create() may ask of the graph; remembers what it left open."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.manager.graph, job.on_control)
        self._open: list[BlockBackend] = []

    def open(self, reference: str | Mapping[str, Any], perm: Perm, shared: Perm) -> BlockBackend:
        backend = super().open(reference, perm, shared)
        self._open.append(backend)
        return backend

    def close(self, backend: BlockBackend) -> None:
        if backend in self._open:
            self._open.remove(backend)
            super().close(backend)

    def close_all(self) -> None:
        for backend in list(self._open):
            self.close(backend)

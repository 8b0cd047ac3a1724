"""JobManager: all jobs of one engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.jobs.blockjob import BlockJob
from engine.jobs.job import Job

if TYPE_CHECKING:
    from engine.graph.graph import Control, Graph
    from engine.qapi import Struct


class JobManager:
    """Jobs of one engine. jobs: newest first, as query-jobs lists them. Methods belong to the control plane."""

    def __init__(self, graph: Graph, emit: Callable[[Struct], None]) -> None:
        self.graph = graph
        self.emit = emit
        self.jobs: list[Job] = []
        self.closing = False
        self._unfinished = 0
        self._ended = threading.Condition()
        self._threads: list[threading.Thread] = []

    @property
    def control(self) -> Control:
        return self.graph.control

    def changed(self) -> None:
        """Something that the screen shows of a job is different."""
        self.graph.changed()

    def find(self, job_id: str) -> Job | None:
        """The job called *job_id*, concluded ones included."""
        return next((job for job in self.jobs if job.id == job_id), None)

    def find_block_job(self, job_id: str) -> BlockJob | None:
        job = self.find(job_id)
        return job if isinstance(job, BlockJob) else None

    @property
    def block_jobs(self) -> list[BlockJob]:
        """The block jobs, newest first."""
        return [job for job in self.jobs if isinstance(job, BlockJob)]

    # -- for Job ---------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        self.jobs.insert(0, job)
        with self._ended:
            self._unfinished += 1

    def job_ended(self, thread: threading.Thread | None) -> None:
        """A job will run no more code."""
        with self._ended:
            self._unfinished -= 1
            if thread is not None:
                self._threads = [other for other in self._threads if other.is_alive()] + [thread]
            self._ended.notify_all()

    def remove(self, job: Job) -> None:
        self.jobs.remove(job)

    # -- end -------------------------------------------------------------------------------------------------

    def cancel_all(self) -> None:
        """Cancel every job by force, and take no new ones. Any thread."""

        def cancel() -> None:
            self.closing = True
            for job in list(self.jobs):
                if job in self.jobs:
                    job.cancel(True)

        self.control.post(cancel)

    def dismiss_all(self) -> None:
        """Forget the jobs that have concluded, though nobody asked for it: the engine ends. Control plane."""
        for job in list(self.jobs):
            job.cancel(True)

    def join(self) -> None:
        """Wait until all jobs have ended and their threads are over. Any thread but the control plane."""
        with self._ended:
            while self._unfinished:
                self._ended.wait()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

"""JobTransaction: jobs that succeed or fail together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.jobs.job import Job


class JobTransaction:
    """jobs: newest first; those that have ended have left. A job without others has a transaction of its own."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._aborting = False

    def job_succeeded(self, job: Job) -> None:
        """*job* waits for the others."""
        if not all(other.is_completed for other in self.jobs):
            return
        for other in list(self.jobs):
            other.become_pending()
        if all(other.auto_finalize for other in self.jobs):
            self.finalize(job)

    def finalize(self, job: Job) -> None:
        """Bring all jobs to their end; if one can't be prepared, all abort."""
        for other in list(self.jobs):
            if not other.try_prepare():
                self.abort(other)
                return
        for other in list(self.jobs):
            other.end()

    def abort(self, job: Job) -> None:
        """*job* failed or was cancelled: cancel all others, and end each one as soon as its work is over."""
        if not self._aborting:
            self._aborting = True
            for other in self.jobs:
                if other is not job:
                    other.mark_cancelled(True)
                    other.kick()
        while self.jobs:
            first = self.jobs[0]
            if first.started and not first.is_completed:
                return
            first.end()

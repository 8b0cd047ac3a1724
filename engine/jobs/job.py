"""Job: the life of a long-running operation.

State, hooks and events belong to the control plane; the work, run(), has a thread of its own. The two meet in a few
methods: the worker calls checkpoint() wherever it can stop, and on_control() for what only the control plane may do;
the control plane asks for a pause, a cancellation or more speed and wakes the worker at once. Source of states, verbs
and the order of events: QEMU 7.2's job core.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

from engine.errors import GenericError, QMPError, os_error_text
from engine.graph.graph import id_wellformed
from engine.jobs.states import COMPLETED, HALTED, HALTS, TRANSITIONS, VERBS
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import JobInfo, JobStatus, JobStatusChange, JobType, JobVerb

if TYPE_CHECKING:
    from engine.jobs.manager import JobManager

log = logging.getLogger("engine.jobs")

T = TypeVar("T")
_S = JobStatus


class JobCancelled(Exception):
    """Raised in the worker by checkpoint() once the job is cancelled by force; run() lets it through."""


class Where(enum.Enum):
    """What the worker is doing, as far as the control plane has to know."""

    NOT_STARTED = enum.auto()
    BUSY = enum.auto()
    SLEEPING = enum.auto()
    HALTED = enum.auto()
    ASKING = enum.auto()
    """Waiting for the control plane to run something for it."""
    OVER = enum.auto()


class Job:
    """One job. Subclasses give ``job_type`` and run(), and the hooks they need.

    All methods belong to the control plane unless they say otherwise.
    """

    job_type: ClassVar[JobType]
    completable: ClassVar[bool] = False
    """Whether there is a READY state, from which complete() leads on."""

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        *,
        transaction: JobTransaction | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        if job_id is None:
            raise GenericError("An explicit job ID is required")
        if not id_wellformed(job_id):
            raise GenericError(f"Invalid job ID '{job_id}'")
        if manager.find(job_id) is not None:
            raise GenericError(f"Job ID '{job_id}' already in use")
        if manager.closing:
            raise GenericError("The engine is shutting down")
        self.manager = manager
        self.id = job_id
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.status = _S.UNDEFINED
        self.error: str | None = None
        self.user_paused = False
        self.progress_current = 0
        self.progress_total = 0
        self.transaction = transaction or JobTransaction()
        self._thread: threading.Thread | None = None
        # Below: shared with the worker, under the lock of _changed.
        self._changed = threading.Condition()
        self._where = Where.NOT_STARTED
        self._pause_count = 1
        self._kicked = False
        self._cancelled = False
        self._forced = False
        manager.add(self)
        self.transaction.jobs.insert(0, self)
        self._transition(_S.CREATED)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.job_type} {self.status}>"

    # -- for subclasses --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do the work. In the worker's thread. Errors: OSError or GenericError fail the job."""
        raise AssertionError

    def prepare(self) -> None:
        """First step of finalizing, which may still fail. Errors: OSError, GenericError."""

    def commit(self) -> None:
        """Make the result final. Must not fail."""

    def abort(self) -> None:
        """Undo what can be undone. Must not fail."""

    def clean(self) -> None:
        """Let go of everything, after commit() or abort(). Must not fail."""

    def on_cancel(self, force: bool) -> bool:
        """Whether a cancellation that asks for *force* or doesn't is a forced one. Jobs without a soft one: always."""
        return True

    def on_complete(self) -> None:
        """Reach the end soon. Only for completable jobs. Errors: GenericError."""

    def on_user_resume(self) -> None:
        """The user's pause is over."""

    def announce_ready(self) -> None:
        """The job has become ready."""

    def announce_pending(self) -> None:
        """The job waits to be finalized by hand."""

    def announce_end(self, cancelled: bool) -> None:
        """The job is over; *cancelled*: by force."""

    # -- the worker's side -----------------------------------------------------------------------------------

    @property
    def cancel_requested(self) -> bool:
        """Whether any cancellation was asked for. Any thread."""
        return self._cancelled

    @property
    def force_cancelled(self) -> bool:
        """Whether the job was cancelled by force. Any thread."""
        return self._forced

    def checkpoint(self, seconds: float = 0.0) -> None:
        """Stop here while the job is paused or drained, then wait *seconds* (less after a kick). Worker only.

        The worker holds no locks and has no request in flight. Errors: JobCancelled.
        """
        changed = self._changed
        with changed:
            until = time.monotonic() + seconds if seconds > 0 else 0.0
            while not self._forced:
                if self._pause_count or self.status in HALTED:
                    if self._where is not Where.HALTED:
                        # After a sleep it may have been seen as halted already; saying so twice is harmless.
                        self._where = Where.HALTED
                        self.manager.control.post(self._update_halt)
                        changed.notify_all()
                    changed.wait()
                    continue
                left = until - time.monotonic() if until else 0.0
                if self._kicked or left <= 0:
                    break
                self._where = Where.SLEEPING
                changed.notify_all()
                changed.wait(left)
            self._kicked = False
            self._where = Where.BUSY
            if self._forced:
                raise JobCancelled

    def on_control(self, function: Callable[[], T]) -> T:
        """Have the control plane run *function* and return what it returns or raises. Worker only.

        A drain that begins meanwhile does not wait for this worker; the next checkpoint() does.
        """
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def execute() -> None:
            try:
                results.append(function())
            except BaseException as exc:  # handed to the worker
                errors.append(exc)
            with self._changed:
                # Here and not in the worker: a drain right after this must find it busy.
                self._where = Where.BUSY
            done.set()

        with self._changed:
            self._where = Where.ASKING
            self._changed.notify_all()
        self.manager.control.post(execute)
        done.wait()
        if errors:
            raise errors[0]
        return results[0]

    def progress(self, done: int) -> None:
        """*done* more is done. Worker only."""
        with self._changed:
            self.progress_current += done

    def set_remaining(self, remaining: int) -> None:
        """As far as is known *remaining* is still to do. Worker only."""
        with self._changed:
            self.progress_total = self.progress_current + remaining

    def become_ready(self) -> None:
        """Enter the READY state. Worker only."""
        self.on_control(self._set_ready)

    def _set_ready(self) -> None:
        self._transition(_S.READY)
        self.announce_ready()

    def _work(self) -> None:
        error: str | None = None
        try:
            self.checkpoint()
            self.run()
        except JobCancelled:
            pass
        except QMPError as exc:
            error = exc.desc
        except OSError as exc:
            error = os_error_text(exc)
        except Exception as exc:
            log.exception("internal error in job %s", self.id)
            error = f"Internal error: {exc!r} (see the log)"
        with self._changed:
            self._where = Where.OVER
            self._changed.notify_all()
        self.manager.control.post(lambda: self._finished(error))

    # -- as a parent of nodes --------------------------------------------------------------------------------

    def drained_begin(self) -> None:
        """Ask the worker to stop at its next checkpoint."""
        self._pause()

    def drained_wait(self) -> None:
        """Wait until the worker has stopped; it needs nothing of the control plane to get there."""
        with self._changed:
            while self._where is Where.BUSY:
                self._changed.wait()
        self._update_halt()

    def drained_end(self) -> None:
        self._unpause()

    # -- pausing ---------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the user or a drain wants the job to stand still."""
        return self._pause_count > 0

    @property
    def busy(self) -> bool:
        """Whether the worker is at work just now."""
        return self._where in (Where.BUSY, Where.ASKING)

    @property
    def started(self) -> bool:
        return self._where is not Where.NOT_STARTED

    @property
    def over(self) -> bool:
        """Whether the worker has come to its end."""
        return self._where is Where.OVER

    def _pause(self) -> None:
        with self._changed:
            self._pause_count += 1
            self._changed.notify_all()

    def _unpause(self) -> None:
        with self._changed:
            self._pause_count -= 1
        self._update_halt()

    def _update_halt(self) -> None:
        """Bring the state in line with the pause count, once the worker stands still; and wake it."""
        with self._changed:
            halt = self._pause_count > 0 and not self._forced
            still = self._where in (Where.HALTED, Where.SLEEPING)
        if halt and still and self.status in HALTS:
            self._transition(HALTS[self.status])
        elif not halt and self.status in HALTED:
            self._transition(HALTED[self.status])
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def kick(self) -> None:
        """End the worker's sleep. Any thread."""
        with self._changed:
            self._kicked = True
            self._changed.notify_all()

    # -- verbs -----------------------------------------------------------------------------------------------

    def check_verb(self, verb: JobVerb) -> None:
        """Raise GenericError when the state doesn't allow *verb*."""
        if self.status not in VERBS[verb]:
            raise GenericError(f"Job '{self.id}' in state '{self.status}' cannot accept command verb '{verb}'")

    def start(self) -> None:
        """Let the work begin."""
        self._transition(_S.RUNNING)
        with self._changed:
            self._pause_count -= 1
            self._where = Where.BUSY
        self._thread = threading.Thread(target=self._work, name=f"job-{self.id}", daemon=True)
        self._thread.start()

    def user_pause(self) -> None:
        """Errors: GenericError."""
        self.check_verb(JobVerb.PAUSE)
        if self.user_paused:
            raise GenericError("Job is already paused")
        self.pause_for_user()

    def pause_for_user(self) -> None:
        """Pause until the user resumes the job."""
        self.user_paused = True
        self._pause()
        self._update_halt()

    def user_resume(self) -> None:
        """Errors: GenericError."""
        if not self.user_paused:
            raise GenericError("Can't resume a job that was not paused")
        self.check_verb(JobVerb.RESUME)
        self._end_user_pause()

    def _end_user_pause(self) -> None:
        self.on_user_resume()
        self.user_paused = False
        self._unpause()

    def user_cancel(self, force: bool) -> None:
        """Errors: GenericError."""
        self.check_verb(JobVerb.CANCEL)
        self.cancel(force)

    def cancel(self, force: bool) -> None:
        """Cancel in whatever state the job is; a concluded one is dismissed."""
        if self.status is _S.CONCLUDED:
            self._dismiss()
            return
        self.mark_cancelled(force)
        if not self.started:
            self._completed()
        elif self.is_completed:
            if self._forced:
                self.transaction.abort(self)
        else:
            self.kick()

    def mark_cancelled(self, force: bool) -> None:
        """Tell the worker to end."""
        force = self.on_cancel(force)
        if self.user_paused:
            self.on_user_resume()
            self.user_paused = False
            with self._changed:
                self._pause_count -= 1
        # A soft cancellation is an agreement about the end of the work; once that is reached it means nothing.
        if force or not self.over:
            with self._changed:
                self._cancelled = True
                self._forced = self._forced or force
        self._update_halt()

    def complete(self) -> None:
        """Errors: GenericError."""
        self.check_verb(JobVerb.COMPLETE)
        if self._cancelled or not self.completable:
            raise GenericError(f"The active block job '{self.id}' cannot be completed")
        self.on_complete()
        self.kick()

    def finalize(self) -> None:
        """Errors: GenericError."""
        self.check_verb(JobVerb.FINALIZE)
        self.transaction.finalize(self)

    def dismiss(self) -> None:
        """Errors: GenericError."""
        self.check_verb(JobVerb.DISMISS)
        self._dismiss()

    # -- the way to the end ----------------------------------------------------------------------------------

    @property
    def is_completed(self) -> bool:
        """Whether the work is over, one way or the other."""
        return self.status in COMPLETED

    @property
    def is_ready(self) -> bool:
        return self.status in (_S.READY, _S.STANDBY)

    def _transition(self, to: JobStatus) -> None:
        old = self.status
        if to not in TRANSITIONS[old]:
            raise RuntimeError(f"job {self.id}: no way from {old} to {to}")
        if to is old:
            return
        with self._changed:
            self.status = to
        self.manager.emit(JobStatusChange(id=self.id, status=to))
        self.manager.changed()

    def _finished(self, error: str | None) -> None:
        if self.error is None:
            self.error = error
        self._completed()

    def _completed(self) -> None:
        if self.is_completed:
            return
        self.update_result()
        if self.error is not None:
            self.transaction.abort(self)
        else:
            self._transition(_S.WAITING)
            self.transaction.job_succeeded(self)

    def update_result(self) -> None:
        """Turn a forced cancellation into the error it is; an error into the state ABORTING."""
        if self.error is None and self._forced:
            self.error = os.strerror(errno.ECANCELED)
        if self.error is not None:
            self._transition(_S.ABORTING)

    def become_pending(self) -> None:
        """All jobs of the transaction have succeeded so far."""
        self._transition(_S.PENDING)
        if not self.auto_finalize:
            self.announce_pending()

    def try_prepare(self) -> bool:
        """Run prepare(); whether it went well."""
        try:
            self.prepare()
        except QMPError as exc:
            self.error = exc.desc
        except OSError as exc:
            self.error = os_error_text(exc)
        except Exception as exc:
            log.exception("internal error in job %s", self.id)
            self.error = f"Internal error: {exc!r} (see the log)"
        self.update_result()
        return self.error is None

    def end(self) -> None:
        """Commit or abort, clean up, tell, leave the transaction, conclude."""
        self.update_result()
        for hook in (self.abort if self.error is not None else self.commit, self.clean):
            try:
                hook()
            except Exception:
                log.exception("internal error at the end of job %s", self.id)
        if self.started:
            self.announce_end(self._forced)
        self._leave_transaction()
        self._transition(_S.CONCLUDED)
        self.manager.job_ended(self._thread)
        if self.auto_dismiss or not self.started:
            self._dismiss()

    def fail_early(self) -> None:
        """Take back a job that was never started, because its making failed."""
        self._leave_transaction()
        self.manager.job_ended(None)
        self._dismiss()

    def _leave_transaction(self) -> None:
        if self in self.transaction.jobs:
            self.transaction.jobs.remove(self)

    def _dismiss(self) -> None:
        self._transition(_S.NULL)
        self.manager.remove(self)

    def info(self) -> JobInfo:
        """The job as query-jobs shows it."""
        return JobInfo(
            id=self.id,
            type=self.job_type,
            status=self.status,
            current_progress=self.progress_current,
            total_progress=self.progress_total,
            error=self.error,
        )

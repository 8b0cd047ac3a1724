"""BlockJob: a job on nodes, with a speed, an error policy and the BLOCK_JOB_* events."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.blockers import Op
from engine.graph.change import Transaction, attach, detach, loosen, refresh_permissions
from engine.graph.edge import Edge
from engine.graph.permissions import Perm, Role
from engine.jobs.job import Job
from engine.jobs.ratelimit import RateLimit
from engine.jobs.transaction import JobTransaction
from engine.jobs.types import (
    BlockDeviceIoStatus,
    BlockdevOnError,
    BlockErrorAction,
    BlockJobCancelled,
    BlockJobCompleted,
    BlockJobErrorEvent,
    BlockJobInfo,
    BlockJobPending,
    BlockJobReady,
    IoOperationType,
    JobVerb,
)

if TYPE_CHECKING:
    from engine.graph.node import Node
    from engine.jobs.manager import JobManager

SMALLEST_STEP = 64 << 10
LARGEST_STEP = 16 << 20
"""Bytes done between two checkpoints: enough to run at full speed, little enough to stop at once."""


class JobBackend(BlockBackend):
    """The door of a block job's own I/O. It is never closed: the job itself stops when its nodes are drained.

    A door would lock the worker out in the middle of a step, and the drain, which waits for the step, with it.
    """

    def __init__(self, job: BlockJob, perm: Perm, shared: Perm) -> None:
        super().__init__("job", "", perm, shared)
        self._job = job

    @property
    def parent_name(self) -> str:
        return self._job.id

    @property
    def edges(self) -> list[Edge]:
        """The edges of the whole job."""
        return self._job.edges

    def drained_begin(self) -> None:
        self._job.drained_begin()

    def drained_wait(self) -> None:
        self._job.drained_wait()

    def drained_end(self) -> None:
        self._job.drained_end()


def device_name(node: Node) -> str:
    """Name of the device on *node*, '' for none."""
    for edge in node.parents:
        if isinstance(edge.parent, BlockBackend) and edge.parent.name:
            return edge.parent.name
    return ""


class BlockJob(Job):
    """A job whose work is on nodes. It blocks other operations on them and is a parent of them."""

    parent_kind = "job"
    stays_at_node = True

    def __init__(
        self,
        manager: JobManager,
        job_id: str | None,
        main: Node,
        perm: Perm,
        shared: Perm,
        *,
        speed: int = 0,
        transaction: JobTransaction | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        """A job on the node *main*, taking *perm* on it. job_id None: the name of the device on it.

        Errors: GenericError.
        """
        super().__init__(
            manager,
            device_name(main) if job_id is None else job_id,
            transaction=transaction,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
        self.graph = manager.graph
        self.io_status = BlockDeviceIoStatus.OK
        self.edges: list[Edge] = []
        self._backends: list[BlockBackend] = []
        self._limit = RateLimit()
        try:
            self.add_node("main node", main, perm, shared, allow=(Op.DATAPLANE,))
            self.set_speed(speed)
        except BaseException:
            self.release()
            self.fail_early()
            raise

    # -- nodes -----------------------------------------------------------------------------------------------

    @property
    def parent_name(self) -> str:
        return self.id

    def describe_edge(self, edge: Edge) -> str:
        return f"{self.job_type} job '{self.id}'"

    def add_node(self, name: str, node: Node, perm: Perm, shared: Perm, *, allow: tuple[Op, ...] = ()) -> None:
        """Hold *node* and block operations on it but those *allow*-ed. Errors: GenericError (permissions)."""

        def hold(edge: Edge | None) -> None:
            if edge is not None:
                self.edges.append(edge)
            else:
                self.edges.pop()

        with Transaction() as txn:
            attach(txn, self, node, name, Role.NONE, perm, shared, holder=hold)
            refresh_permissions(txn, [node])
        node.blockers.block(self, f"block device is in use by block job: {self.job_type}", allow=allow)

    def remove_nodes(self, *nodes: Node) -> None:
        """Let go of *nodes*, or of all, held by add_node()."""
        going = [edge for edge in self.edges if not nodes or edge.child in nodes]
        self.edges = [edge for edge in self.edges if edge not in going]
        children = []
        for edge in going:
            edge.child.blockers.unblock(self)
            edge.child.pins += 1
            children.append(edge.child)
            with Transaction() as txn:
                detach(txn, edge)
        loosen(children)
        for child in children:
            self.graph.unpin(child)

    def add_backend(self, node: Node, perm: Perm, shared: Perm) -> BlockBackend:
        """A back end for the job's I/O on *node*. Errors: GenericError (permissions)."""
        backend = JobBackend(self, perm, shared)
        self.graph.insert(backend, node)
        self.graph.backends.append(backend)
        self._backends.append(backend)
        self.graph.changed()
        return backend

    def remove_backend(self, backend: BlockBackend) -> None:
        if backend in self._backends:
            self._backends.remove(backend)
            self.graph.remove_backend(backend)

    def remove_backends(self) -> None:
        for backend in list(self._backends):
            self.remove_backend(backend)

    def release(self) -> None:
        """Let go of all nodes and back ends."""
        self.remove_backends()
        self.remove_nodes()

    def clean(self) -> None:
        self.release()

    # -- speed -----------------------------------------------------------------------------------------------

    @property
    def speed(self) -> int:
        return self._limit.speed

    def set_speed(self, speed: int) -> None:
        """Limit to *speed* bytes per second, 0 for no limit; at once. Errors: GenericError."""
        self.check_verb(JobVerb.SET_SPEED)
        if speed < 0:
            raise GenericError("Parameter 'speed' expects a non-negative value")
        with self._changed:
            self._limit.set_speed(speed)
        if self.started:
            self.kick()

    def pace(self) -> None:
        """A checkpoint that also waits until the speed allows more. Worker only. Errors: JobCancelled."""
        self.checkpoint()
        while True:
            with self._changed:
                delay = self._limit.delay()
            if not delay:
                return
            self.checkpoint(delay)

    def account(self, size: int) -> None:
        """*size* bytes were copied. Worker only."""
        with self._changed:
            self._limit.account(size)

    @property
    def step(self) -> int:
        """Bytes to do between two checkpoints; any thread."""
        with self._changed:
            return self._limit.step(LARGEST_STEP, SMALLEST_STEP)

    # -- errors ----------------------------------------------------------------------------------------------

    def handle_error(self, policy: BlockdevOnError, error: OSError, *, reading: bool) -> BlockErrorAction:
        """Tell of a failed request and do what *policy* says; the caller retries after STOP. Worker only."""
        return self.on_control(lambda: self.apply_policy(policy, error, reading=reading))

    @staticmethod
    def action_for(policy: BlockdevOnError, error: OSError) -> BlockErrorAction:
        """What *policy* says about *error*. Any thread."""
        no_space = error.errno == errno.ENOSPC
        if policy is BlockdevOnError.STOP or (policy in (BlockdevOnError.ENOSPC, BlockdevOnError.AUTO) and no_space):
            return BlockErrorAction.STOP
        return BlockErrorAction.IGNORE if policy is BlockdevOnError.IGNORE else BlockErrorAction.REPORT

    def apply_policy(self, policy: BlockdevOnError, error: OSError, *, reading: bool) -> BlockErrorAction:
        """handle_error() for the control plane."""
        action = self.action_for(policy, error)
        operation = IoOperationType.READ if reading else IoOperationType.WRITE
        self.manager.emit(BlockJobErrorEvent(device=self.id, operation=operation, action=action))
        if action is BlockErrorAction.STOP:
            if not self.user_paused:
                self.pause_for_user()
            if self.io_status is BlockDeviceIoStatus.OK:
                self.io_status = (
                    BlockDeviceIoStatus.NOSPACE if error.errno == errno.ENOSPC else BlockDeviceIoStatus.FAILED
                )
            self.manager.changed()
        return action

    def on_user_resume(self) -> None:
        self.io_status = BlockDeviceIoStatus.OK

    # -- what clients are told -------------------------------------------------------------------------------

    def announce_ready(self) -> None:
        self.manager.emit(
            BlockJobReady(
                type=self.job_type,
                device=self.id,
                len=self.progress_total,
                offset=self.progress_current,
                speed=self.speed,
            )
        )

    def announce_pending(self) -> None:
        self.manager.emit(BlockJobPending(type=self.job_type, id=self.id))

    def announce_end(self, cancelled: bool) -> None:
        if cancelled:
            self.manager.emit(
                BlockJobCancelled(
                    type=self.job_type,
                    device=self.id,
                    len=self.progress_total,
                    offset=self.progress_current,
                    speed=self.speed,
                )
            )
            return
        self.manager.emit(
            BlockJobCompleted(
                type=self.job_type,
                device=self.id,
                len=self.progress_total,
                offset=self.progress_current,
                speed=self.speed,
                error=self.error,
            )
        )

    def block_info(self) -> BlockJobInfo:
        """The job as query-block-jobs shows it."""
        return BlockJobInfo(
            type=self.job_type.value,
            device=self.id,
            len=self.progress_total,
            offset=self.progress_current,
            busy=self.busy,
            paused=self.paused,
            speed=self.speed,
            io_status=self.io_status,
            ready=self.is_ready,
            status=self.status,
            auto_finalize=self.auto_finalize,
            auto_dismiss=self.auto_dismiss,
            error=self.error,
        )

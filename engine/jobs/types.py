"""Names, results and events of jobs as the schema has them."""

from __future__ import annotations

from engine.qapi import Enum, Int, Struct, event


class JobType(Enum):
    """What a job does."""

    COMMIT = "commit"
    STREAM = "stream"
    MIRROR = "mirror"
    BACKUP = "backup"
    CREATE = "create"
    AMEND = "amend"
    SNAPSHOT_LOAD = "snapshot-load"
    SNAPSHOT_SAVE = "snapshot-save"
    SNAPSHOT_DELETE = "snapshot-delete"


class JobStatus(Enum):
    """Where in its life a job is."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"


class JobVerb(Enum):
    """What a client may ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    DISMISS = "dismiss"
    FINALIZE = "finalize"


class BlockdevOnError(Enum):
    """What a job does when a read or a write of it fails.

    report: the job fails with the error
    ignore: go on as if nothing had happened
    enospc: pause when space runs out, fail on other errors
    stop: pause the job, until it is resumed
    auto: what the device does on its own errors
    """

    REPORT = "report"
    IGNORE = "ignore"
    ENOSPC = "enospc"
    STOP = "stop"
    AUTO = "auto"


class MirrorSyncMode(Enum):
    """Which parts of a disk a job copies.

    top: only what the topmost layer holds itself
    full: everything, backing layers included
    none: only what is written from now on
    incremental: what the bitmap marks; the bitmap starts afresh on success
    bitmap: what the bitmap marks; bitmap-mode says what becomes of the bitmap
    """

    TOP = "top"
    FULL = "full"
    NONE = "none"
    INCREMENTAL = "incremental"
    BITMAP = "bitmap"


class BitmapSyncMode(Enum):
    """When the bitmap of a backup is brought up to date.

    on-success: the bitmap starts afresh if the job succeeds
    never: the bitmap stays as it is
    always: what was copied is taken out of the bitmap, even after a failure
    """

    ON_SUCCESS = "on-success"
    NEVER = "never"
    ALWAYS = "always"


class BlockDeviceIoStatus(Enum):
    """Whether a job stopped because of an error."""

    OK = "ok"
    FAILED = "failed"
    NOSPACE = "nospace"


class IoOperationType(Enum):
    """The kind of request that failed."""

    READ = "read"
    WRITE = "write"


class BlockErrorAction(Enum):
    """What was done about a failed request."""

    IGNORE = "ignore"
    REPORT = "report"
    STOP = "stop"


class JobInfo(Struct):
    """One job.

    id: the job's
    type: what it does
    status: where in its life it is
    current_progress: done so far, in units of the job's own (bytes for block jobs)
    total_progress: estimate of what current_progress will be at the end
    error: why it failed, if it did
    """

    id: str
    type: JobType
    status: JobStatus
    current_progress: Int
    total_progress: Int
    error: str | None = None


class BlockJobInfo(Struct):
    """One block job.

    type: what it does
    device: the job's id (once the device's name)
    len: estimate of offset at the end, bytes
    offset: done so far, bytes
    busy: whether it is at work just now
    paused: whether it is paused, or asked to
    speed: limit, bytes per second, 0 for none
    io_status: whether it stopped because of an error
    ready: whether it may be completed
    status: where in its life it is
    auto_finalize: whether it finalizes by itself
    auto_dismiss: whether it goes by itself when it is concluded
    error: why it failed, if it did
    """

    type: str
    device: str
    len: Int
    offset: Int
    busy: bool
    paused: bool
    speed: Int
    io_status: BlockDeviceIoStatus
    ready: bool
    status: JobStatus
    auto_finalize: bool
    auto_dismiss: bool
    error: str | None = None


@event
class JobStatusChange(Struct, name="JOB_STATUS_CHANGE"):
    """A job is in another state.

    id: the job's
    status: the new state
    """

    id: str
    status: JobStatus


class _Progress(Struct):
    type: JobType
    device: str
    len: Int
    offset: Int
    speed: Int


@event
class BlockJobCompleted(_Progress, name="BLOCK_JOB_COMPLETED"):
    """A block job is over and was not cancelled.

    type: what it did
    device: the job's id
    len: estimate of offset at the end, bytes
    offset: done, bytes; equals len after success
    speed: limit, bytes per second, 0 for none
    error: why it failed, if it did
    """

    error: str | None = None


@event
class BlockJobCancelled(_Progress, name="BLOCK_JOB_CANCELLED"):
    """A block job was cancelled.

    type: what it did
    device: the job's id
    len: estimate of offset at the end, bytes
    offset: done, bytes
    speed: limit, bytes per second, 0 for none
    """


@event
class BlockJobReady(_Progress, name="BLOCK_JOB_READY"):
    """A block job may be completed.

    type: what it does
    device: the job's id
    len: estimate of offset at the end, bytes
    offset: done, bytes
    speed: limit, bytes per second, 0 for none
    """


@event
class BlockJobPending(Struct, name="BLOCK_JOB_PENDING"):
    """A block job waits to be finalized.

    type: what it does
    id: the job's
    """

    type: JobType
    id: str


@event
class BlockJobErrorEvent(Struct, name="BLOCK_JOB_ERROR"):
    """A request of a block job failed.

    device: the job's id
    operation: what failed
    action: what was done about it
    """

    device: str
    operation: IoOperationType
    action: BlockErrorAction

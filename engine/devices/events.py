"""Events about the machine and its devices."""

from __future__ import annotations

from engine.jobs.types import BlockErrorAction, IoOperationType
from engine.qapi import Enum, Struct, event


class ShutdownCause(Enum):
    """Why the machine is reset or ends."""

    NONE = "none"
    HOST_ERROR = "host-error"
    HOST_QMP_QUIT = "host-qmp-quit"
    HOST_QMP_SYSTEM_RESET = "host-qmp-system-reset"
    HOST_SIGNAL = "host-signal"
    HOST_UI = "host-ui"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    SUBSYSTEM_RESET = "subsystem-reset"
    SNAPSHOT_LOAD = "snapshot-load"


@event
class Shutdown(Struct, name="SHUTDOWN"):
    """The machine ends, and the program with it. guest: whether the guest wanted that."""

    guest: bool
    reason: ShutdownCause


@event
class Stop(Struct, name="STOP"):
    """The guests have stopped."""


@event
class Resume(Struct, name="RESUME"):
    """The guests run again."""


@event
class Reset(Struct, name="RESET"):
    """The machine was reset.

    guest: whether a guest asked for it
    reason: who asked
    """

    guest: bool
    reason: ShutdownCause


@event
class DeviceDeleted(Struct, name="DEVICE_DELETED"):
    """A guest device is gone.

    device: its id, if it had one
    path: where it was in the tree of devices
    """

    device: str | None = None
    path: str


@event
class DeviceTrayMoved(Struct, name="DEVICE_TRAY_MOVED"):
    """The tray of a removable device was opened or closed, by the guest or a command.

    device: name of the block back end, '' for none
    id: the device's id or path
    tray_open: whether it is open now
    """

    device: str
    id: str
    tray_open: bool


@event
class BlockIoError(Struct, name="BLOCK_IO_ERROR"):
    """A request of a guest failed. With action stop a STOP event follows.

    device: name of the block back end, '' for none
    node_name: the node the request went to
    operation: what kind of request
    action: what was done about it
    nospace: whether the host had no space left; only there when errors can stop the guest
    reason: the system's text for people
    """

    device: str
    node_name: str | None = None
    operation: IoOperationType
    action: BlockErrorAction
    nospace: bool | None = None
    reason: str

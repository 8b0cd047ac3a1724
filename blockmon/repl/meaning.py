"""What the text given for an argument names: a node, a job, a file …

The introspection says only "string". Which string is which is QMP's convention of names, written down here once.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockmon.model.schema import ArgInfo, alternatives


class Names(enum.Enum):
    """What a string stands for."""

    NOTHING = "nothing"  # free text, or a name that must be new
    NODE = "node"
    DEVICE = "device"  # a device's or a node's name
    JOB = "job"
    EXPORT = "export"
    BITMAP = "bitmap"
    FILE = "file"
    LAYER = "layer"  # the file name of an image that is open in the graph
    FORMAT = "format"
    OBJECT = "object"
    EDGE = "edge"
    DRIVE = "drive"  # a back end's name
    QDEV = "guest device"  # its id or path
    PERIPHERAL = "guest device to unplug"
    SNAPSHOT = "snapshot"
    CHARDEV = "character device"
    SIZE = "size"
    PATH = "QOM path"
    PROPERTY = "QOM property"
    MODEL = "device model"
    COMMAND = "command"
    INFO = "info subcommand"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an argument names, and what narrows it down: the verb a job or a drive must accept, the argument that names
    the node a bitmap is on, the type an object must have, the edge that a child is to hang on."""

    names: Names
    verb: str = ""
    block_jobs_only: bool = False
    of: str = ""


NOTHING = Meaning(Names.NOTHING)
_NODE = Meaning(Names.NODE)
_DEVICE = Meaning(Names.DEVICE)
_FILE = Meaning(Names.FILE)

_TARGET = Meaning(Names.NODE, verb="target")
_IN_CHAIN = Meaning(Names.NODE, verb="chain")
_IOTHREAD = Meaning(Names.OBJECT, of="iothread")

# By the member's name, whatever the command.
_USUAL: dict[str, Meaning] = {
    "device": _DEVICE,
    "node": _NODE,
    "node-name": _NODE,
    "base-node": Meaning(Names.NODE, verb="below"),
    "top-node": _IN_CHAIN,
    "image-node-name": _IN_CHAIN,
    "overlay": Meaning(Names.NODE, verb="unused"),
    "bottom": _IN_CHAIN,
    "parent": _NODE,
    "replaces": _NODE,
    "base": Meaning(Names.LAYER),
    "top": Meaning(Names.LAYER),
    "format": Meaning(Names.FORMAT),
    "backing-fmt": Meaning(Names.FORMAT),
    "filename": _FILE,
    "path": _FILE,
    "logfile": _FILE,
    "mountpoint": _FILE,
    "bitmap": Meaning(Names.BITMAP),
    "throttle-group": Meaning(Names.OBJECT, of="throttle-group"),
    "iothread": _IOTHREAD,
    "key-secret": Meaning(Names.OBJECT, of="secret"),
    "old-secret": Meaning(Names.OBJECT, of="secret"),
    "new-secret": Meaning(Names.OBJECT, of="secret"),
    "password-secret": Meaning(Names.OBJECT, of="secret"),
    "keyid": Meaning(Names.OBJECT, of="secret"),
    "passwordid": Meaning(Names.OBJECT, of="secret"),
    "tls-creds": Meaning(Names.OBJECT, of="tls-creds"),
    "tls-authz": Meaning(Names.OBJECT, of="authz"),
    "pr-manager": Meaning(Names.OBJECT, of="pr-manager"),
    "chardev": Meaning(Names.CHARDEV),
    "vmstate": _NODE,
}

_SIZES = re.compile(
    r"(?!.*max[-_]length)(?:.*-)?(?:size|length|offset|speed|granularity|span|align|chunk|threshold|readahead)"
    r"|(?:max|opt)-(?:transfer|discard|write-zero)|(?:x-)?bps.*(?<!length)"
)
_NO_SIZES = frozenset({"table-size", "queue-size", "iops-size", "iops_size", "vote-threshold"})

# What a drive must be for a command: "tray" removable and with a tray, "eject" removable, "empty" without a medium.
_DRIVE_VERBS = {
    "eject": "eject",
    "change": "eject",
    "blockdev-change-medium": "eject",
    "blockdev-open-tray": "open",
    "blockdev-close-tray": "close",
    "blockdev-remove-medium": "remove",
    "blockdev-insert-medium": "insert",
    "x-blockmon-guest-tray": "tray",
}

# By command and member, where the name alone misleads.
_SPECIAL: dict[tuple[str, str], Meaning] = {
    ("blockdev-add", "node-name"): NOTHING,
    ("blockdev-del", "node-name"): Meaning(Names.NODE, verb="delete"),
    ("drive-mirror", "node-name"): NOTHING,
    ("drive-mirror", "target"): _FILE,
    ("drive-backup", "target"): _FILE,
    ("blockdev-mirror", "target"): _TARGET,
    ("blockdev-backup", "target"): _TARGET,
    ("blockdev-insert-medium", "node-name"): _TARGET,
    ("x-blockdev-change", "node"): _TARGET,
    ("blockdev-snapshot-sync", "snapshot-file"): _FILE,
    ("blockdev-snapshot-internal-sync", "name"): NOTHING,
    ("blockdev-snapshot-delete-internal-sync", "name"): Meaning(Names.SNAPSHOT),
    ("blockdev-snapshot-delete-internal-sync", "id"): Meaning(Names.SNAPSHOT, of="id"),
    ("snapshot-load", "tag"): Meaning(Names.SNAPSHOT, of="vm"),
    ("snapshot-delete", "tag"): Meaning(Names.SNAPSHOT),
    ("snapshot-load", "devices"): _NODE,
    ("snapshot-save", "devices"): _NODE,
    ("snapshot-delete", "devices"): _NODE,
    ("block-export-del", "id"): Meaning(Names.EXPORT),
    ("nbd-server-remove", "name"): Meaning(Names.EXPORT, of="nbd"),
    ("object-del", "id"): Meaning(Names.OBJECT),
    ("qom-get", "path"): Meaning(Names.PATH),
    ("qom-set", "path"): Meaning(Names.PATH),
    ("qom-list", "path"): Meaning(Names.PATH),
    ("qom-get", "property"): Meaning(Names.PROPERTY),
    ("qom-set", "property"): Meaning(Names.PROPERTY),
    ("x-blockdev-change", "parent"): Meaning(Names.NODE, verb="children"),
    ("x-blockdev-change", "child"): Meaning(Names.EDGE, of="parent"),
    ("device_add", "drive"): _DEVICE,
    ("device_add", "driver"): Meaning(Names.MODEL),
    ("device_del", "id"): Meaning(Names.PERIPHERAL),
    ("device-list-properties", "typename"): Meaning(Names.MODEL),
    ("change", "target"): _FILE,
    ("blockdev-change-medium", "filename"): _FILE,
    ("block-dirty-bitmap-merge", "target"): Meaning(Names.BITMAP),
    ("block-dirty-bitmap-merge", "bitmaps"): Meaning(Names.BITMAP),
    ("block-dirty-bitmap-merge", "name"): Meaning(Names.BITMAP),
    ("block-dirty-bitmap-remove", "name"): Meaning(Names.BITMAP, verb="remove"),
    ("block-dirty-bitmap-clear", "name"): Meaning(Names.BITMAP, verb="clear"),
    ("block-dirty-bitmap-enable", "name"): Meaning(Names.BITMAP, verb="enable"),
    ("block-dirty-bitmap-disable", "name"): Meaning(Names.BITMAP, verb="disable"),
    ("block-export-add", "bitmaps"): Meaning(Names.BITMAP, verb="chain"),
    ("block-export-add", "name"): NOTHING,
    ("nbd-server-add", "bitmap"): Meaning(Names.BITMAP, verb="chain"),
    ("x-debug-block-dirty-bitmap-sha256", "name"): Meaning(Names.BITMAP),
    ("block_set_io_throttle", "id"): Meaning(Names.QDEV),
    ("block_set_io_throttle", "device"): Meaning(Names.DRIVE),
    ("block-latency-histogram-set", "id"): Meaning(Names.QDEV),
    ("x-blockmon-guest-add", "device"): Meaning(Names.QDEV),
    ("x-blockmon-guest-request", "device"): Meaning(Names.QDEV),
    ("chardev-remove", "id"): Meaning(Names.CHARDEV),
    ("chardev-change", "id"): Meaning(Names.CHARDEV),
    ("chardev-send-break", "id"): Meaning(Names.CHARDEV),
    ("ringbuf-read", "device"): Meaning(Names.CHARDEV),
    ("ringbuf-write", "device"): Meaning(Names.CHARDEV),
    ("secret", "file"): _FILE,
    # HMP
    ("commit", "device"): Meaning(Names.DRIVE),
    ("drive_del", "device"): _DEVICE,
    ("drive_mirror", "target"): _FILE,
    ("drive_backup", "target"): _FILE,
    ("nbd_server_remove", "name"): Meaning(Names.EXPORT, of="nbd"),
    ("object_del", "id"): Meaning(Names.OBJECT),
    ("help", "cmd"): Meaning(Names.COMMAND),
    ("info", "subcommand"): Meaning(Names.INFO),
    ("memsave", "file"): _FILE,
    ("pmemsave", "file"): _FILE,
    ("block_stream", "base"): Meaning(Names.LAYER),
    ("loadvm", "tag"): Meaning(Names.SNAPSHOT, of="vm"),
    ("delvm", "tag"): Meaning(Names.SNAPSHOT),
    ("savevm", "tag"): Meaning(Names.SNAPSHOT),
    ("snapshot_delete_blkdev_internal", "name"): Meaning(Names.SNAPSHOT),
    ("snapshot_delete_blkdev_internal", "id"): Meaning(Names.SNAPSHOT, of="id"),
    ("device_del", "device"): Meaning(Names.PERIPHERAL),
    ("ringbuf_read", "device"): Meaning(Names.CHARDEV),
    ("ringbuf_write", "device"): Meaning(Names.CHARDEV),
    ("info qom-tree", "path"): Meaning(Names.PATH),
}

_HMP_SIZES = frozenset({("block_resize", "size"), ("block_job_set_speed", "speed"), ("block_stream", "speed")})
_HMP_FILES = frozenset({"filename", "new-image-file", "file"})
# What is a driver's own name for its children's options is never a file.
_NOT_FILES = frozenset({"data-file"})


def verb_of(command: str) -> str:
    """The job verb (digest §13.2) that a QMP or HMP command carries out; empty for other commands."""
    name = command.replace("_", "-")
    for prefix in ("block-job-", "job-"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return ""


def meaning_of(command: str, path: Sequence[str | int], info: ArgInfo, arguments: Mapping[str, Any]) -> Meaning:
    """What the value at *path* in the arguments of QMP's *command* names. *info* describes it as the schema does, with
    an alternate not taken apart; *arguments* are those given so far."""
    member = next((str(step) for step in reversed(path) if not _is_index(step)), "")
    if command == "transaction" and len(path) > 2:
        # An action's data are the arguments of the command of that name.
        command = _action_type(arguments, path[1])
    kinds = {choice.kind for choice in alternatives(info)}
    if not kinds & {"str", "array", "any"}:
        sized = "int" in kinds and member not in _NO_SIZES and _SIZES.fullmatch(member) is not None
        return Meaning(Names.SIZE) if sized else NOTHING
    verb = verb_of(command)
    if verb and member in ("id", "device"):
        return Meaning(Names.JOB, verb, block_jobs_only=command.startswith("block-job-"))
    special = _SPECIAL.get((command, member))
    if special is not None:
        return special
    if command in _DRIVE_VERBS and member in ("id", "device"):
        return Meaning(Names.QDEV if member == "id" or command[0] == "x" else Names.DRIVE, _DRIVE_VERBS[command])
    if command == "object-add":
        special = _SPECIAL.get((str(arguments.get("qom-type", "")), member))
        if special is not None:
            return special
    if command.startswith("block-dirty-bitmap-") and member == "name":
        return NOTHING if command.endswith("-add") else Meaning(Names.BITMAP)
    if command == "blockdev-create" and member == "filename":
        return _FILE
    if kinds >= {"object", "str"}:
        # A BlockdevRef: a node written out, or the name of one.
        return Meaning(Names.NODE, of=member if command == "blockdev-reopen" else "")
    if member.endswith("-file") and member not in _NOT_FILES:
        return _FILE
    return _USUAL.get(member, NOTHING)


def meaning_of_hmp(command: str, argument: str) -> Meaning:
    """What the word for *argument* of the HMP *command* names; *argument* is as `help` writes it."""
    special = _SPECIAL.get((command, argument))
    if special is not None:
        return special
    verb = verb_of(command)
    if verb and argument == "device":
        return Meaning(Names.JOB, verb, block_jobs_only=True)
    if argument == "device" and command in _DRIVE_VERBS:
        return Meaning(Names.DRIVE, _DRIVE_VERBS[command])
    if argument == "id" and command.startswith("chardev-"):
        return Meaning(Names.CHARDEV)
    if argument in _HMP_FILES:
        return _FILE
    if (command, argument) in _HMP_SIZES:
        return Meaning(Names.SIZE)
    return _USUAL.get(argument, NOTHING) if argument in ("device", "format", "base") else NOTHING


def _is_index(step: str | int) -> bool:
    return isinstance(step, int) or step.isdecimal()


def _action_type(arguments: Mapping[str, Any], index: str | int) -> str:
    actions = arguments.get("actions")
    if isinstance(actions, list) and isinstance(index, int) and index < len(actions):
        action = actions[index]
    elif isinstance(actions, Mapping):
        action = actions.get(str(index))
    else:
        return ""
    return str(action.get("type", "")) if isinstance(action, Mapping) else ""

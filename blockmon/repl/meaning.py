"""What the text given for an argument names: a node, a job, a file …

The introspection says only "string". Which string is which is QMP's convention of names, written down here once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockmon.model.schema import ArgInfo


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
    COMMAND = "command"
    INFO = "info subcommand"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an argument names, and what narrows it down: the verb a job must accept, the node a bitmap is on, the type
    an object must have."""

    names: Names
    verb: str = ""
    block_jobs_only: bool = False
    of: str = ""


NOTHING = Meaning(Names.NOTHING)
_NODE = Meaning(Names.NODE)
_DEVICE = Meaning(Names.DEVICE)
_FILE = Meaning(Names.FILE)

# By the member's name, whatever the command.
_USUAL: dict[str, Meaning] = {
    "device": _DEVICE,
    "node": _NODE,
    "node-name": _NODE,
    "base-node": _NODE,
    "top-node": _NODE,
    "image-node-name": _NODE,
    "overlay": _NODE,
    "bottom": _NODE,
    "parent": _NODE,
    "replaces": _NODE,
    "base": Meaning(Names.LAYER),
    "top": Meaning(Names.LAYER),
    "format": Meaning(Names.FORMAT),
    "backing-fmt": Meaning(Names.FORMAT),
    "filename": _FILE,
    "path": _FILE,
    "logfile": _FILE,
    "bitmap": Meaning(Names.BITMAP),
    "throttle-group": Meaning(Names.OBJECT, of="throttle-group"),
    "iothread": Meaning(Names.OBJECT, of="iothread"),
    "key-secret": Meaning(Names.OBJECT, of="secret"),
    "old-secret": Meaning(Names.OBJECT, of="secret"),
    "tls-creds": Meaning(Names.OBJECT, of="tls-creds"),
}

# By command and member, where the name alone misleads.
_SPECIAL: dict[tuple[str, str], Meaning] = {
    ("blockdev-add", "node-name"): NOTHING,
    ("drive-mirror", "node-name"): NOTHING,
    ("drive-mirror", "target"): _FILE,
    ("drive-backup", "target"): _FILE,
    ("blockdev-mirror", "target"): _NODE,
    ("blockdev-backup", "target"): _NODE,
    ("block-export-del", "id"): Meaning(Names.EXPORT),
    ("nbd-server-remove", "name"): Meaning(Names.EXPORT),
    ("object-del", "id"): Meaning(Names.OBJECT),
    ("qom-get", "path"): NOTHING,
    ("qom-set", "path"): NOTHING,
    ("qom-list", "path"): NOTHING,
    ("x-blockdev-change", "child"): Meaning(Names.EDGE, of="parent"),
    ("device_add", "drive"): _DEVICE,
    ("change", "target"): _FILE,
    ("blockdev-change-medium", "filename"): _FILE,
    ("block-dirty-bitmap-merge", "target"): Meaning(Names.BITMAP),
    ("block-dirty-bitmap-merge", "bitmaps"): Meaning(Names.BITMAP),
    ("block-dirty-bitmap-merge", "name"): Meaning(Names.BITMAP),
    ("block-export-add", "bitmaps"): Meaning(Names.BITMAP),
    ("block-export-add", "name"): NOTHING,
    ("x-debug-block-dirty-bitmap-sha256", "name"): Meaning(Names.BITMAP),
    # HMP
    ("commit", "device"): _DEVICE,
    ("drive_mirror", "target"): _FILE,
    ("drive_backup", "target"): _FILE,
    ("nbd_server_remove", "name"): Meaning(Names.EXPORT),
    ("object_del", "id"): Meaning(Names.OBJECT),
    ("help", "cmd"): Meaning(Names.COMMAND),
    ("info", "subcommand"): Meaning(Names.INFO),
    ("memsave", "file"): _FILE,
    ("pmemsave", "file"): _FILE,
    ("block_stream", "base"): Meaning(Names.LAYER),
}

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
    """What the string at *path* in the arguments of QMP's *command* names. *info* describes it as the schema does, with
    an alternate not taken apart; *arguments* are those given so far."""
    member = next((str(step) for step in reversed(path) if not _is_index(step)), "")
    if command == "transaction" and len(path) > 2:
        # An action's data are the arguments of the command of that name.
        command = _action_type(arguments, path[1])
    verb = verb_of(command)
    if verb and member in ("id", "device"):
        return Meaning(Names.JOB, verb, block_jobs_only=command.startswith("block-job-"))
    special = _SPECIAL.get((command, member))
    if special is not None:
        return special
    if command.startswith("block-dirty-bitmap-") and member == "name":
        return NOTHING if command.endswith("-add") else Meaning(Names.BITMAP)
    if command == "blockdev-create" and member == "filename":
        return _FILE
    if info.kind == "alternate" and {choice.kind for choice in info.choices} >= {"object", "str"}:
        return _NODE  # a BlockdevRef: a node written out, or the name of one
    if member.endswith("-file") and member not in _NOT_FILES:
        return _FILE
    if command == "blockdev-add" and member == "node-name":
        return NOTHING
    return _USUAL.get(member, NOTHING)


def meaning_of_hmp(command: str, argument: str) -> Meaning:
    """What the word for *argument* of the HMP *command* names; *argument* is as `help` writes it."""
    special = _SPECIAL.get((command, argument))
    if special is not None:
        return special
    verb = verb_of(command)
    if verb and argument == "device":
        return Meaning(Names.JOB, verb, block_jobs_only=True)
    if argument in _HMP_FILES:
        return _FILE
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

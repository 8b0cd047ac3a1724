"""
Which commands destroy something, by one table: what is lost by them stands beside each.

The screen asks before it runs one that a menu, a key or the palette has written. What a person has typed runs as typed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blockmon.model.format import size_short
from blockmon.model.refresher import ScreenState

Arguments = Mapping[str, Any]
Rule = str | Callable[[ScreenState, Arguments], str | None]


def _names(*members: str) -> Callable[[Arguments], str]:
    def find(arguments: Arguments) -> str:
        return next((str(arguments[member]) for member in members if arguments.get(member)), "it")

    return find


_target = _names("target")
_id = _names("id", "device", "job-id", "node-name", "name")


def _yes(value: object) -> bool:
    return value is True or value in ("on", "true", "yes")


def _resize(state: ScreenState, arguments: Arguments) -> str | None:
    name = arguments.get("node-name")
    if name is None:
        device = next(
            (key for key, parent in state.graph.parents.items() if arguments.get("device") in (parent.id, parent.name)),
            str(arguments.get("device")),
        )
        name = next((edge.child for edge in state.graph.children(device)), device)
    node = state.graph.nodes.get(str(name))
    size = arguments.get("size")
    if node is None or not isinstance(size, int) or size >= node.size:
        return None
    return f"cuts the last {size_short(node.size - size)} off {node.name}; what is in there is lost"


def _commit(state: ScreenState, arguments: Arguments) -> str | None:
    base = arguments.get("base-node", arguments.get("base"))
    into = str(base) if base else "the bottom layer"
    return f"writes into {into}, which cannot be undone; other overlays on it no longer fit"


def _cancel(state: ScreenState, arguments: Arguments) -> str:
    return f"ends {_id(arguments)} at once; what it has done is thrown away"


def _block_job_cancel(state: ScreenState, arguments: Arguments) -> str | None:
    return _cancel(state, arguments) if _yes(arguments.get("force")) else None


def _hard(what: str) -> Rule:
    def rule(state: ScreenState, arguments: Arguments) -> str | None:
        return what if arguments.get("mode") == "hard" else None

    return rule


def _forced(what: str) -> Rule:
    def rule(state: ScreenState, arguments: Arguments) -> str | None:
        return what if _yes(arguments.get("force")) else None

    return rule


def _overwrites_target(state: ScreenState, arguments: Arguments) -> str | None:
    return f"writes over what is in {_target(arguments)}"


def _drive_copy(state: ScreenState, arguments: Arguments) -> str | None:
    return f"writes over what is in {_target(arguments)}, if it exists"


def _transaction(state: ScreenState, arguments: Arguments) -> str | None:
    actions = arguments.get("actions")
    for action in actions if isinstance(actions, list) else ():
        if isinstance(action, Mapping) and isinstance(action.get("data", {}), Mapping):
            found = hazard(state, str(action.get("type")), action.get("data", {}))
            if found is not None:
                return f"{action.get('type')}: {found}"
    return None


TABLE: Mapping[str, Rule] = {
    "block-commit": _commit,
    "block-dirty-bitmap-clear": "forgets which blocks have been written; the next incremental backup misses them",
    "block-dirty-bitmap-remove": "forgets which blocks have been written, for good",
    "block-export-del": _hard("cuts its clients off at once"),
    "block-job-cancel": _block_job_cancel,
    "block_resize": _resize,
    "blockdev-backup": _overwrites_target,
    "blockdev-create": "formats what it is given; what is in there is lost",
    "blockdev-del": "closes the node and takes it away",
    "blockdev-mirror": _overwrites_target,
    "blockdev-open-tray": _forced("takes the medium from a guest that has locked it"),
    "blockdev-snapshot-delete-internal-sync": "deletes a snapshot, for good",
    "device_del": "takes the device away from its guest",
    "drive-backup": _drive_copy,
    "drive-mirror": _drive_copy,
    "eject": _forced("takes the medium from a guest that has locked it"),
    "job-cancel": _cancel,
    "nbd-server-remove": _hard("cuts its clients off at once"),
    "nbd-server-stop": "ends the NBD server and cuts all its clients off",
    "object-del": "takes the object away",
    "quit": "ends the server, its jobs and its guests",
    "snapshot-delete": "deletes a snapshot, for good",
    "snapshot-load": "throws away the machine's state and all writes since the snapshot",
    "system_powerdown": "turns the machine off",
    "system_reset": "resets the machine as its button does",
    "transaction": _transaction,
    "x-blockmon-guest-del": "takes the guest away",
}


def hazard(state: ScreenState, command: str, arguments: Arguments) -> str | None:
    """What running a command destroys or cuts off, as "it …"; None for one that does no harm."""
    rule = TABLE.get(command)
    return rule(state, arguments) if callable(rule) else rule

"""A guest's doings beside qemu-system-x86_64's: a few instructions of firmware that drive the IDE controller."""

from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, OurPeer, Step, Until, WaitEvent
from tests.interop.pc import CONT, NULL, RUNNING, both, hmp, make_files

# -- a locked tray ---------------------------------------------------------------------------------------------------


def _out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes([value]) + b"\xee"


def _packet(command: bytes) -> bytes:
    """Give a command packet to the first drive of the first channel."""
    ports = ((0x1F6, 0xA0), (0x1F1, 0), (0x1F4, 0), (0x1F5, 2), (0x1F7, 0xA0))
    code = b"".join(_out(port, value) for port, value in ports)
    # mov si, data; mov cx, 6; mov dx, 0x1f0; cs rep outsw; hlt for ever; the data
    end = len(code) + 3 + 3 + 3 + 3 + 4
    return (
        code
        + b"\xbe"
        + end.to_bytes(2, "little")
        + bytes.fromhex("b90600baf0012ef36ffaf4ebfc")
        + command.ljust(12, b"\0")
    )


PREVENT_REMOVAL = _packet(bytes.fromhex("1e00000001"))
FORCE = {"force": True}
LOCKED: dict[str, list[Step]] = {
    "open": [Do("blockdev-open-tray", {"id": "cd"}), Do("query-block"), Do("blockdev-close-tray", {"id": "cd"})],
    "open by force": [Do("blockdev-open-tray", {"id": "cd"} | FORCE), Do("query-block")],
    "eject": [Do("eject", {"id": "cd"}), Do("query-block"), Do("blockdev-remove-medium", {"id": "cd"})],
    "eject by force": [
        Do("eject", {"id": "cd"} | FORCE),
        Do("query-block"),
        Do("blockdev-insert-medium", {"id": "cd", "node-name": "n0"}),
        Do("blockdev-close-tray", {"id": "cd"}),
        Do("eject", {"id": "cd"}),
        Do("query-block"),
    ],
    "change": [
        Do("blockdev-change-medium", {"id": "cd", "filename": "$DIR/a.raw", "format": "raw"}),
        Do("query-block"),
        Do("query-named-block-nodes", {"flat": True}),
        Do("blockdev-change-medium", {"id": "cd", "filename": "$DIR/a.raw", "format": "raw"} | FORCE),
        Do("query-block"),
    ],
    "reset": [Do("stop"), Do("system_reset"), Do("query-block"), hmp("info block")],
}


@pytest.mark.parametrize("conversation", LOCKED.values(), ids=LOCKED)
def test_locked_tray(conversation: list[Step], tmp_path: Path) -> None:
    both(
        [CONT, Until("query-block", lambda found: found[0]["locked"]), hmp("info block"), *conversation],
        tmp_path,
        nodes=[{"driver": "file", "filename": "$DIR/c.raw", "node-name": "n0"}],
        devices=[{"driver": "ide-cd", "id": "cd", "bus": "ide.0", "unit": 0, "drive": "n0"}],
        code=PREVENT_REMOVAL,
        first=lambda peer: peer.ask("x-blockmon-guest-tray", {"device": "cd", "lock": True}),
        prepare=make_files,
        paused=True,
    )


# -- errors ----------------------------------------------------------------------------------------------------------


def _command(code: int) -> bytes:
    """Tell the first disk of the first channel to do something with one sector, the first."""
    ports = ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 0), (0x1F4, 0), (0x1F5, 0), (0x1F7, code))
    return b"".join(_out(port, value) for port, value in ports)


_DATA = bytes.fromhex("b90001baf00131c0efe2fd")
"""mov cx, 256; mov dx, 0x1f0; xor ax, ax; a loop of out dx, ax: the data of a sector."""
FIRMWARE = {"read": _command(0x20), "write": _command(0x30) + _DATA}
ERROR = WaitEvent("BLOCK_IO_ERROR")


def failing(operation: str, errno: int, times: int) -> dict[str, Any]:
    """A node whose requests of one kind fail, the first ones or all (0)."""
    rule = {"event": "none", "iotype": operation, "errno": errno, "immediately": False}
    rules = [rule | {"once": True}] * times if times else [rule]
    return {"driver": "blkdebug", "node-name": "bad", "image": "n0", "inject-error": rules}


# While it stops, QEMU's IDE tries the failed request once more on its own, and may succeed: so nothing about counters.
STOPPED: list[Step] = [CONT, ERROR, WaitEvent("STOP"), RUNNING, Do("query-block")]
RETRIED: list[Step] = [CONT, WaitEvent("RESUME"), RUNNING, Do("query-block")]
WENT_ON: list[Step] = [CONT, ERROR, RUNNING, Do("query-block"), Do("query-blockstats")]
GEOMETRY = {"cyls": 2, "heads": 16, "secs": 63}
"""Where there is none QEMU reads the first sector to guess it, and meets the error meant for the guest."""
IGNORED = ("rd_operations", "wr_operations", "rd_bytes", "wr_bytes")
POLICIES: dict[str, tuple[str, dict[str, str], int, int, list[Step]]] = {
    "read, default": ("read", {}, 5, 1, WENT_ON),
    "read, report, no space": ("read", {"rerror": "report"}, 28, 1, WENT_ON),
    "read, ignore": ("read", {"rerror": "ignore"}, 5, 1, WENT_ON),
    "read, enospc": ("read", {"rerror": "enospc"}, 5, 1, WENT_ON),
    "read, enospc, no space": ("read", {"rerror": "enospc"}, 28, 1, STOPPED + RETRIED),
    "read, stop": ("read", {"rerror": "stop"}, 5, 1, STOPPED + RETRIED),
    "read, stop, all else off": ("read", {"rerror": "stop", "werror": "report"}, 28, 1, STOPPED + RETRIED),
    "write, default": ("write", {}, 5, 1, WENT_ON),
    "write, default, no space": ("write", {}, 28, 1, STOPPED + RETRIED),
    "write, report, no space": ("write", {"werror": "report"}, 28, 1, WENT_ON),
    "write, ignore": ("write", {"werror": "ignore"}, 5, 1, WENT_ON),
    "write, stop": ("write", {"werror": "stop"}, 5, 1, STOPPED + RETRIED),
    "write, stop, reset": ("write", {"werror": "stop"}, 28, 1, [*STOPPED, Do("system_reset"), Do("query-block")]),
    "write, enospc": ("write", {"werror": "enospc"}, 5, 1, WENT_ON),
}


@pytest.mark.parametrize("case", POLICIES.values(), ids=POLICIES)
def test_error_policy(case: tuple[str, dict[str, str], int, int, list[Step]], tmp_path: Path) -> None:
    operation, policy, errno, times, talk = case

    def request(peer: OurPeer) -> None:
        arguments = {"device": "d", "operation": operation}
        peer.submit("x-blockmon-guest-request", arguments)

    both(
        talk,
        tmp_path,
        nodes=[{**NULL, "node-name": "n0"}, failing(operation, errno, times)],
        devices=[{"driver": "ide-hd", "id": "d", "drive": "bad", "bus": "ide.0", "unit": 0, **GEOMETRY, **policy}],
        code=FIRMWARE[operation],
        first=request,
        paused=True,
        ignore=IGNORED,
    )

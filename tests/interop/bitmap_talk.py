"""What is said about dirty bitmaps in conversations, and the images that they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.interop.differential import Call, Do, Step
from tests.qemu import QemuImages

MIB = 1 << 20
SIZE = 8 * MIB
IMAGES = QemuImages("qemu-img", "qemu-io")


# -- what is said ----------------------------------------------------------------------------------------------------


def opened(node: str = "n", file: str = "f", **options: Any) -> Do:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    return Do("blockdev-add", {"driver": "qcow2", "node-name": node, "file": file, **given})


def protocol(name: str = "f", image: str = "a.qcow2", **options: Any) -> Do:
    return Do("blockdev-add", {"driver": "file", "node-name": name, "filename": f"$DIR/{image}", **options})


OPEN = [protocol(), opened()]
NODES = Do("query-named-block-nodes", {"flat": True})
CLOSE = Do("blockdev-del", {"node-name": "n"})
LOOK = Call(lambda where: image_info(where / "a.qcow2"))


def closed_and_opened(**options: Any) -> list[Step]:
    return [CLOSE, LOOK, opened(**options), NODES]


def reopened(read_only: bool) -> list[Step]:
    options = {"driver": "qcow2", "node-name": "n", "file": "f", "read-only": read_only}
    return [Do("blockdev-reopen", {"options": [options]}), NODES]


def bitmap(verb: str, name: str = "b", node: str = "n", **more: Any) -> Do:
    return Do(f"block-dirty-bitmap-{verb}", {"node": node, "name": name, **more})


def add(name: str = "b", node: str = "n", **more: Any) -> Do:
    return bitmap("add", name, node, **more)


def merge(target: str, *sources: str | dict[str, str], node: str = "n", ours: Any = None) -> Do:
    arguments = {"node": node, "target": target, "bitmaps": list(sources)}
    return Do("block-dirty-bitmap-merge", arguments, ours)


def write(*commands: str, node: str = "n") -> list[Step]:
    """qemu-io commands, as `write 0 64k`."""
    lines = [f'qemu-io {node} "{verb} -q {rest}"' for verb, rest in (c.split(" ", 1) for c in commands)]
    return [Do("human-monitor-command", {"command-line": line}) for line in lines]


def sha(*names: str, node: str = "n") -> list[Step]:
    return [Do("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": name}) for name in names]


def transaction(*actions: tuple[str, dict[str, Any]], ours: Any = None, **more: Any) -> Do:
    return Do("transaction", {"actions": [{"type": kind, "data": data} for kind, data in actions], **more}, ours)


def act(verb: str, name: str = "b", node: str = "n", **more: Any) -> tuple[str, dict[str, Any]]:
    return f"block-dirty-bitmap-{verb}", {"node": node, "name": name, **more}


def act_merge(target: str, *sources: str | dict[str, str], node: str = "n") -> tuple[str, dict[str, Any]]:
    return "block-dirty-bitmap-merge", {"node": node, "target": target, "bitmaps": list(sources)}


ABORT: tuple[str, dict[str, Any]] = ("abort", {})


VARYING = ("actual-size", "virtual-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec")
"""How much the file below takes depends on the order of allocation; that bitmaps have the right length their hashes
tell. The clock of the emulator's machine stands still.
"""

# -- images ----------------------------------------------------------------------------------------------------------


def image_info(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image's bitmaps and soundness."""
    IMAGES.check(path)
    data: dict[str, Any] = IMAGES.info(path)["format-specific"]["data"]
    return {"bitmaps": data.get("bitmaps"), "compat": data["compat"]}


def in_use(path: Path, name: str = "b") -> None:
    """Make a bitmap look as a crash leaves it: the flag is in the directory entry, 12 bytes in."""
    data = bytearray(path.read_bytes())
    encoded = name.encode()
    at = data.rindex(len(encoded).to_bytes(2, "big") + bytes(4) + encoded) - 18 + 12
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") | 1).to_bytes(4, "big")
    path.write_bytes(data)


def prepare(where: Path) -> None:
    IMAGES.create(where / "a.qcow2", SIZE)
    IMAGES.create(where / "target.qcow2", SIZE)
    IMAGES.create(where / "small.qcow2", MIB, cluster_size=4096)
    IMAGES.create(where / "v2.qcow2", SIZE, compat="0.10")
    IMAGES.create(where / "huge.qcow2", "8T")
    IMAGES.create(where / "d.qcow2", SIZE, data_file=where / "d.raw")
    IMAGES.create(where / "e.qcow2", SIZE, cluster_size=16384, extended_l2="on", lazy_refcounts="on")
    (where / "r.raw").write_bytes(bytes(SIZE))
    IMAGES.create(where / "crashed.qcow2", SIZE)
    IMAGES.run("bitmap", "--add", where / "crashed.qcow2", "b")
    IMAGES.run("bitmap", "--add", where / "crashed.qcow2", "whole")
    in_use(where / "crashed.qcow2")
    IMAGES.create(where / "stored.qcow2", SIZE, cluster_size=4096)
    for name, granularity in (("fine", 512), ("plain", 65536), ("coarse", MIB)):
        IMAGES.run("bitmap", "--add", "-g", str(granularity), where / "stored.qcow2", name)
    IMAGES.io(where / "stored.qcow2", "write 0 5k", "write 3M 700k", "discard 7M 64k")
    IMAGES.run("bitmap", "--disable", where / "stored.qcow2", "plain")

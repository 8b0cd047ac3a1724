"""Dirty bitmaps in qcow2 images that somebody else wrote, broken ones too, and bitmaps passed from one to the other."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.bitmap_talk import (
    CLOSE,
    IMAGES,
    MIB,
    NODES,
    SIZE,
    VARYING,
    image_info,
    opened,
    protocol,
    sha,
    write,
)
from tests.interop.differential import SYSTEM_EMULATOR, Do, OurPeer, Peer, RealPeer, Step, assert_same

pytestmark = pytest.mark.interop

# -- what others wrote -----------------------------------------------------------------------------------------------

DIRECTORY = 0x23852875
Patch = list[tuple[str, int, str, int]]
"""(where, offset there, struct format, value); where: extension, entry, table."""
BROKEN: dict[str, Patch] = {
    "size 0": [("extension", 8, "Q", 0)],
    "size + 8": [("extension", 8, "Q", 72)],
    "size - 8": [("extension", 8, "Q", 56)],
    "size of another entry": [("extension", 8, "Q", 96)],
    "huge size": [("extension", 8, "Q", 1 << 40)],
    "beyond the file": [("extension", 16, "Q", 1 << 30)],
    "misaligned": [("extension", 16, "Q", 512)],
    "reserved": [("extension", 4, "I", 1)],
    "count 0": [("extension", 0, "I", 0)],
    "count 1": [("extension", 0, "I", 1)],
    "count 3": [("extension", 0, "I", 3)],
    "count 65536": [("extension", 0, "I", 65536)],
    "extra data": [("entry", 20, "I", 8)],
    "much extra data": [("entry", 20, "I", 1 << 31)],
    "type": [("entry", 16, "B", 2)],
    "flag 3": [("entry", 12, "I", 8)],
    "flag 2": [("entry", 12, "I", 6)],
    "in use": [("entry", 12, "I", 3)],
    "not auto": [("entry", 12, "I", 0)],
    "granularity 8": [("entry", 17, "B", 8)],
    "granularity 32": [("entry", 17, "B", 32)],
    "granularity 9": [("entry", 17, "B", 9)],
    "long name": [("entry", 18, "H", 2000)],
    "no table": [("entry", 0, "Q", 0)],
    "misaligned table": [("entry", 0, "Q", 512)],
    "table of 0": [("entry", 8, "I", 0)],
    "table of 2": [("entry", 8, "I", 2)],
    "huge table": [("entry", 8, "I", 1 << 31)],
    "large table in use": [("entry", 8, "I", 1 << 12), ("entry", 12, "I", 1)],
    "large table": [("entry", 8, "I", 1 << 12)],
    "lost table in use": [("entry", 0, "Q", 1 << 30), ("entry", 12, "I", 1)],
    "reserved table bit": [("table", 0, "Q", 2)],
    "all ones": [("table", 0, "Q", 1)],
    "misaligned data": [("table", 0, "Q", 512)],
    "data and all ones": [("table", 0, "Q", 65537)],
    "reserved top bit": [("table", 0, "Q", 65536 | 1 << 60)],
    "same name": [("entry", 24, "Q", int.from_bytes(b"second\0\0", "big")), ("entry", 18, "H", 6)],
    "not vouched for": [("header", 88, "Q", 0)],
    "unknown autoclear bit": [("header", 88, "Q", 5)],
}


def prepare_broken(where: Path) -> None:
    good = where / "good.qcow2"
    IMAGES.create(good, SIZE)
    IMAGES.run("bitmap", "--add", good, "b")
    IMAGES.io(good, "write 0 1", "write 1M 1")
    IMAGES.run("bitmap", "--add", "-g", "512", good, "second")
    IMAGES.io(good, "write 1M 1")
    data = good.read_bytes()
    extension = data.index(DIRECTORY.to_bytes(4, "big")) + 8
    entry = int.from_bytes(data[extension + 16 : extension + 24], "big")
    table = int.from_bytes(data[entry : entry + 8], "big")
    places = {"header": 0, "extension": extension, "entry": entry, "table": table}
    for name, patches in BROKEN.items():
        changed = bytearray(data)
        for place, offset, form, value in patches:
            struct.pack_into(">" + form, changed, places[place] + offset, value)
        (where / name).write_bytes(changed)


@pytest.mark.parametrize("read_only", [True, False])
def test_directories_of_all_kinds(read_only: bool, tmp_path: Path, qsd: str) -> None:
    talk: list[Step] = []
    for name in BROKEN:
        talk += [protocol("f", name), opened(read_only=read_only), NODES, *sha("b", "second")]
        talk += [CLOSE, Do("blockdev-del", {"node-name": "f"})]
    assert_same(talk, tmp_path, prepare=prepare_broken, ignore=VARYING)


@pytest.mark.parametrize("patch", [[("entry", 0, "Q", 1 << 30)], [("table", 0, "Q", 1 << 30)]])
def test_bitmaps_cut_off_are_inconsistent(patch: Patch, tmp_path: Path, qemu_img: str) -> None:
    """QEMU takes what lies beyond the end of the file for zeros: a bitmap that tells of no write."""
    BROKEN["cut"] = patch
    try:
        prepare_broken(tmp_path)
    finally:
        del BROKEN["cut"]
    peer = OurPeer()
    try:
        found = bitmaps_there(peer, tmp_path / "cut", read_only=False)
        assert [(item["name"], item.get("inconsistent", False)) for item in found] == [("second", False), ("b", True)]
        assert "return" in peer.ask("block-dirty-bitmap-remove", {"node": "n", "name": "b"})
    finally:
        peer.close()
    # What the table led to can't be found again.
    IMAGES.run("check", "-q", "-r", "leaks", tmp_path / "cut")
    assert image_info(tmp_path / "cut")["bitmaps"] == [{"name": "second", "granularity": 512, "flags": ["auto"]}]


# -- from one to the other -------------------------------------------------------------------------------------------


def bitmaps_there(peer: Peer, path: Path, *, read_only: bool = True) -> list[dict[str, Any]]:
    """Open *path* as node n and list its bitmaps."""
    file = {"driver": "file", "filename": str(path)}
    options = {"driver": "qcow2", "node-name": "n", "read-only": read_only, "file": file}
    assert peer.ask("blockdev-add", options) == {"return": {}}
    nodes = peer.ask("query-named-block-nodes", {"flat": True})["return"]
    found: list[dict[str, Any]] = next(node for node in nodes if node["node-name"] == "n").get("dirty-bitmaps", [])
    return found


def hashes(peer: Peer, names: Sequence[str]) -> list[str]:
    return [
        peer.ask("x-debug-block-dirty-bitmap-sha256", {"node": "n", "name": name})["return"]["sha256"] for name in names
    ]


def fill(peer: Peer, *commands: str) -> None:
    for step in write(*commands):
        assert isinstance(step, Do)
        assert peer.ask(step.command, step.arguments) == {"return": ""}


PEERS: dict[str, Callable[[], Peer]] = {"ours": OurPeer, "qemu": lambda: RealPeer(SYSTEM_EMULATOR)}


@pytest.mark.parametrize(("writer", "reader"), [("ours", "qemu"), ("qemu", "ours"), ("ours", "ours")])
@pytest.mark.parametrize("cluster", [512, 65536])
def test_the_other_reads_what_one_stored_at_its_end(
    writer: str, reader: str, cluster: int, tmp_path: Path, qemu_system: str
) -> None:
    """The daemon ends with nodes open: that stores the bitmaps."""
    path = IMAGES.create(tmp_path / "a.qcow2", 64 * MIB, cluster_size=cluster)
    names = ["b512", "b4096", "b65536", "b1048576"]
    peer = PEERS[writer]()
    try:
        assert not bitmaps_there(peer, path, read_only=False)
        for name in names:
            arguments = {"node": "n", "name": name, "granularity": int(name[1:]), "persistent": True}
            assert peer.ask("block-dirty-bitmap-add", arguments) == {"return": {}}
        fill(peer, "write 0 3M", "write 20M 512", "write 40000k 7M", "discard 63M 1M")
        wanted = hashes(peer, names)
    finally:
        peer.close()
    image_info(path)
    peer = PEERS[reader]()
    try:
        found = bitmaps_there(peer, path)
        assert sorted(item["name"] for item in found) == sorted(names)
        assert all(item["recording"] and item["persistent"] and not item.get("inconsistent") for item in found)
        assert hashes(peer, names) == wanted
    finally:
        peer.close()


SESSION = """
import sys
from engine.engine import Engine
engine = Engine()
file = {"driver": "file", "filename": sys.argv[1]}
engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": file})
engine.execute("block-dirty-bitmap-add", {"node": "n", "name": "new", "persistent": True})
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_daemon_leaves_bitmaps_inconsistent(tmp_path: Path, qemu_system: str) -> None:
    path = IMAGES.create(tmp_path / "a.qcow2", SIZE)
    IMAGES.run("bitmap", "--add", path, "b")
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert image_info(path)["bitmaps"] == [{"name": "b", "granularity": 65536, "flags": ["in-use", "auto"]}]
    seen = []
    for start in PEERS.values():
        peer = start()
        try:
            seen.append(bitmaps_there(peer, path))
        finally:
            peer.close()
    assert seen[0] == seen[1]
    assert [(item["name"], item["inconsistent"], item["recording"]) for item in seen[0]] == [("b", True, False)]
    # qemu-img can't use it either, but takes it away.
    IMAGES.run("bitmap", "--remove", path, "b")
    assert image_info(path)["bitmaps"] is None


def test_qemu_img_works_on_what_ours_stored(tmp_path: Path, qemu_img: str) -> None:
    path = IMAGES.create(tmp_path / "a.qcow2", SIZE)
    peer = OurPeer()
    try:
        bitmaps_there(peer, path, read_only=False)
        for name in ("one", "two"):
            peer.ask("block-dirty-bitmap-add", {"node": "n", "name": name, "persistent": True})
        fill(peer, "write 1M 3M")
        wanted = hashes(peer, ["one"])
    finally:
        peer.close()
    IMAGES.run("bitmap", "--clear", path, "two")
    IMAGES.run("bitmap", "--disable", path, "one")
    IMAGES.run("bitmap", "--add", "-g", "32k", path, "three")
    IMAGES.run("bitmap", "--merge", "one", path, "three")
    IMAGES.run("bitmap", "--remove", path, "two")
    assert len(image_info(path)["bitmaps"]) == 2
    peer = OurPeer()
    try:
        found = {item["name"]: item for item in bitmaps_there(peer, path)}
        assert hashes(peer, ["one"]) == wanted
        assert found["three"]["count"] == 3 * MIB
        assert (found["one"]["recording"], found["three"]["recording"]) == (False, True)
    finally:
        peer.close()

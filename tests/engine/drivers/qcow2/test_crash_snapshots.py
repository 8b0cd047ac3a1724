"""Power cuts while internal snapshots are taken, deleted and gone back to: no snapshot ever shows anything but what it
was taken of, and the disk is what it was before or after.

Replays are those of test_crash.py. Version 3 images are marked dirty while flags and refcounts disagree, so opening
them for writing repairs them; in version 2 images only COPIED flags and leaks may be wrong, and nothing that is
written to such an image afterwards harms a snapshot.
"""

from __future__ import annotations

import random
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.format.qcow2.options import BlockdevOptionsQcow2
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, qemu_check, run
from tests.engine.drivers.qcow2.test_crash import TINY_CACHE, History, with_repair


class SnapshotHistory(History):
    """Random work with snapshots. saved: contents by name. table: (log position, names that must be there, names that
    may be there) from then on.
    """

    def __init__(self, path: Path, seed: int, **options: Any) -> None:
        super().__init__(path, seed, **options)
        self.saved: dict[str, bytes] = {}
        self.alive: list[str] = []
        self.table: list[tuple[int, frozenset[str], frozenset[str]]] = [(0, frozenset(), frozenset())]
        self.number = 0

    def step(self, resize: bool) -> None:
        pick = self.random.random()
        if pick < 0.12 and len(self.alive) < 5:
            self._take()
        elif pick < 0.18 and self.alive:
            self._forget(self.random.choice(self.alive))
        elif pick < 0.26 and self.alive:
            self._go_back(self.random.choice(self.alive))
        else:
            super().step(resize)

    def _mark(self) -> None:
        self.marks.append((len(self.child.log), bytes(self.model)))

    def _take(self) -> None:
        self.number += 1
        name = f"s{self.number}"
        self.saved[name] = bytes(self.model)
        certain = frozenset(self.alive)
        self.table.append((len(self.child.log), certain, certain | {name}))
        self.opened.snapshot(name)
        self.alive.append(name)
        self.table.append((len(self.child.log), certain | {name}, certain | {name}))
        self._mark()

    def _forget(self, name: str) -> None:
        before = frozenset(self.alive)
        self.table.append((len(self.child.log), before - {name}, before))
        self.opened.delete(name)
        self.alive.remove(name)
        self.table.append((len(self.child.log), before - {name}, before - {name}))
        self._mark()

    def _go_back(self, name: str) -> None:
        self.changes.append((len(self.child.log), 0, 1 << 62))
        self.opened.goto(name)
        self.model = bytearray(self.saved[name])
        self._mark()

    def verify_snapshots(self, at: int, copy: Path) -> None:
        """Write to the image left by a crash at *at*; its snapshots are those that were taken."""
        child = FileChild(copy)
        opened = Opened(child)
        for _ in range(6):
            offset = self.random.randrange(opened.length)
            opened.write(offset, self.random.randbytes(min(3 * self.cluster, opened.length - offset)))
        _, certain, possible = [entry for entry in self.table if entry[0] <= at][-1]
        names = frozenset(item.name for item in opened.image.snapshots)
        assert certain <= names <= possible, f"crash at event {at}"
        for name in names:
            opened.goto(name)
            assert opened.get(0, opened.length) == self.saved[name], f"snapshot {name} after a crash at event {at}"
        opened.close()
        child.close()


def only_flags_are_wrong(path: Path) -> None:
    """Repair a version 2 image in which nothing but COPIED flags and leaks may be wrong."""
    done = subprocess.run(["qemu-img", "check", "-r", "all", str(path)], capture_output=True, text=True)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("ERROR", "Repairing"))]
    wrong = [line for line in complaints if "OFLAG_COPIED" not in line and "refcount" not in line]
    assert not wrong, wrong
    for line in complaints:
        if "reference=" in line:
            count, references = (int(part.split("=")[1]) for part in line.split()[-2:])
            assert count > references, line


CASES: list[tuple[str, dict[str, Any], int, bool, BlockdevOptionsQcow2 | None]] = [
    ("512", {"cluster_size": 512}, 64 << 10, False, None),
    ("512-resize", {"cluster_size": 512}, 128 << 10, True, None),
    ("512-tiny-cache", {"cluster_size": 512}, 128 << 10, False, TINY_CACHE),
    ("512-v2", {"cluster_size": 512, "version": "v2"}, 64 << 10, False, None),
    ("4k-lazy", {"cluster_size": 4096, "lazy_refcounts": True}, 256 << 10, False, None),
    ("16k-extended", {"cluster_size": 16384, "extended_l2": True}, 512 << 10, True, None),
]


@pytest.mark.interop
@pytest.mark.parametrize(("name", "options", "size", "resize", "cache"), CASES, ids=[case[0] for case in CASES])
def test_power_cut_among_snapshots(
    name: str,
    options: dict[str, Any],
    size: int,
    resize: bool,
    cache: BlockdevOptionsQcow2 | None,
    tmp_path: Path,
    qemu_img: str,
) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    make(path, size, **options)
    seed = zlib.crc32(name.encode())
    history = SnapshotHistory(path, seed, options=cache)
    for _ in range(90):
        history.step(resize)
    history.finish()
    pick = random.Random(seed)
    log = history.child.log
    brinks = [i for i, event in enumerate(log) if event.kind == "flush" and i]
    for number in range(40):
        at = pick.choice(brinks) if pick.random() < 0.8 else pick.randrange(1, len(log) + 1)
        history.crash(at, pick if pick.random() < 0.8 else None, copy)
        if options.get("version") == "v2":
            crashed = copy.read_bytes()
            only_flags_are_wrong(copy)
            history.verify(at, copy, False)
            copy.write_bytes(crashed)
        elif number % 2 and copy.read_bytes()[79] & 1:
            # QEMU repairs it as well.
            run("qemu-img", "check", "-q", "-r", "all", copy)
            history.verify(at, copy, False)
        else:
            history.verify(at, copy, True)
        history.verify_snapshots(at, copy)


@pytest.mark.interop
def test_every_prefix_of_one_snapshot_s_life(tmp_path: Path, qemu_img: str) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    make(path, 32 << 10, cluster_size=512)
    history = SnapshotHistory(path, 1)
    data = random.Random(2).randbytes(20_000)
    history.changes.append((0, 0, 1 << 62))
    history.opened.write(0, data)
    history.model[: len(data)] = data
    history.opened.flush()
    history._mark()
    begun = len(history.child.log)
    history._take()
    history.changes.append((len(history.child.log), 1000, 3000))
    history.opened.write(1000, b"x" * 2000)
    history.model[1000:3000] = b"x" * 2000
    history._take()
    history._go_back("s1")
    history._forget("s1")
    history._forget("s2")
    history.finish()
    for at in range(begun, len(history.child.log) + 1):
        history.crash(at, None, copy)
        if copy.read_bytes()[79] & 1:
            with_repair(copy)
        qemu_check(copy, leaks=True) if at % 5 == 0 else None
        history.verify_snapshots(at, copy)

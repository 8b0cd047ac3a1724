"""Data and holes that take turns: one plan moves many pieces, and nothing beside them."""

import errno
import json
import os
import random
import shutil
import subprocess
from typing import Any

import pytest

from engine.copying import host_copy
from engine.copying.copier import BackendTarget, Copier, PopulateTarget
from engine.drivers.format.qcow2.driver import Qcow2Driver
from engine.graph.driver import Status, WritePlan
from engine.graph.node import Node
from engine.graph.runs import DATA, HOLE, PAST, ZERO, runs_of
from engine.graph.status import status_above
from tests.engine.jobs.session import CLUSTER, Session, content, noise

MIB = 1 << 20
SIZE = 4 * MIB + 24 * 1024
"""Not a multiple of a cluster: the last one is cut."""


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each begin_writes() of a qcow2 image came to a plan."""
    found: list[bool] = []
    real = Qcow2Driver.begin_writes

    def note(self: Qcow2Driver, *args: Any) -> WritePlan | None:
        plan = real(self, *args)
        found.append(plan is not None)
        return plan

    monkeypatch.setattr(Qcow2Driver, "begin_writes", note)
    return found


def scatter(session: Session, name: str, seed: int, *, zeroes: bool = True) -> None:
    """Write a few clusters of an image, here and there, and make others zero."""
    rng = random.Random(seed)
    with session.writer(name) as user:
        for offset in range(0, SIZE, CLUSTER):
            length = min(CLUSTER, SIZE - offset)
            chosen = rng.random()
            if chosen < 0.4:
                user.write(offset, memoryview(noise(seed + offset, length)))
            elif chosen < 0.6 and zeroes:
                user.write_zeroes(offset, length)


def image(session: Session, name: str, seed: int, backing: str | None = None, **options: Any) -> Node:
    """An open qcow2 image, scattered."""
    session.create_qcow2(name, options.pop("size", SIZE), backing, **options)
    node = session.add_qcow2(name, backing)
    scatter(session, name, seed)
    return node


def check(session: Session, name: str) -> None:
    """Let qemu-img judge the file of a node; nothing may be lost, nothing may leak."""
    session.node(name).flush()
    if shutil.which("qemu-img") is not None:
        command = ["qemu-img", "check", "-U", "-f", "qcow2", "--output=json", str(session.folder / f"{name}.qcow2")]
        found = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=False).stdout)
        assert not any(found.get(what) for what in ("corruptions", "leaks", "check-errors")), found


# -- what there is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole", [True, False])
def test_runs_are_what_block_status_tells(session: Session, seed: int, whole: bool) -> None:
    session.do("blockdev-add", driver="raw", node_name="r", file={
        "driver": "file", "filename": str(session.file("r", noise(1, 1_000_000 + 123)))
    })  # fmt: skip
    session.create_qcow2("a", 2 * MIB)
    session.add_qcow2("a", "r")
    session.create_qcow2("b", SIZE)
    session.add_qcow2("b", "a")
    session.create_qcow2("c", SIZE)
    top = session.add_qcow2("c", "b")
    rng = random.Random(seed)
    for name, size in (("a", 2 * MIB), ("b", SIZE), ("c", SIZE)):
        with session.writer(name) as user:
            for _ in range(12):
                offset = rng.randrange(size // 512) * 512
                length = min(rng.randrange(1, 300) * 512, size - offset)
                if rng.random() < 0.5:
                    user.write(offset, memoryview(noise(offset, length)))
                else:
                    user.write_zeroes(offset, length)
    bottom = None if whole else session.node("a")
    offset = rng.randrange(100) * 512
    at = offset
    runs = runs_of(top, bottom, offset, SIZE - offset)
    assert runs is not None
    data = content(top)
    for length, kind, host, place in runs:
        for point in range(at, at + length, 512):
            extent, _ = status_above(top, bottom, point, 512, include_base=True)
            above, _ = status_above(top, session.node("b"), point, 512, include_base=True)
            assert whole or (kind == PAST) == (point >= 2 * MIB and not above.flags & Status.ALLOCATED)
            if kind == DATA:
                assert extent.flags & Status.DATA
                assert not extent.flags & Status.ZERO
                assert host is not None
                found = bytearray(512)
                host.read(place + point - at, memoryview(found))
                assert found == data[point : point + 512]
            elif kind in (ZERO, PAST):
                assert extent.flags & Status.ZERO
                assert extent.flags & Status.ALLOCATED or whole
            else:
                assert kind == HOLE
                assert not extent.flags & Status.ALLOCATED
        at += length
    assert at == SIZE


# -- one plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covering", [True, False])
def test_zeros_get_their_flag_where_something_may_come_below(
    session: Session, plans: list[bool], covering: bool
) -> None:
    source = image(session, "s", 1)
    session.create_qcow2("t", SIZE)
    target = session.add_qcow2("t")
    with session.writer("t") as user:
        Copier(source, BackendTarget(user, covering=covering)).copy(0, SIZE)
    assert plans == [True]
    assert content(target) == content(source)
    holes = [
        bool(target.block_status(offset, 512).flags & Status.ALLOCATED)
        for offset in range(0, SIZE, CLUSTER)
        if source.block_status(offset, 512).flags & Status.ZERO
    ]
    assert holes
    assert set(holes) == {covering}
    check(session, "t")


def test_a_used_target_is_written_piece_by_piece(session: Session, plans: list[bool]) -> None:
    source, target = image(session, "s", 1), image(session, "t", 2)
    with session.writer("t") as user:
        Copier(source, BackendTarget(user)).copy(0, SIZE)
    assert plans == [False]
    assert content(target) == content(source)
    check(session, "t")


@pytest.mark.parametrize("options", [{"extended-l2": True}, {"version": "v2"}, {"cluster-size": 512}], ids=str)
def test_other_kinds_of_images(session: Session, options: dict[str, Any]) -> None:
    source = image(session, "s", 1)
    target = image(session, "t", 2, **options)
    session.create_qcow2("u", SIZE, **options)
    fresh = session.add_qcow2("u")
    for node in (target, fresh):
        with session.writer(node.name) as user:
            Copier(source, BackendTarget(user)).copy(0, SIZE)
        assert content(node) == content(source)
        check(session, node.name)


@pytest.mark.parametrize("in_kernel", [True, False], ids=["kernel", "buffer"])
def test_a_failure_of_the_host_leaves_nothing_behind(
    session: Session, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: not in_kernel)
    source = image(session, "s", 1)
    session.create_qcow2("t", SIZE)
    target = session.add_qcow2("t")
    real, calls = os.copy_file_range if in_kernel else os.pwrite, 0
    which = 5 if in_kernel else 2  # the buffer brings many runs at once

    def fail_once(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == which:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args)

    if in_kernel:
        monkeypatch.setattr(os, "copy_file_range", fail_once)
    else:
        monkeypatch.setattr(host_copy, "write_at", fail_once)
    with session.writer("t") as user:
        Copier(source, BackendTarget(user)).copy(0, SIZE)
    assert calls >= which
    assert content(target) == content(source)
    check(session, "t")


def test_what_no_layer_decides_stays(session: Session, plans: list[bool]) -> None:
    middle = image(session, "b", 2)
    session.create_qcow2("a", SIZE)
    base = session.add_qcow2("a")
    here = [middle.block_status(offset, 512).flags & Status.ALLOCATED for offset in range(0, SIZE, CLUSTER)]
    with session.writer("a") as user:
        for number, allocated in enumerate(here):
            if not allocated and number % 3:
                user.write(number * CLUSTER, memoryview(noise(number, min(CLUSTER, SIZE - number * CLUSTER))))
    before, upper = content(base), content(middle)
    with session.writer("a") as user:
        wanted = Copier(middle, BackendTarget(user)).copy_decided(0, SIZE, middle)
    expected = b"".join(
        (upper if allocated else before)[number * CLUSTER : (number + 1) * CLUSTER]
        for number, allocated in enumerate(here)
    )
    assert content(base) == expected
    assert wanted == sum(min(CLUSTER, SIZE - number * CLUSTER) for number, allocated in enumerate(here) if allocated)
    assert plans == [True]
    check(session, "a")


def test_a_layer_is_filled_from_below(session: Session, plans: list[bool]) -> None:
    image(session, "a", 1)
    session.create_qcow2("b", SIZE, "a")
    top = session.add_qcow2("b", "a")
    seen: list[tuple[int, int]] = []
    before = content(top)
    top.trackers = (lambda offset, length: seen.append((offset, length)),)
    with top.ranges.hold(0, SIZE):
        copier = Copier(top, PopulateTarget(top), look_for_zeros=True)
        assert copier.copy_decided(0, SIZE, session.node("a")) is not None
    assert (plans, seen, content(top)) == ([True], [], before)
    check(session, "b")


# -- jobs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mirror", "backup", "stream", "commit"])
def test_jobs(session: Session, plans: list[bool], name: str) -> None:
    image(session, "a", 1)
    image(session, "b", 2, "a")
    expected = content(session.node("b"))
    target = {"stream": "c", "commit": "t"}.get(name, "t")
    session.create_qcow2(target, SIZE, "b" if name == "stream" else None)
    if name == "stream":
        session.add_qcow2("c", "b")
        session.do("block-stream", job_id="j", device="c")
    elif name == "commit":
        # The layers lie on an empty base.
        for node in ("b", "a"):
            session.do("blockdev-del", node_name=node)
        session.add_qcow2("t")
        for node, below in (("a", "t"), ("b", "a")):
            session.add_qcow2(node, below)
        session.create_qcow2("c", SIZE, "b")
        session.add_qcow2("c", "b")
        session.do("block-commit", job_id="j", device="c", top_node="b", base_node="t")
    else:
        session.add_qcow2("t")
        session.do(f"blockdev-{name}", job_id="j", device="b", target="t", sync="full")
    if name == "mirror":
        session.wait_event("BLOCK_JOB_READY")
        session.do("job-complete", id="j")
    session.wait_event("BLOCK_JOB_COMPLETED")
    session.wait_status("j", "null")
    assert content(session.node(target)) == expected
    assert any(plans)
    check(session, target)

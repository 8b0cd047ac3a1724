"""Power cuts while the engine is at work for a client, and a guest writes: see tests/powercut.py.

One more operation is one more function with @operation.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.powercut import Guest, Stage, image_info, read_image

SIZE = 1 << 20
CRASHES = 18
Run = Callable[[Stage, Guest, str], None]
OPERATIONS: dict[str, tuple[Run, dict[str, Any]]] = {}
"""Name → (what is done while the guest writes to ``top``, options of the images)."""


def operation(name: str, **options: Any) -> Callable[[Run], Run]:
    """An operation; *options*: those of the qcow2 images. It gets the stage, the guest, and the path of qemu-img."""

    def register(run: Run) -> Run:
        OPERATIONS[name] = run, options
        return run

    return register


def chain(stage: Stage, **options: Any) -> None:
    """base ← mid ← top, each with data of its own, open as nodes of these names."""
    noise = random.Random(7)
    session = stage.session
    below = None
    for name in ("base", "mid", "top"):
        session.create_qcow2(name, SIZE, below, **{"cluster_size": 4096, **options})
        writes = [(noise.randrange(SIZE // 8192) * 8192, noise.randbytes(noise.randrange(1, 8192))) for _ in range(20)]
        session.fill(name, *writes)
        below = name
    below = None
    for name in ("base", "mid", "top"):
        session.add_qcow2(name, below, read_only=name != "top", discard="unmap")
        below = name


# -- the operations --------------------------------------------------------------------------------------------------


def start(stage: Stage, command: str, **arguments: Any) -> None:
    stage.session.do(command, job_id="j", **arguments)


@operation("nothing but the guest")
def nothing(stage: Stage, guest: Guest, qemu_img: str) -> None:
    guest.work(60)


@operation("stream all")
def stream(stage: Stage, guest: Guest, qemu_img: str) -> None:
    start(stage, "block-stream", device="top")
    stage.job("j")

    def independent() -> None:
        assert "backing-filename" not in image_info(qemu_img, stage.path("top.qcow2"))

    stage.promise(independent)


@operation("stream a part")
def stream_part(stage: Stage, guest: Guest, qemu_img: str) -> None:
    start(stage, "block-stream", device="top", base_node="base")
    stage.job("j")

    def over_base() -> None:
        assert image_info(qemu_img, stage.path("top.qcow2"))["backing-filename"].endswith("base.qcow2")

    stage.promise(over_base)


@operation("commit of the middle")
def commit(stage: Stage, guest: Guest, qemu_img: str) -> None:
    start(stage, "block-commit", device="top", top_node="mid", base_node="base")
    stage.job("j")

    def over_base() -> None:
        assert image_info(qemu_img, stage.path("top.qcow2"))["backing-filename"].endswith("base.qcow2")

    stage.promise(over_base)


@operation("commit of the active layer")
def active_commit(stage: Stage, guest: Guest, qemu_img: str) -> None:
    start(stage, "block-commit", device="top", base_node="base")
    stage.session.wait_event("BLOCK_JOB_READY")
    guest.work(20)
    with guest.paused():
        stage.session.do("block-job-complete", device="j")
        stage.job("j")
        guest.show(stage.path("base.qcow2"))


@operation("snapshot")
def snapshot(stage: Stage, guest: Guest, qemu_img: str) -> None:
    path = stage.path("new.qcow2")
    with guest.paused(flush=False):
        stage.session.do("blockdev-snapshot-sync", node_name="top", snapshot_file=str(path), snapshot_node_name="new")
        guest.show(path)
    guest.work(20)


@operation("snapshot of an image that is there")
def snapshot_of(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    session.create_qcow2("new", SIZE, "top", cluster_size=4096)
    session.add_qcow2("new")
    with guest.paused(flush=False):
        session.do("blockdev-snapshot", node="top", overlay="new")
        guest.show(stage.path("new.qcow2"))
    guest.work(20)


@operation("resize")
def resize(stage: Stage, guest: Guest, qemu_img: str) -> None:
    for size in (3 * SIZE, 9 * SIZE):
        with guest.paused():
            guest.will_resize(SIZE)
            stage.session.do("block_resize", node_name="top", size=size)
            guest.resized()

            def grown(size: int = size) -> None:
                assert image_info(qemu_img, stage.path("top.qcow2"))["virtual-size"] >= size

            stage.promise(grown)
        guest.work(20)


@operation("change-backing-file")
def change_backing(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    (stage.path("link.qcow2")).symlink_to("mid.qcow2")
    session.do("change-backing-file", device="guest", image_node_name="top", backing_file=str(stage.path("link.qcow2")))

    def by_the_link() -> None:
        assert image_info(qemu_img, stage.path("top.qcow2"))["backing-filename"].endswith("link.qcow2")

    stage.promise(by_the_link)


@operation("mirror to a qcow2 image")
def mirror(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    session.create_qcow2("copy", SIZE, cluster_size=4096)
    session.add_qcow2("copy")
    start(stage, "blockdev-mirror", device="top", target="copy", sync="full")
    session.wait_event("BLOCK_JOB_READY")
    guest.work(20)
    with guest.paused():
        session.do("block-job-complete", device="j")
        stage.job("j")
        guest.show(stage.path("copy.qcow2"))


@operation("mirror of the top layer, writes at both sides at once")
def active_mirror(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    session.create_qcow2("copy", SIZE, "mid", cluster_size=8192)
    session.add_qcow2("copy", "mid")
    start(stage, "blockdev-mirror", device="top", target="copy", sync="top", copy_mode="write-blocking")
    session.wait_event("BLOCK_JOB_READY")
    guest.work(20)
    with guest.paused():
        session.do("block-job-complete", device="j")
        stage.job("j")
        guest.show(stage.path("copy.qcow2"))


@operation("backup to a qcow2 image")
def backup(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    session.create_qcow2("copy", SIZE, cluster_size=4096)
    session.add_qcow2("copy")
    with guest.paused():
        expected = guest.content
        start(stage, "blockdev-backup", device="top", target="copy", sync="full", auto_dismiss=False)
    session.wait_status("j", "concluded")
    session.do("blockdev-del", node_name="copy")
    stage.sound("copy.qcow2")

    def as_it_was() -> None:
        assert read_image(qemu_img, stage.path("copy.qcow2")) == expected

    stage.promise(as_it_was)


@operation("bitmaps that are stored")
def bitmaps(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    for number in range(4):
        session.do("block-dirty-bitmap-add", node="top", name=f"b{number}", persistent=True)
        guest.work(6)
    session.do("block-dirty-bitmap-remove", node="top", name="b1")
    guest.work(6)


@operation("internal snapshots")
def internal_snapshots(stage: Stage, guest: Guest, qemu_img: str) -> None:
    session = stage.session
    for name in ("a", "b", "c"):
        with guest.paused():
            expected = guest.content
            session.do("blockdev-snapshot-internal-sync", device="guest", name=name)

            def is_there(name: str = name, expected: bytes = expected) -> None:
                assert read_image(qemu_img, stage.path("top.qcow2"), snapshot=name) == expected

            if name != "b":
                stage.promise(is_there)
        guest.work(15)
    session.do("blockdev-snapshot-delete-internal-sync", device="guest", name="b")

    def is_gone() -> None:
        snapshots = image_info(qemu_img, stage.path("top.qcow2"))["snapshots"]
        assert [entry["name"] for entry in snapshots if entry["name"] == "b"] == []

    stage.promise(is_gone)


# -- the power cuts --------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    yield made
    made.finish()


@pytest.mark.parametrize("name", OPERATIONS)
def test_power_cut(name: str, stage: Stage, qemu_img: str) -> None:
    run, options = OPERATIONS[name]
    chain(stage, **options)
    stage.recorder.start()
    with stage.guest("top", "top.qcow2", seed=zlib.crc32(name.encode())) as guest:
        guest.work(20)
        run(stage, guest, qemu_img)
        guest.work(20)
    stage.finish()
    stage.crash_and_verify(qemu_img, crashes=CRASHES, seed=zlib.crc32(name.encode()))

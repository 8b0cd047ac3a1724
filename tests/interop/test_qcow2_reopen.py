"""Reopening qcow2 nodes with other options of the format, beside the real qemu-storage-daemon."""

from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Call, Do, Json, Step, assert_same
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

NODES = Do("query-named-block-nodes", {"flat": True})


def wire(options: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in options.items()}


def add(file: str = "a.qcow2", **options: Any) -> Do:
    child = {"driver": "file", "node-name": "f", "filename": f"$DIR/{file}"}
    return Do("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": child} | wire(options))


def again(**options: Any) -> Do:
    node = {"driver": "qcow2", "node-name": "n", "file": "f"} | wire(options)
    return Do("blockdev-reopen", {"options": [node]})


def header(file: str = "a.qcow2") -> Call:
    """The feature bits of an image: whether it is dirty, and has lazy refcounts."""

    def read(where: Path) -> Json:
        return (where / file).read_bytes()[72:96].hex()

    return Call(read)


def io(*commands: str) -> list[Step]:
    return [Do("block_resize", {"node-name": "n", "size": int(command)}) for command in commands]


MIB = 1 << 20
OPTIONS: list[tuple[str, Any]] = [
    ("lazy_refcounts", True),
    ("lazy_refcounts", False),
    ("pass_discard_request", True),
    ("pass_discard_snapshot", False),
    ("pass_discard_other", True),
    ("overlap_check", "none"),
    ("overlap_check", "constant"),
    ("overlap_check", "all"),
    ("overlap_check", {"template": "none", "inactive-l2": True}),
    ("overlap_check", {"main-header": False}),
    ("overlap_check", "some"),
    ("overlap_check", {"template": "some"}),
    ("overlap_check", {"other": True}),
    ("cache_size", 2 * MIB),
    ("cache_size", 0),
    ("cache_size", -1),
    ("cache_size", "1M"),
    ("l2_cache_size", 128 << 10),
    ("l2_cache_size", 1),
    ("l2_cache_size", -1),
    ("refcount_cache_size", -1),
    ("l2_cache_entry_size", -1),
    ("refcount_cache_size", 1 * MIB),
    ("l2_cache_entry_size", 4096),
    ("l2_cache_entry_size", 512),
    ("l2_cache_entry_size", 100),
    ("l2_cache_entry_size", 128 << 10),
    ("cache_clean_interval", 0),
    ("cache_clean_interval", 10),
    ("cache_clean_interval", -1),
    ("cache_clean_interval", 1 << 32),
    ("cache_clean_interval", 1 << 40),
    ("discard", "unmap"),
    ("detect_zeroes", "unmap"),
    ("encrypt", {"format": "luks", "key-secret": "s"}),
    ("encrypt", {"format": "aes"}),
    ("encrypt", {"format": "none"}),
    ("data_file", "f"),
    ("data_file", "nope"),
    ("backing", None),
    ("size", 1),
]
DELETE = Do("blockdev-del", {"node-name": "n"})
EACH: list[Step] = [again(**{key: value}) for key, value in OPTIONS]

CONVERSATIONS: dict[str, list[Step]] = {
    "each option": [add(), *EACH, NODES],
    "each option of a read-only node": [add(read_only=True), *(again(read_only=True, **{k: v}) for k, v in OPTIONS)],
    "each option of version 2": [add("v2.qcow2"), *EACH, NODES],
    "each option with lazy refcounts": [add("lazy.qcow2"), *EACH, NODES],
    "each option when it is opened": [step for pair in OPTIONS for step in (add(**dict([pair])), DELETE)],
    "sizes of caches together": [
        add(),
        again(cache_size=4 * MIB, l2_cache_size=1 * MIB, refcount_cache_size=1 * MIB),
        again(cache_size=1 * MIB, l2_cache_size=2 * MIB),
        again(cache_size=1 * MIB, refcount_cache_size=2 * MIB),
        again(cache_size=1 * MIB, l2_cache_size=1 * MIB),
        again(l2_cache_size=1 * MIB, refcount_cache_size=1 * MIB),
        again(l2_cache_size=1 << 62, l2_cache_entry_size=512),
        again(refcount_cache_size=1 << 62),
        again(cache_size=1 << 62),
        NODES,
    ],
    "lazy refcounts come and go": [
        add("lazy.qcow2"),
        header("lazy.qcow2"),
        *io(str(2 * MIB), str(3 * MIB)),
        again(lazy_refcounts=False),
        again(lazy_refcounts=True),
        *io(str(4 * MIB)),
        again(read_only=True),
        header("lazy.qcow2"),
        NODES,
        again(),
        again(lazy_refcounts=False),
        again(read_only=True, lazy_refcounts=True),
        header("lazy.qcow2"),
        NODES,
    ],
    "to and from read-only": [
        add(lazy_refcounts=True, overlap_check="all"),
        again(read_only=True),
        *io(str(2 * MIB)),
        again(),
        *io(str(2 * MIB)),
        again(read_only=True, l2_cache_size=1 * MIB),
        again(read_only=True),
        NODES,
    ],
    "back to the defaults": [
        add(cache_clean_interval=3, l2_cache_size=1 * MIB, pass_discard_other=True, overlap_check="none"),
        again(),
        NODES,
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_reopening_is_that_of_the_daemon(name: str, images: QemuImages, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        images.create(where / "a.qcow2", "1M")
        images.create(where / "lazy.qcow2", "1M", lazy_refcounts="on")
        images.create(where / "v2.qcow2", "1M", compat="0.10")

    assert_same(CONVERSATIONS[name], tmp_path, prepare=prepare, ignore=("actual-size",))
    for file in ("a.qcow2", "lazy.qcow2", "v2.qcow2"):
        images.check(tmp_path / "ours" / file)

"""The drivers for faults beside the real ones: options, errors, names, jobs that fail, qemu-io."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.filter.blklogwrites import ENTRY, MAGIC, SUPERBLOCK
from engine.engine import Engine
from engine.graph.permissions import Perm
from tests.engine.monitor.test_qemu_io import NUMBERS, run_hmp
from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, Until, WaitEvent, assert_same
from tests.qemu import QemuImages

pytestmark = pytest.mark.usefixtures("qsd")

CONFIGS = {
    "good": '# comment\n\n[inject-error]\nevent = "read_aio"\nerrno = "28"\n\n'
    '[set-state]\nevent = "none"\nnew_state = "3"\n',
    "glued": '[set-state]\nevent="none"\n',
    "id": '[inject-error "x"]\nevent = "none"\nsector = "0x10"\nonce = "on"\nimmediately = "off"\niotype = "flush"\n',
    "novalue": "[inject-error]\nevent\n",
    "empty-value": '[inject-error]\nevent = ""\n',
    "group": '[foo]\na = "b"\n',
    "empty-group": "[foo]\n",
    "nogroup": 'a = "b"\n',
    "key": '[inject-error]\nfoo = "b"\n',
    "state-key": '[set-state]\nsector = "1"\n',
    "event": '[inject-error]\nevent = "b"\n',
    "noevent": '[set-state]\nstate = "2"\n',
    "number": '[set-state]\nevent = "none"\nstate = "2x"\n',
    "negative": '[set-state]\nevent = "none"\nstate = "-2"\n',
    "huge": '[set-state]\nevent = "none"\nstate = "99999999999999999999"\n',
    "bool": '[inject-error]\nevent = "none"\nonce = "maybe"\n',
    "iotype": '[inject-error]\nevent = "none"\niotype = "foo"\n',
    "unquoted": "[inject-error]\nevent = none\n",
    "blank": "[inject-error]\n  \n",
    "open": "[inject-error\n",
    "cr": '[inject-error]\r\nevent = "none"\r\n',
    "no-newline": '[inject-error]\nevent = "none"',
    "twice": '[inject-error]\nevent = "foo"\nevent = "none"\n',
    "void": "",
}

LOGS = {
    "old-version": (2, 1, 512, 0),
    "bad-flags": (1, 1, 512, 16),
    "bad-sector": (1, 1, 500, 0),
    "cut": (1, 100, 512, 0),
}
"""Version, entries, sector size and flags of the first entry of logs that are there already."""


def prepare(images: QemuImages, where: Path) -> None:
    """A chain of qcow2 images with data in every layer, a raw file, and configuration files."""
    images.create(where / "base.qcow2", "1M")
    images.io(where / "base.qcow2", "write -P 1 0 1M")
    images.create(where / "mid.qcow2", "1M", backing="base.qcow2")
    images.io(where / "mid.qcow2", "write -P 2 256k 256k")
    images.create(where / "top.qcow2", "1M", backing="mid.qcow2")
    images.io(where / "top.qcow2", "write -P 3 512k 64k")
    images.create(where / "new.qcow2", "1M")
    shutil.copy(where / "new.qcow2", where / "copy.qcow2")
    (where / "a.raw").write_bytes(b"\x11" * (1 << 20))
    (where / "b.raw").write_bytes(b"\x11" * (1 << 20))
    (where / "short.raw").write_bytes(bytes(1536))
    (where / "log").write_bytes(bytes(1 << 20))
    for name, (version, entries, sector, flags) in LOGS.items():
        head = SUPERBLOCK.pack(MAGIC, version, entries, sector)
        (where / f"{name}.log").write_bytes(head + bytes(512 - len(head)) + ENTRY.pack(0, 1, flags, 0) + bytes(1024))
    (where / "empty.log").touch()
    for name, text in CONFIGS.items():
        (where / f"{name}.conf").write_bytes(text.encode())


def blkdebug(name: str = "d", *, image: Any = "$DIR/a.raw", **options: Any) -> Do:
    if isinstance(image, str) and "/" in image:
        image = {"driver": "file", "filename": image}
    wire = {key.replace("_", "-"): value for key, value in options.items()}
    return Do("blockdev-add", {"driver": "blkdebug", "node-name": name, "image": image} | wire)


def file(name: str) -> dict[str, Any]:
    return {"driver": "file", "filename": f"$DIR/{name}"}


def inject(event: str = "none", **options: Any) -> dict[str, Any]:
    return {"event": event, **options}


LOOK = Do("query-named-block-nodes", {"flat": True})

TALKS: dict[str, list[Step]] = {
    "config files": [
        *[blkdebug(f"d-{name}", config=f"$DIR/{name}.conf") for name in CONFIGS],
        *[blkdebug("x", config="$DIR/nope"), blkdebug("x", config="$DIR"), blkdebug("x", config="$DIR/a.raw/x")],
        LOOK,
    ],
    "limits": [
        blkdebug("l1", align=3),
        blkdebug("l1", align=-1),
        blkdebug("l1", align=1 << 31),
        blkdebug("l1", align=(1 << 31) - 1),
        blkdebug("l1", align=0),
        blkdebug("l2", align=4096, max_transfer=512),
        blkdebug("l2", max_transfer=1 << 31),
        blkdebug("l2", max_transfer=-5),
        blkdebug("l2", opt_write_zero=4096, max_write_zero=512),
        blkdebug("l2", align=512, opt_write_zero=100),
        blkdebug("l2", align=512, opt_discard=100),
        blkdebug("l2", max_discard=100, opt_discard=512),
        blkdebug("l2", max_discard=1536, opt_discard=512, align=512, max_write_zero=2048, max_transfer=1024),
        blkdebug("l3", opt_discard=100),
        LOOK,
    ],
    "options": [
        blkdebug("o1", inject_error=[inject("foo")]),
        blkdebug("o1", inject_error=[{}]),
        blkdebug("o1", inject_error=[inject(iotype="foo")]),
        blkdebug("o1", inject_error=[inject(sector="1")]),
        blkdebug("o1", inject_error=[inject(once=1)]),
        blkdebug("o1", inject_error=inject()),
        blkdebug("o1", set_state=[{"event": "none"}]),
        blkdebug("o1", set_state=[{"event": "none", "new-state": 1}]),
        blkdebug("o1", take_child_perms=["foo"]),
        blkdebug("o1", unshare_child_perms="write"),
        blkdebug("o1", image="nope"),
        blkdebug("o1", image={"driver": "file", "filename": "$DIR/nope"}),
        blkdebug("o1", image={"driver": "file"}),
        blkdebug("o1", foo=1),
        Do("blockdev-add", {"driver": "blkdebug", "node-name": "o1"}),
        blkdebug(
            "o1",
            inject_error=[inject("l2_load", sector=-5, errno=-5), inject(iotype="block-status", sector=1 << 60)],
            set_state=[{"event": "cor_write", "new_state": 1 << 40}],
        ),
        LOOK,
    ],
    "names": [
        blkdebug("n1"),
        blkdebug("n2", config="$DIR/good.conf"),
        blkdebug("n3", image={"driver": "raw", "file": {"driver": "file", "filename": "$DIR/b.raw"}, "offset": 512}),
        blkdebug("n4", image="n1", take_child_perms=["write"]),
        blkdebug("n5", image="n4", align=512),
        Do("blockdev-add", {"driver": "raw", "node-name": "r1", "file": "n2"}),
        Do("blockdev-add", {"driver": "raw", "node-name": "r2", "file": "n5"}),
        Do(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "q",
                "read-only": True,
                "file": {
                    "driver": "blkdebug",
                    "inject-error": [inject("l2_update")],
                    "image": {"driver": "file", "filename": "$DIR/top.qcow2"},
                },
            },
        ),
        LOOK,
        Do("blockdev-del", {"node-name": "n1"}),
        Do("blockdev-del", {"node-name": "n4"}),
        Do("blockdev-del", {"node-name": "r1"}),
        Do("blockdev-del", {"node-name": "n2"}),
    ],
    "permissions": [
        Do("blockdev-add", {"driver": "file", "node-name": "f", "filename": "$DIR/a.raw"}),
        blkdebug("p1", image="f", take_child_perms=["write"]),
        blkdebug("p2", image="f", unshare_child_perms=["write"]),
        blkdebug("p3", image="f", unshare_child_perms=["resize"]),
        blkdebug("p4", image="f", take_child_perms=["resize"]),
        blkdebug("p5", image="f", take_child_perms=["resize", "write"], read_only=True),
        blkdebug("p6", image="f", take_child_perms=["write-unchanged", "write-unchanged"]),
        Do("blockdev-del", {"node-name": "p3"}),
        blkdebug("p4", image="f", take_child_perms=["resize", "consistent-read"]),
        LOOK,
    ],
    "reopen": [
        blkdebug("d", align=512, inject_error=[inject("read_aio")]),
        Do("blockdev-reopen", {"options": [blkdebug("d", align=512).arguments]}),
        Do(
            "blockdev-reopen",
            {"options": [{**blkdebug("d", align=512, inject_error=[inject("read_aio")]).arguments, "read-only": True}]},
        ),
        Do("blockdev-reopen", {"options": [blkdebug("d", align=1024, inject_error=[inject("read_aio")]).arguments]}),
        Do(
            "blockdev-reopen",
            {"options": [blkdebug("d", align=512, inject_error=[inject("read_aio", once=True)]).arguments]},
        ),
        LOOK,
    ],
}


def blkverify(name: str, raw: Any, test: Any) -> Do:
    return Do("blockdev-add", {"driver": "blkverify", "node-name": name, "raw": raw, "test": test})


def logger(name: str, log: str = "log", **options: Any) -> Do:
    wire = {key.replace("_", "-"): value for key, value in options.items()}
    file = {"driver": "file", "filename": "$DIR/a.raw"}
    log_file = {"driver": "file", "filename": f"$DIR/{log}"}
    return Do("blockdev-add", {"driver": "blklogwrites", "node-name": name, "file": file, "log": log_file} | wire)


TALKS |= {
    "blkverify": [
        blkverify("v", file("a.raw"), file("b.raw")),
        blkverify("v1", "v", {"driver": "qcow2", "file": file("base.qcow2")}),
        blkverify("v2", {"driver": "null-co", "size": 1024}, {"driver": "null-co"}),
        blkverify("v3", {"driver": "raw", "file": file("short.raw"), "offset": 512}, "v"),
        blkverify("v4", "v", "nope"),
        blkverify("v4", "nope", "v"),
        blkverify("v4", file("nope"), file("nope2")),
        Do("blockdev-add", {"driver": "blkverify", "node-name": "v4", "raw": "v"}),
        Do("blockdev-add", {"driver": "blkverify", "node-name": "v4", "test": "v"}),
        Do(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "q",
                "file": {"driver": "blkverify", "raw": file("new.qcow2"), "test": file("copy.qcow2")},
            },
        ),
        LOOK,
        Do("blockdev-del", {"node-name": "v"}),
        Do("blockdev-del", {"node-name": "v3"}),
    ],
    "blklogwrites": [
        logger("l1", log_sector_size=100),
        logger("l1", log_sector_size=16),
        logger("l1", log_sector_size=1 << 24),
        logger("l1", log_sector_size=0),
        logger("l1", log_sector_size=1 << 32),
        logger("l1", log_sector_size=-1),
        logger("l1", log_super_update_interval=0),
        logger("l1", log_super_update_interval=-1),
        logger("l1", log_append=True, log_sector_size=512),
        logger("l1", log_append=True),
        logger("l1", log="nope"),
        logger("l1", log="old-version.log", log_append=True),
        logger("l1", log="bad-flags.log", log_append=True),
        logger("l1", log="bad-sector.log", log_append=True),
        logger("l2", log="cut.log", log_append=True),
        logger("l3", log="empty.log", log_append=True),
        logger("l4", log_sector_size=4096),
        logger("l5"),
        Do("blockdev-add", {"driver": "blklogwrites", "node-name": "l6", "file": "l4"}),
        LOOK,
    ],
    "blklogwrites, read-only": [
        logger("l1", read_only=True),
        LOOK,
        Do("blockdev-reopen", {"options": [logger("l1", log_sector_size=4096).arguments]}),
        Do("blockdev-reopen", {"options": [logger("l1", log_super_update_interval=1).arguments]}),
    ],
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS.keys())
def test_options(talk: list[Step], tmp_path: Path, images: QemuImages) -> None:
    assert_same(talk, tmp_path, prepare=lambda where: prepare(images, where))


def test_blkreplay(tmp_path: Path, images: QemuImages) -> None:
    """The storage daemon does not know it."""
    talk: list[Step] = [
        Do("blockdev-add", {"driver": "blkreplay", "node-name": "p", "image": file("a.raw")}),
        Do("blockdev-add", {"driver": "blkreplay", "node-name": "p2", "image": "p"}),
        Do("blockdev-add", {"driver": "blkreplay", "node-name": "p3"}),
        Do("blockdev-add", {"driver": "raw", "node-name": "r", "file": "p2"}),
        LOOK,
    ]
    assert_same(talk, tmp_path, prepare=lambda where: prepare(images, where), real=SYSTEM_EMULATOR)


# -- jobs that meet faults -------------------------------------------------------------------------------------------


def layer(name: str, backing: str | None, read_only: bool = True, **faults: Any) -> Do:
    """The image NAME.qcow2 over blkdebug, as the node NAME."""
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": f"$DIR/{name}.qcow2"}, **faults}
    options = {"driver": "qcow2", "node-name": name, "read-only": read_only, "file": file, "backing": backing}
    return Do("blockdev-add", options)


def chain(**faults: Any) -> list[Step]:
    """base ← mid ← top; *faults*: the options of blkdebug below each."""
    return [
        layer("base", None, **faults.get("base", {})),
        layer("mid", "base", **faults.get("mid", {})),
        layer("top", "mid", False, **faults.get("top", {})),
    ]


def status(value: str) -> WaitEvent:
    return WaitEvent("JOB_STATUS_CHANGE", {"id": "j", "status": value})


def stream(**options: Any) -> Do:
    return Do("block-stream", {"job-id": "j", "device": "top"} | options)


def commit(**options: Any) -> Do:
    return Do("block-commit", {"job-id": "j", "device": "top", "top-node": "mid", "base-node": "base"} | options)


READ_ONCE = {"inject-error": [inject("read_aio", once=True)]}
READ_ALWAYS = {"inject-error": [inject("read_aio")]}
WRITE_ONCE = {"inject-error": [inject("write_aio", once=True, iotype="write")]}
NO_SPACE_ONCE = {"inject-error": [inject("write_aio", once=True, iotype="write", errno=28)]}
STOPPED = Until("query-block-jobs", lambda jobs: bool(jobs) and jobs[0]["io-status"] != "ok")
DONE: list[Step] = [status("null"), Do("query-jobs"), Do("query-block-jobs")]
ERROR = WaitEvent("BLOCK_JOB_ERROR")
GO_ON = Do("block-job-resume", {"device": "j"})

JOBS: dict[str, list[Step]] = {
    "stream: report": [*chain(base=READ_ONCE), stream(), ERROR, *DONE],
    "stream: stop": [
        *chain(base=READ_ONCE),
        stream(**{"on-error": "stop"}),
        ERROR,
        status("paused"),
        STOPPED,
        Do("block-job-pause", {"device": "j"}),
        GO_ON,
        *DONE,
    ],
    "stream: stop twice": [
        *chain(base={"inject-error": [inject("read_aio", once=True), inject("read_aio", once=True)]}),
        stream(**{"on-error": "stop"}),
        ERROR,
        status("paused"),
        GO_ON,
        ERROR,
        status("paused"),
        GO_ON,
        *DONE,
    ],
    "stream: stop and cancel": [
        *chain(base=READ_ALWAYS),
        stream(**{"on-error": "stop"}),
        ERROR,
        status("paused"),
        Do("block-job-cancel", {"device": "j"}),
        Do("block-job-cancel", {"device": "j", "force": True}),
        *DONE,
    ],
    "stream: stop, auto-dismiss off": [
        *chain(base=READ_ONCE),
        stream(**{"on-error": "report", "auto-dismiss": False}),
        ERROR,
        status("concluded"),
        Do("query-jobs"),
        Do("job-dismiss", {"id": "j"}),
    ],
    "stream: ignore": [*chain(base=READ_ONCE), stream(**{"on-error": "ignore"}), ERROR, *DONE],
    "stream: enospc on EIO": [*chain(base=READ_ONCE), stream(**{"on-error": "enospc"}), ERROR, *DONE],
    "stream: write error": [*chain(top=WRITE_ONCE), stream(), ERROR, *DONE],
    "stream: write error, stop": [
        *chain(top=WRITE_ONCE),
        stream(**{"on-error": "stop"}),
        ERROR,
        status("paused"),
        GO_ON,
        *DONE,
    ],
    "stream: no space, enospc": [
        *chain(top=NO_SPACE_ONCE),
        stream(**{"on-error": "enospc"}),
        ERROR,
        status("paused"),
        STOPPED,
        GO_ON,
        *DONE,
    ],
    "stream: unknown policy": [*chain(), stream(**{"on-error": "foo"}), stream(**{"on-error": "auto"}), *DONE],
    "commit: report": [*chain(mid=READ_ONCE), commit(), ERROR, *DONE],
    "commit: stop": [
        *chain(mid=READ_ONCE),
        commit(**{"on-error": "stop"}),
        ERROR,
        status("paused"),
        STOPPED,
        GO_ON,
        *DONE,
    ],
    "commit: ignore": [*chain(mid=READ_ONCE), commit(**{"on-error": "ignore"}), ERROR, *DONE],
    "commit: write error": [*chain(base=WRITE_ONCE), commit(), ERROR, *DONE],
    "commit: no space, enospc": [
        *chain(base=NO_SPACE_ONCE),
        commit(**{"on-error": "enospc"}),
        ERROR,
        status("paused"),
        STOPPED,
        GO_ON,
        *DONE,
    ],
    "commit: no space, ignore": [*chain(base=NO_SPACE_ONCE), commit(**{"on-error": "ignore"}), ERROR, *DONE],
}


@pytest.mark.parametrize("talk", JOBS.values(), ids=JOBS.keys())
def test_jobs(talk: list[Step], tmp_path: Path, images: QemuImages) -> None:
    assert_same(talk, tmp_path, prepare=lambda where: prepare(images, where), ignore={"offset", "len"})


# -- qemu-io ---------------------------------------------------------------------------------------------------------


def io_talk(*commands: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    return {key.replace("_", "-"): value for key, value in options.items()}, list(commands)


IO = {
    "break and resume": io_talk(
        "break read_aio A", "aio_read 0 512", "wait_break A", "resume A", "aio_flush", "resume A", "remove_break A"
    ),
    "two tags": io_talk(
        "break write_aio A",
        "break write_aio B",
        "aio_write 0 64k",
        "wait_break A",
        "wait_break B",
        "resume B",
        "resume A",
        "aio_flush",
    ),
    "remove": io_talk("break read_aio A", "remove_break A", "read 0 512", "remove_break A"),
    "remove lets go": io_talk(
        "break write_aio A", "aio_write 0 64k", "wait_break A", "remove_break A", "aio_flush", "remove_break A"
    ),
    "misuse": io_talk("break foo A", "break", "break read_aio", "resume", "resume X", "remove_break", "wait_break"),
    "signals": io_talk("sigraise", "sigraise x", "sigraise 1000", "help sigraise", "help break", "help wait_break"),
    "nothing below": io_talk("break read_aio A", "resume A", "remove_break A", driver="null-co"),
    "once": io_talk("read 0 512", "read 0 512", inject_error=[inject("read_aio", once=True)]),
    "sector": io_talk(
        *("read 64k 512", "write 0 64k", "read 0 512", "flush"), inject_error=[inject("read_aio", sector=9999)]
    ),
    "states": io_talk(
        *["write 0 64k", "read 0 512", "read 0 512", "read 0 512"],
        inject_error=[
            inject("read_aio", state=2, errno=28, once=True),
            inject("read_aio", state=3, errno=4, iotype="read"),
        ],
        set_state=[
            {"event": "write_aio", "state": 1, "new_state": 2},
            {"event": "read_aio", "state": 2, "new_state": 3},
        ],
    ),
    "none is replaced": io_talk(
        *["read 0 512", "write 0 64k", "read 0 512", "discard 0 4k"],
        inject_error=[inject("none", iotype="read"), inject("pwritev", iotype="discard")],
        driver="file",
    ),
    "flush": io_talk("write 0 64k", "flush", "flush", inject_error=[inject("flush_to_disk", once=True)]),
    "flush to os": io_talk("write 0 64k", "flush", "flush", inject_error=[inject("flush_to_os", once=True)]),
    "l2 load": io_talk("read 0 512", "read 0 512", inject_error=[inject("l2_load", once=True)]),
    "cluster allocation": io_talk(
        "write 256k 64k", "write 256k 64k", inject_error=[inject("cluster_alloc", once=True, iotype="write")]
    ),
    "write zeroes": io_talk("write -z 0 1M", inject_error=[inject("none", iotype="write-zeroes")], driver="file"),
    "write zeroes, aligned": io_talk(
        *["write -P 7 0 1M", "write -z 100 20000", "read -P 7 0 100", "read -P 0 100 20000", "read -P 7 20100 1000"],
        *["write -zn 0 8k", "write -zn 0 100"],
        align=512,
        opt_write_zero=4096,
        max_write_zero=8192,
        max_transfer=4096,
        driver="file",
    ),
    "discard": io_talk("discard 0 1M", inject_error=[inject("none", iotype="discard")], driver="file"),
    "zeroes in parts": io_talk(
        *["write -z 100 1000", "write -z 0 4k", "write -z 100 8k"],
        opt_write_zero=4096,
        inject_error=[inject("none", iotype="write-zeroes")],
        driver="file",
    ),
    "discard of parts": io_talk(
        *["discard 100 1000", "discard 0 4k"],
        opt_discard=4096,
        inject_error=[inject("none", iotype="discard")],
        driver="file",
    ),
    "misaligned": io_talk(
        *["write -P 9 100 200", "read -P 9 100 200", "write 100 200"],
        align=512,
        inject_error=[inject("pwritev_rmw_after_tail", iotype="write", once=True)],
        driver="file",
    ),
    "pwritev": io_talk("write 0 512", "write 0 512", inject_error=[inject("pwritev", once=True)], driver="file"),
    "pwritev_zero": io_talk(
        "write 0 512", "write -z 0 512", inject_error=[inject("pwritev_zero", once=True)], driver="file"
    ),
    "max-transfer": io_talk(
        "write -P 5 0 64k", "read -P 5 0 64k", "read 0 1k", "read 1k 512",
        inject_error=[inject("none", iotype="read", sector=3, once=True)], max_transfer=1024, driver="file",
    ),
    "block status": io_talk("map", "alloc 0", inject_error=[inject("none", iotype="block-status")], driver="file"),
    "negative errno": io_talk("write 0 512", inject_error=[inject("none", iotype="write", errno=-5)], driver="file"),
    "errno 0": io_talk("write 0 512", "flush", inject_error=[inject("none", errno=0)], driver="file"),
}  # fmt: skip


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.mark.parametrize(("options", "commands"), IO.values(), ids=IO.keys())
def test_qemu_io(
    options: dict[str, Any], commands: list[str], tmp_path: Path, qemu_io: str, images: QemuImages, engine: Engine
) -> None:
    """Our monitor's qemu-io beside the real one, the lines in any order."""
    said = []
    for side in ("ours", "real"):
        where = tmp_path / side
        where.mkdir()
        prepare(images, where)
        given = dict(options)
        driver = given.pop("driver", "qcow2")
        raw = {"driver": "file", "filename": str(where / ("a.raw" if driver == "file" else "new.qcow2"))}
        debug: dict[str, Any] = {"driver": "blkdebug", "image": raw, **given}
        node: dict[str, Any] = debug | {"discard": "unmap"}
        if driver == "qcow2":
            images.io(where / "new.qcow2", "write 0 128k")
            node = {"driver": "qcow2", "file": debug}
        elif driver == "null-co":
            node = {"driver": "null-co", "read-zeroes": True}
        said.append(_by_ours(engine, node, commands) if side == "ours" else _by_tool(qemu_io, node, commands))
    assert said[0] == said[1]


def _by_ours(engine: Engine, node: dict[str, Any], commands: list[str]) -> list[str]:
    engine.execute("blockdev-add", {**node, "node-name": "n"})
    graph = engine.graph
    backend = engine.control.call(
        lambda: graph.add_backend("device", "d", graph.nodes["n"], Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    )
    try:
        text = "".join(run_hmp(engine, f'qemu-io d "{command}"') + "\n" for command in [*commands, "aio_flush"])
    finally:
        engine.control.call(lambda: graph.remove_backend(backend))
        engine.execute("blockdev-del", {"node-name": "n"})
    return _lines(text)


def _by_tool(qemu_io: str, node: dict[str, Any], commands: list[str]) -> list[str]:

    words = [word for command in [*commands, "aio_flush"] for word in ("-c", command)]
    done = subprocess.run(
        [qemu_io, "-t", "writeback", *words, "json:" + json.dumps(node)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    # The real one says nothing of a flush that failed; the exit status does, where all else went well.
    lines = _lines(done.stdout)
    silent = done.returncode and not any("failed" in line or "Could not" in line for line in lines)
    return sorted(lines + ["flush failed: Input/output error"]) if silent and "flush" in commands else lines


def _lines(text: str) -> list[str]:
    return sorted(filter(None, NUMBERS.sub("; T", text).replace("qemu-io: ", "").splitlines()))


# -- what the filters write and say ----------------------------------------------------------------------------------

LOGGED = {
    "writes": ["write -P 1 0 4k", "write -P 2 100 1000", "write -z 8k 8k", "flush", "write -P 3 4k 512", "flush"],
    "no flush": ["write -P 1 0 4k", "write -z -u 8k 8k"],
    # Of discards that are not aligned to the log's sectors the real one dies.
    "discards": ["discard 0 64k", "discard 16k 8k", "write -P 9 64k 1k", "flush", "flush"],
    "reads": ["read 0 64k", "flush"],
    "zeroes in parts": ["write -z 100 2000", "write -z 64k 100", "flush"],
    # Not "write -f": the real one leaves out the flush after the first write to a node (it looks before it has counted
    # the write), so its log tells of less than was promised.
    "flags": ["write -zu 0 4k", "writev 4k 512 512", "aio_write 16k 4k", "write -zn 0 4k"],
    "the end": ["write -P 4 1048064 512", "write -z 1048000 576", "write 1M 512", "truncate 2M", "write 1M 512"],
}


@pytest.mark.parametrize("options", [{}, {"log-sector-size": 4096}, {"log-super-update-interval": 2}], ids=str)
@pytest.mark.parametrize("commands", LOGGED.values(), ids=LOGGED.keys())
def test_logs(
    commands: list[str], options: dict[str, Any], tmp_path: Path, qemu_io: str, images: QemuImages, engine: Engine
) -> None:
    """The same requests give the same log and the same image, byte for byte; also where the log is continued."""
    results = []
    for side in ("ours", "real"):
        where = tmp_path / side
        where.mkdir()
        prepare(images, where)
        (where / "log").write_bytes(b"")
        node: dict[str, Any] = {
            "driver": "blklogwrites",
            "file": {"driver": "file", "filename": str(where / "a.raw")},
            "log": {"driver": "file", "filename": str(where / "log")},
            "discard": "unmap",
        }
        said = []
        again = {key: value for key, value in options.items() if key != "log-sector-size"} | {"log-append": True}
        for given in (options, again):
            if side == "ours":
                said += _by_ours(engine, node | given, commands)
            else:
                said += _by_tool(qemu_io, node | given, commands)
        results.append((said, (where / "a.raw").read_bytes(), (where / "log").read_bytes()))
    (our_said, our_image, our_log), (said, image, log) = results
    assert our_said == said
    assert our_image == image
    assert our_log == log


MISMATCHES = {
    "contents": ({}, ["write 0 4k", "read 0 4k", "read 4k 4k"]),
    "further on": ({}, ["read 0 64k"]),
    "one fails to read": ({"inject-error": [inject(iotype="read", sector=16)]}, ["read 0 4k", "read 8k 4k"]),
    "one fails to write": ({"inject-error": [inject(iotype="write", sector=16, errno=28)]}, ["write 0 64k"]),
}


@pytest.mark.parametrize(("faults", "commands"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_blkverify_tells_what_is_different(
    faults: dict[str, Any],
    commands: list[str],
    tmp_path: Path,
    qemu_io: str,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The real one prints this and exits; ours says it in the log, and the request fails."""
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    (tmp_path / "test").write_bytes(bytes(4100) + b"x" + bytes((1 << 20) - 4101))
    test: dict[str, Any] = {"driver": "file", "filename": str(tmp_path / "test")}
    if faults:
        test = {"driver": "blkdebug", "image": test, **faults}
    node = {"driver": "blkverify", "raw": {"driver": "file", "filename": str(tmp_path / "raw")}, "test": test}
    ours = _by_ours(engine, node, commands)
    real = _by_tool(qemu_io, node, commands)
    assert [message for message in caplog.messages if "blkverify" in message] == [
        line for line in real if line.startswith("blkverify: ")
    ]
    assert any(line.endswith("failed: Input/output error") for line in ours)

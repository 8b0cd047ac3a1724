"""Dirty bitmaps, played to our engine and to QEMU 7.2: answers, bits and what is in the image must be the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.interop.bitmap_talk import (
    ABORT,
    CLOSE,
    IMAGES,
    LOOK,
    MIB,
    NODES,
    OPEN,
    SIZE,
    VARYING,
    act,
    act_merge,
    add,
    bitmap,
    closed_and_opened,
    image_info,
    merge,
    opened,
    prepare,
    protocol,
    reopened,
    sha,
    transaction,
    write,
)
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, Step, Until, assert_same

pytestmark = pytest.mark.interop

# -- the conversations -----------------------------------------------------------------------------------------------

LONG = "x" * 1024
SWITCHES = [bitmap(verb) for verb in ("enable", "disable", "clear", "remove")]

TALKS: dict[str, Sequence[Step]] = {
    "add": [
        *OPEN,
        protocol("r", "r.raw"),
        add(),
        add(),
        add("g", granularity=512),
        add("big", granularity=1 << 31),
        add("off", disabled=True),
        add("p", persistent=True),
        add("r", node="r"),
        NODES,
        *closed_and_opened(),
    ],
    "add-misuse": [
        *OPEN,
        protocol("v2-f", "v2.qcow2"),
        opened("v2", "v2-f"),
        protocol("h-f", "huge.qcow2"),
        opened("h", "h-f"),
        protocol("r", "r.raw"),
        add(""),
        add("", node="nowhere"),
        add(node="nowhere"),
        add(granularity=0),
        add(granularity=256),
        add(granularity=3000),
        add(granularity=1 << 32),
        add(granularity=-1),
        add(LONG),
        add(LONG, persistent=True),
        add(node="v2", persistent=True),
        add(node="h", persistent=True, granularity=512),
        add(node="h", persistent=True, granularity=1024),
        add(node="h", persistent=True, granularity=2048),
        add(node="h", granularity=1 << 20),
        add(node="r", persistent=True),
        Do("block-dirty-bitmap-add", {"node": "n"}),
        Do("block-dirty-bitmap-add", {"name": "n"}),
        add(other=1),
        add(persistent="yes"),
        NODES,
    ],
    "unknown": [
        *OPEN,
        *SWITCHES,
        *(bitmap(verb, node="nowhere") for verb in ("enable", "disable", "clear", "remove")),
        *sha("b"),
        *sha("b", node="nowhere"),
        merge("b", "c"),
        merge("b", "c", node="nowhere"),
        add(),
        merge("b", "c"),
        merge("b", {"node": "nowhere", "name": "b"}),
        merge("b", {"node": "n", "name": "c"}),
        merge("b", {"node": "n"}),
        merge("b", 1),  # type: ignore[arg-type]
        merge("b", "b"),
    ],
    "writes": [
        *OPEN,
        add("fine", granularity=512),
        add("plain"),
        add("coarse", granularity=1 << 20),
        add("off", disabled=True),
        *write("write 0 512", "write 66k 3k", "write -z 1M 65k", "discard 2M 64k", "write 8388096 512", "read 4M 1M"),
        NODES,
        *sha("fine", "plain", "coarse", "off"),
        bitmap("enable", "off"),
        bitmap("disable", "plain"),
        *write("write 5M 10k"),
        NODES,
        bitmap("clear", "fine"),
        *write("write 1k 1k"),
        NODES,
        *sha("fine", "plain", "coarse", "off"),
        bitmap("remove", "coarse"),
        NODES,
    ],
    "merge-granularities": [
        *OPEN,
        *(add(f"g{g}", granularity=g) for g in (512, 4096, 65536, MIB)),
        *write("write 1000k 3k", "write 3M 1"),
        *(add(f"to{g}", granularity=g, disabled=True) for g in (512, 4096, 65536, MIB)),
        *(merge(f"to{g}", f"g{s}") for g, s in ((512, 65536), (4096, 512), (65536, MIB), (MIB, 512))),
        NODES,
        *sha("to512", "to4096", "to65536", f"to{MIB}"),
        merge("to512", "g512", "g4096", {"node": "n", "name": "g65536"}),
        merge("to512", "to512"),
        *sha("to512"),
    ],
    "merge-nodes": [
        *OPEN,
        protocol("r", "r.raw"),
        protocol("s-f", "small.qcow2"),
        opened("s", "s-f"),
        add(),
        add("b", node="r", granularity=4096),
        add("b", node="s"),
        *write("write 64k 1k"),
        *write("write 128k 1k", node="r"),
        merge("b", {"node": "r", "name": "b"}),
        merge("b", {"node": "s", "name": "b"}),
        merge("b", {"node": "r", "name": "b"}, {"node": "s", "name": "b"}),
        merge("b", {"node": "r", "name": "b"}, "missing"),
        merge("b", "b", node="r"),
        NODES,
        *sha("b"),
        *sha("b", node="r"),
    ],
    "merge-failing-late": [
        *OPEN,
        add("t", disabled=True),
        add("s"),
        *write("write 0 1M"),
        merge("t", "s", "missing"),
        merge("t", "s", {"node": "nowhere", "name": "s"}),
        NODES,
        *sha("t"),
    ],
    "transaction": [
        *OPEN,
        add("old", persistent=True),
        *write("write 0 100k"),
        transaction(act("disable", "old"), act("add", "new", persistent=True), act("add", "tmp", disabled=True)),
        *write("write 1M 100k"),
        transaction(act_merge("tmp", "old", "new"), act("clear", "old"), act("enable", "old"), act("remove", "new")),
        NODES,
        *sha("old", "tmp"),
        *closed_and_opened(),
    ],
    "transaction-undone": [
        *OPEN,
        add("a"),
        add("b", disabled=True, persistent=True),
        add("c", granularity=512),
        *write("write 0 100k", "write 3M 5k"),
        transaction(
            act("add", "d"),
            act("disable", "a"),
            act("enable", "b"),
            act_merge("b", "a", "c"),
            act("clear", "c"),
            act("clear", "a"),
            act("remove", "b"),
            ABORT,
        ),
        NODES,
        *sha("a", "b", "c"),
        *write("write 5M 1"),
        NODES,
        *closed_and_opened(),
    ],
    "transaction-second-fails": [
        *OPEN,
        add("a"),
        *write("write 0 100k"),
        transaction(act("add", "n1"), act("add", "a")),
        transaction(act("clear", "a"), act("add", "")),
        transaction(act("disable", "a"), act("add", "x", granularity=5)),
        transaction(act("add", "n1"), act("add", "n1")),
        transaction(act("remove", "a"), act("remove", "a")),
        transaction(act("remove", "a"), act("add", "a")),
        transaction(act("remove", "a"), act("clear", "a")),
        transaction(act("add", "n1"), act("remove", "nothing")),
        NODES,
        *sha("a"),
    ],
    "transaction-first-fails": [
        *OPEN,
        add("a"),
        transaction(act("add", "a"), act("add", "z")),
        transaction(act("remove", "z"), act("add", "z")),
        transaction(ABORT, act("add", "z")),
        transaction(act_merge("a", "z"), act("add", "z")),
        transaction(act("add", "z"), ABORT, act("add", "y")),
        NODES,
    ],
    "transaction-misuse": [
        *OPEN,
        add("a"),
        transaction(act("add", "z"), properties={"completion-mode": "grouped"}),
        *(transaction(act(verb, "a"), properties={"completion-mode": "grouped"}) for verb in ("remove", "clear")),
        transaction(act_merge("a", "a"), properties={"completion-mode": "grouped"}),
        transaction(("block-dirty-bitmap-add", {"node": "n"})),
        transaction(("block-dirty-bitmap-rename", {"node": "n"})),
        NODES,
    ],
    "transaction-on-what-it-made": [
        *OPEN,
        add("s", granularity=512),
        *write("write 700k 9k"),
        transaction(
            act("add", "t", granularity=4096, disabled=True),
            act_merge("t", "s"),
            act("add", "u", granularity=1 << 20),
            act_merge("u", "t"),
            act("clear", "t"),
            act("remove", "s"),
        ),
        NODES,
        *sha("t", "u"),
    ],
    "persistence": [
        *OPEN,
        add("one", persistent=True),
        add("two", persistent=True, granularity=4096, disabled=True),
        add("three", persistent=True, granularity=512),
        add("gone"),
        *write("write 1M 70k", "write 0 512", "discard 6M 128k"),
        *sha("one", "two", "three"),
        *closed_and_opened(),
        *sha("one", "two", "three"),
        *write("write 4M 1k"),
        bitmap("disable", "one"),
        add("four", persistent=True),
        bitmap("remove", "two"),
        NODES,
        *closed_and_opened(),
        *sha("one", "three", "four"),
        *closed_and_opened(),
        bitmap("remove", "one"),
        bitmap("remove", "three"),
        bitmap("remove", "four"),
        NODES,
        *closed_and_opened(),
    ],
    "stored-by-qemu": [
        protocol("f", "stored.qcow2"),
        opened(read_only=True),
        NODES,
        *sha("fine", "plain", "coarse"),
        CLOSE,
        opened(),
        NODES,
        *write("write 1M 1"),
        *sha("fine", "plain", "coarse"),
        merge("plain", "fine"),
        *sha("plain"),
        CLOSE,
        Call(lambda where: image_info(where / "stored.qcow2")),
        opened(),
        *sha("fine", "plain", "coarse"),
        NODES,
    ],
    "all-dirty": [
        *OPEN,
        add(persistent=True, granularity=512),
        *write("write 0 8M"),
        *sha("b"),
        *closed_and_opened(),
        *sha("b"),
    ],
    "read-only": [
        *OPEN,
        add(persistent=True),
        add("off", persistent=True, disabled=True),
        *write("write 0 1"),
        *closed_and_opened(read_only=True),
        bitmap("clear"),
        bitmap("remove"),
        bitmap("disable"),
        bitmap("enable", "off"),
        merge("b", "off"),
        add("t", disabled=True),
        merge("t", "b"),
        bitmap("clear", "t"),
        transaction(act("clear", "t"), act("clear", "b")),
        transaction(act("disable", "t"), act("remove", "b")),
        NODES,
        *sha("b", "t"),
        *closed_and_opened(),
    ],
    "inconsistent": [
        protocol("f", "crashed.qcow2"),
        opened(),
        NODES,
        *(bitmap(verb) for verb in ("enable", "disable", "clear")),
        merge("b", "whole"),
        merge("whole", "b"),
        add(),
        add(persistent=True),
        transaction(act("clear", "whole"), act("clear", "b")),
        transaction(act("disable", "whole"), act_merge("whole", "b")),
        *sha("b"),
        Do("block_resize", {"node-name": "n", "size": 2 * SIZE}),
        *write("write 0 1"),
        CLOSE,
        opened(),
        NODES,
        transaction(act("remove"), ABORT),
        NODES,
        bitmap("remove"),
        NODES,
        Do("block_resize", {"node-name": "n", "size": 2 * SIZE}),
        CLOSE,
        Call(lambda where: image_info(where / "crashed.qcow2")),
    ],
    "inconsistent-read-only": [
        protocol("f", "crashed.qcow2"),
        opened(read_only=True),
        NODES,
        *SWITCHES,
        merge("whole", "b"),
        *reopened(False),
        *SWITCHES[:3],
        *write("write 0 64k"),
        *reopened(True),
        *reopened(False),
        *SWITCHES,
        NODES,
        CLOSE,
        Call(lambda where: image_info(where / "crashed.qcow2")),
    ],
    "reopen": [
        *OPEN,
        add(persistent=True),
        add("t"),
        *write("write 64k 1"),
        *reopened(True),
        *sha("b"),
        bitmap("clear"),
        bitmap("clear", "t"),
        *write("write 128k 1"),
        *reopened(False),
        *write("write 256k 1"),
        *sha("b"),
        *reopened(True),
        *reopened(True),
        *closed_and_opened(read_only=True),
        *reopened(False),
        *write("write 512k 1"),
        bitmap("remove"),
        add(persistent=True, disabled=True),
        *reopened(True),
        *closed_and_opened(),
    ],
    "resize": [
        *OPEN,
        add(persistent=True),
        add("t", granularity=512),
        *write("write 8000k 1k"),
        Do("block_resize", {"node-name": "n", "size": SIZE + 3 * MIB}),
        NODES,
        *sha("b", "t"),
        *write("write 10M 1k"),
        *sha("b", "t"),
        *closed_and_opened(),
        Do("block_resize", {"node-name": "n", "size": SIZE + 9 * MIB}),
        *write("write 16M 1k"),
        *sha("b"),
        *closed_and_opened(),
        *sha("b"),
        Do("block_resize", {"node-name": "n", "size": SIZE - MIB - 512}),
        NODES,
        *sha("b"),
        *closed_and_opened(),
        *sha("b"),
        *closed_and_opened(read_only=True),
        Do("block_resize", {"node-name": "n", "size": SIZE}),
    ],
    "resize-raw": [
        protocol("r", "r.raw"),
        add(node="r", granularity=512),
        *write("write 8100k 1k", node="r"),
        Do("block_resize", {"node-name": "r", "size": 4 * SIZE}),
        *sha("b", node="r"),
        *write("write 20M 1k", node="r"),
        *sha("b", node="r"),
        Do("block_resize", {"node-name": "r", "size": SIZE - 512}),
        *sha("b", node="r"),
        NODES,
    ],
    "snapshots": [
        *OPEN,
        protocol("o-f", "crashed.qcow2"),
        add(persistent=True),
        *write("write 64k 1"),
        opened("o", "o-f", backing=None),
        Do("blockdev-snapshot", {"node": "n", "overlay": "o"}),
        NODES,
        *write("write 1M 1", node="o"),
        bitmap("clear"),
        bitmap("clear", "whole", node="o"),
        add("top", node="o", persistent=True),
        NODES,
        Do("blockdev-del", {"node-name": "o"}),
        CLOSE,
        LOOK,
    ],
    "internal-snapshots": [
        *OPEN,
        add(persistent=True),
        *write("write 64k 1"),
        Do("blockdev-snapshot-internal-sync", {"device": "n", "name": "s"}),
        *write("write 1M 1"),
        *sha("b"),
        *reopened(True),
        *reopened(False),
        *write("write 2M 1"),
        *sha("b"),
        CLOSE,
        LOOK,
        opened(),
        Do("blockdev-snapshot-delete-internal-sync", {"device": "n", "name": "missing"}),
        *write("write 3M 1"),
        *sha("b"),
        CLOSE,
        LOOK,
    ],
    "commit": [
        *OPEN,
        add(persistent=True),
        protocol("o-f", "small.qcow2"),
        opened("o", "o-f", backing=None),
        Do("blockdev-snapshot", {"node": "n", "overlay": "o"}),
        *write("write 65k 1", node="o"),
        Do("block-commit", {"job-id": "j", "device": "o", "base-node": "n", "auto-finalize": True}),
        Until("query-block-jobs", lambda jobs: bool(jobs) and jobs[0]["ready"] and not jobs[0]["busy"]),
        bitmap("clear"),
        Do("block-job-complete", {"device": "j"}),
        Until("query-block-jobs", lambda jobs: not jobs),
        Do("blockdev-del", {"node-name": "o"}),
        CLOSE,
        LOOK,
    ],
    "overlay-of-bitmaps": [
        protocol("f", "stored.qcow2"),
        opened(read_only=True),
        protocol("o-f", "a.qcow2"),
        opened("o", "o-f", backing="n"),
        add("x", node="o", persistent=True),
        merge("x", {"node": "n", "name": "fine"}, node="o"),
        NODES,
        *sha("x", node="o"),
    ],
    "data-file": [
        protocol("f", "d.qcow2"),
        opened(),
        add(persistent=True, granularity=512),
        *write("write 1M 3k", "write -z 4M 64k"),
        CLOSE,
        Call(lambda where: image_info(where / "d.qcow2")),
        opened(),
        *sha("b"),
        bitmap("remove"),
        add("c", persistent=True),
        CLOSE,
        Call(lambda where: image_info(where / "d.qcow2")),
    ],
    "subclusters": [
        protocol("f", "e.qcow2"),
        opened(),
        add(persistent=True),
        *write("write 1M 3k", "discard 4M 64k"),
        NODES,
        *reopened(True),
        *reopened(False),
        *write("write 2M 3k"),
        *sha("b"),
        CLOSE,
        Call(lambda where: image_info(where / "e.qcow2")),
        opened(),
        *sha("b"),
    ],
    "names": [
        *OPEN,
        *(add(name, persistent=True) for name in ("ä€𝄞", "a b", "'q'", "x" * 1023, "%s", "a/b")),
        NODES,
        *closed_and_opened(),
        *closed_and_opened(),
        bitmap("remove", "x" * 1023),
        bitmap("remove", "ä€𝄞"),
        *closed_and_opened(),
    ],
    "many": [
        *OPEN,
        *(add(f"b{i}", persistent=True, granularity=512 << i % 4, disabled=i % 3 == 0) for i in range(40)),
        *write("write 1M 3k"),
        *closed_and_opened(),
        *(bitmap("remove", f"b{i}") for i in range(0, 40, 2)),
        *(add(f"c{i}", persistent=True) for i in range(10)),
        *closed_and_opened(),
        *sha(*(f"b{i}" for i in range(1, 40, 6))),
    ],
    "remove-and-add-again": [
        *OPEN,
        add(persistent=True),
        *write("write 0 1M"),
        *closed_and_opened(),
        bitmap("remove"),
        NODES,
        add(persistent=True, granularity=512),
        *write("write 2M 1"),
        *closed_and_opened(),
        *sha("b"),
        transaction(act("remove"), ABORT),
        NODES,
        *closed_and_opened(),
        *sha("b"),
        transaction(act("remove")),
        *closed_and_opened(),
    ],
    "filters": [
        *OPEN,
        Do("blockdev-add", {"driver": "copy-on-read", "node-name": "cor", "file": "n"}),
        Do("blockdev-add", {"driver": "raw", "node-name": "raw", "file": "cor"}),
        add("c", node="cor"),
        add("r", node="raw"),
        add("p", node="cor", persistent=True),
        add(),
        *write("write 1M 5k", node="raw"),
        NODES,
        merge("c", {"node": "raw", "name": "r"}, {"node": "n", "name": "b"}, node="cor"),
        *sha("c", node="cor"),
    ],
}

BACKUP = {"job-id": "j", "device": "n", "target": "t", "bitmap": "b", "auto-finalize": False}
PENDING = Until("query-jobs", lambda jobs: jobs[0]["status"] == "pending")
GONE = Until("query-jobs", lambda jobs: not jobs)


def busy(**backup: str) -> list[Step]:
    """A bitmap that a backup uses, in every command; and what is left when that ends."""
    return [
        *OPEN,
        protocol("t-f", "target.qcow2"),
        opened("t", "t-f"),
        add(persistent=True),
        add("other"),
        *write("write 1M 64k", "write 3M 1k"),
        Do("blockdev-backup", {**BACKUP, **backup}),
        PENDING,
        NODES,
        *write("write 5M 1k"),
        NODES,
        *SWITCHES,
        merge("b", "other"),
        merge("other", "b"),
        add(),
        transaction(act("clear", "other"), act("clear")),
        transaction(act("disable", "other"), act("remove")),
        transaction(act("enable", "other"), act_merge("other", "b")),
        Do("blockdev-backup", {**BACKUP, **backup, "job-id": "k"}),
        *sha("b", "other"),
        NODES,
    ]


for sync, mode in (("incremental", "on-success"), ("bitmap", "never"), ("bitmap", "always"), ("top", "always")):
    given = {"sync": sync, "bitmap-mode": mode}
    for verb in ("finalize", "cancel"):
        end = Do(f"job-{verb}", {"id": "j"})
        TALKS[f"busy-{sync}-{mode}-{verb}"] = [*busy(**given), end, GONE, NODES, *sha("b"), *closed_and_opened()]


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS.keys())
def test_same_as_the_emulator(talk: Sequence[Step], tmp_path: Path, qemu_system: str) -> None:
    assert_same(talk, tmp_path, prepare=prepare, real=SYSTEM_EMULATOR, ignore=VARYING, events=False)


# -- whatever comes to mind ------------------------------------------------------------------------------------------


def random_actions(pick: Random) -> list[tuple[str, dict[str, Any]]]:
    actions: list[tuple[str, dict[str, Any]]] = []
    for _ in range(pick.randrange(1, 5)):
        name = pick.choice("abck")
        kind = pick.choice(["add", "remove", "clear", "merge", "enable", "disable", "abort"])
        if kind == "merge":
            actions.append(act_merge(pick.choice("abck"), *pick.sample("abck", pick.randrange(1, 3))))
        elif kind == "add":
            actions.append(act("add", name, persistent=pick.random() < 0.5))
        elif kind in ("enable", "disable"):
            # 7.2 crashes if there is no such bitmap: k is always there.
            actions.append(act(kind, "k"))
        elif kind == "abort":
            actions += [ABORT] * (pick.random() < 0.4)
        else:
            actions.append(act(kind, name if kind == "clear" else pick.choice("abc")))
    return actions or [ABORT]


def random_talk(seed: int, length: int = 50) -> list[Step]:
    pick = Random(seed)
    talk: list[Step] = [*OPEN, add("k", persistent=True)]
    for _ in range(length):
        name = pick.choice("abc")
        match pick.randrange(12):
            case 0 | 1:
                more: dict[str, Any] = {"granularity": pick.choice([512, 4096, MIB])} if pick.random() < 0.6 else {}
                talk.append(add(name, persistent=pick.random() < 0.7, disabled=pick.random() < 0.3, **more))
            case 2:
                talk.append(bitmap(pick.choice(["remove", "clear", "enable", "disable"]), name))
            case 3:
                talk.append(merge(pick.choice("abck"), *pick.sample("abck", pick.randrange(1, 4))))
            case 4 | 5 | 6:
                verb = pick.choice(["write", "write -z", "discard"])
                talk += write(f"{verb} {pick.randrange(6000)}k {pick.choice([1, 64, 900])}k")
            case 7:
                talk.append(transaction(*random_actions(pick)))
            case 8:
                talk += reopened(True)
                talk += [bitmap(pick.choice(["remove", "clear", "disable"]), name)] * pick.randrange(2)
                talk += reopened(False)
            case 9:
                talk += [CLOSE, LOOK, opened()]
            case 10:
                size = pick.choice([SIZE, SIZE + 512, 2 * SIZE, SIZE - MIB])
                talk.append(Do("block_resize", {"node-name": "n", "size": size}))
            case _:
                talk += [NODES, *sha(*"abck")]
    return [*talk, NODES, *sha(*"abck"), CLOSE, LOOK, opened(), NODES, *sha(*"abck")]


@pytest.mark.parametrize("seed", range(4))
def test_random_conversations(seed: int, tmp_path: Path, qemu_system: str) -> None:
    assert_same(random_talk(seed), tmp_path, prepare=prepare_one, real=SYSTEM_EMULATOR, ignore=VARYING, events=False)


def prepare_one(where: Path) -> None:
    IMAGES.create(where / "a.qcow2", SIZE)

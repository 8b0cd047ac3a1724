"""Block exports and the NBD server beside the real qemu-storage-daemon: replies, errors, events and their order."""

import functools
import hashlib
import re
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Call, Do, Step, Until, WaitEvent, assert_same
from tests.qemu import QemuImages

pytestmark = pytest.mark.usefixtures("qsd")

NO_DESCRIPTOR = {"error": {"class": "GenericError", "desc": "File descriptor named 'nothing' has not been found"}}
"""As the emulator has it; the daemon takes none."""
UNIX = {"type": "unix", "data": {"path": "$DIR/sock"}}
START = Do("nbd-server-start", {"addr": UNIX})
STOP = Do("nbd-server-stop")
LIST = Do("query-block-exports")
GRAPH = Do("x-debug-query-block-graph")
NODES: list[Step] = [
    Do("blockdev-add", {"driver": "file", "node-name": "f", "filename": "$DIR/a.raw"}),
    Do("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f"}),
    Do("blockdev-add", {"driver": "null-co", "node-name": "ro", "read-only": True}),
]


def add(id: str, node: str, **options: Any) -> Do:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Do("block-export-add", {"type": "nbd", "id": id, "node-name": node} | given)


def remove(id: str, **options: Any) -> Do:
    return Do("block-export-del", {"id": id} | options)


def old_add(device: str, **options: Any) -> Do:
    return Do("nbd-server-add", {"device": device} | options)


def bitmap(name: str, node: str = "r", **options: Any) -> Do:
    return Do("block-dirty-bitmap-add", {"node": node, "name": name} | options)


def list_exports(where: Path) -> str:
    done = subprocess.run(
        ["qemu-nbd", "--list", "-k", where / "sock"], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout


def qemu_io(export: str, command: str, where: Path) -> str:
    """What qemu-io prints for a command on an export, without its rates."""
    uri = f"nbd+unix:///{export}?socket={where / 'sock'}"
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", command, uri], capture_output=True, text=True, timeout=20, check=False
    )
    return re.sub(r"; .* ops/sec\)", "", done.stdout + done.stderr)


ODD_REQUESTS = (
    *((export, command) for export in ("o", "of") for command in ("read -v 960 64", "read 512 513", "map")),
    *(("of", command) for command in ("write -P 65 1000 8", "read -v 960 64", "write -P 66 1016 8", "read -v 960 64")),
    *(("of", command) for command in ("write -z 1008 16", "read -v 960 64", "discard 1000 24", "write 1000 25")),
)


MEMORY = {"driver": "null-co", "size": 4 << 20}
FOUR_K = {"driver": "blkdebug", "align": 4096, "image": MEMORY}
BLOCKS: dict[str, dict[str, Any]] = {
    "sector": {"driver": "blkdebug", "align": 512, "image": MEMORY},
    "four": FOUR_K,
    "large": {"driver": "blkdebug", "align": 65536, "image": MEMORY},
    "short": {"driver": "blkdebug", "align": 512, "max-transfer": 65536, "image": MEMORY},
    "raw-over": {"driver": "raw", "file": FOUR_K | {"image": {"driver": "file", "filename": "$DIR/b.raw"}}},
    "window": {"driver": "raw", "offset": 100, "size": 8192, "file": FOUR_K},
    "filters": {"driver": "copy-on-read", "file": {"driver": "preallocate", "file": FOUR_K}},
    "log": {"driver": "blklogwrites", "file": FOUR_K, "log": {"driver": "null-co", "size": 1 << 20}},
    "past": {"driver": "snapshot-access", "file": FOUR_K},
    "packed": {
        "driver": "compress",
        "file": {"driver": "qcow2", "file": {"driver": "file", "filename": "$DIR/q.qcow2"}},
    },
    "qcow2": {
        "driver": "qcow2",
        "file": {"driver": "blkdebug", "align": 4096, "image": {"driver": "file", "filename": "$DIR/q2.qcow2"}},
    },
}
UNALIGNED = ("write -P 1 1000 7777", "read -v 990 32", "write -z 2000 4096", "discard 100 9000", "read -P 1 6096 2681")


class Client:
    """A client that sits on the export *name* until it is let go, on each side in turn."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._sockets: list[socket.socket] = []

    def come(self, where: Path) -> str:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(where / "sock"))
        self._sockets.append(sock)
        sock.recv(18, socket.MSG_WAITALL)
        sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(self._name)) + self._name)
        return sock.recv(10, socket.MSG_WAITALL).hex()

    def cut(self, where: Path) -> str:
        """What the client hears when the server has cut it off."""
        try:
            return self._sockets[-1].recv(1).hex()
        finally:
            self._sockets.pop().close()

    def leave(self, where: Path) -> None:
        self._sockets.pop().close()


def sitting(name: bytes, *steps: Any) -> list[Step]:
    """Steps with a client on the export *name*; strings in *steps* name what it does."""
    client = Client(name)
    return [Call(getattr(client, step)) if isinstance(step, str) else step for step in steps]


IDLE = Until("query-block-exports", lambda exports: not exports)

TALKS: dict[str, list[Step]] = {
    "server": [
        *(STOP, START, START, STOP, STOP, START, STOP),
        Do("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "$DIR/none/sock"}}}),
        Do("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "nothing"}}}, ours=NO_DESCRIPTOR),
        Do("nbd-server-start", {"addr": {"type": "nope", "data": {}}}),
        Do("nbd-server-start", {}),
        Do("nbd-server-start", {"addr": UNIX, "max-connections": -1}),
        Do("nbd-server-start", {"addr": UNIX, "max-connections": 1 << 32}),
    ],
    "tcp": [
        Do("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}}),
        STOP,
        Do("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1"}}}),
    ],
    "tls": [
        Do("nbd-server-start", {"addr": UNIX, "tls-creds": "nope"}),
        Do("object-add", {"qom-type": "iothread", "id": "io"}),
        Do("nbd-server-start", {"addr": UNIX, "tls-creds": "io"}),
        Do("object-add", {"qom-type": "tls-creds-anon", "id": "client", "endpoint": "client"}),
        Do("nbd-server-start", {"addr": UNIX, "tls-creds": "client"}),
        Do("nbd-server-start", {"addr": UNIX, "tls-authz": "not looked for yet"}),
        STOP,
    ],
    "checks": [
        add("e", "r"),
        START,
        add("1", "r"),
        add("", "r"),
        add("e", "nope"),
        add("e", "ro", writable=True),
        add("e", "r", iothread="nope"),
        add("e", "r", name="n" * 4097),
        add("e", "r", description="d" * 4097),
        add("e", "r", type="nope"),
        Do("block-export-add", {"id": "e", "node-name": "r"}),
        Do("block-export-add", {"type": "nbd", "id": "e"}),
        LIST,
        add("e", "r", name="n" * 4096, description="d" * 4096),
        LIST,
        STOP,
        LIST,
    ],
    "names": [
        START,
        add("e", "r"),
        add("e", "f"),
        add("g", "f", name="r"),
        add("g", "f", name=""),
        add("h", "f", name="ä ö"),
        LIST,
        Call(list_exports),
        remove("e"),
        add("e", "f", name="r", description="another"),
        LIST,
        Call(list_exports),
        STOP,
    ],
    "removal": [
        START,
        add("a", "r"),
        add("b", "r", name="two"),
        add("c", "f", name="three"),
        remove("nope"),
        remove("b"),
        remove("b"),
        remove("a", mode="hard"),
        remove("c", mode="nope"),
        LIST,
        add("a", "r"),
        add("b", "r", name="two"),
        STOP,
        LIST,
        remove("a"),
    ],
    "permissions": [
        START,
        add("e", "r", writable=True, writethrough=True),
        GRAPH,
        Do("block_resize", {"node-name": "r", "size": 1 << 20}),
        Do("blockdev-del", {"node-name": "r"}),
        add("ro", "f", name="below"),
        add("rw", "f", name="below2", writable=True),
        GRAPH,
        remove("e"),
        GRAPH,
        STOP,
        Do("block_resize", {"node-name": "r", "size": 1 << 20}),
        Do("blockdev-del", {"node-name": "r"}),
    ],
    "resizer-there-first": [
        START,
        Do("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20}),
        Do("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": "qf"}),
        Do("blockdev-add", {"driver": "file", "node-name": "qf", "filename": "$DIR/q.qcow2"}),
        Do("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": "qf"}),
        add("below", "qf", name="below"),
        add("below", "qf", name="below", writable=True),
        add("top", "q", writable=True),
        LIST,
        GRAPH,
    ],
    "old-commands": [
        old_add("r"),
        START,
        old_add("r"),
        old_add("r"),
        old_add("ro", writable=True),
        old_add("r", name="x", description="words", writable=True),
        old_add("nope"),
        old_add("r", name="1"),
        old_add("r", name="y", bitmap="nope"),
        LIST,
        Call(list_exports),
        Do("nbd-server-remove", {"name": "nope"}),
        Do("nbd-server-remove", {"name": "x"}),
        Do("nbd-server-remove", {"name": "r", "mode": "hard"}),
        LIST,
        STOP,
        Do("nbd-server-remove", {"name": "ro"}),
    ],
    "bitmaps": [
        START,
        *(bitmap("on"), bitmap("off", disabled=True), bitmap("other", "f", disabled=True)),
        add("e", "r", bitmaps=["nope"]),
        add("e", "r", bitmaps=[{"node": "nope", "name": "on"}]),
        add("e", "r", bitmaps=[{"node": "r", "name": "nope"}]),
        add("e", "r", bitmaps=["on"]),
        add("e", "r", bitmaps=["on", "on"], writable=True),
        add("e", "r", bitmaps=["on"], writable=True),
        add("g", "r", name="g", bitmaps=["on"], writable=True),
        add("g", "r", name="g", bitmaps=["other", {"node": "r", "name": "off"}]),
        Do("block-dirty-bitmap-remove", {"node": "r", "name": "on"}),
        Do("block-dirty-bitmap-clear", {"node": "r", "name": "off"}),
        Do("query-named-block-nodes", {"flat": True}),
        Call(list_exports),
        remove("e"),
        remove("g"),
        Do("block-dirty-bitmap-remove", {"node": "r", "name": "on"}),
        Do("block-dirty-bitmap-remove", {"node": "f", "name": "other"}),
        STOP,
    ],
    "bitmaps-elsewhere": [
        START,
        *(bitmap("on"), bitmap("below", "f"), bitmap("null", "ro")),
        # A read-only export may not have a bitmap that changes, unless it is named with its node.
        add("e", "r", bitmaps=["on"]),
        add("e", "r", bitmaps=[{"node": "r", "name": "on"}]),
        remove("e"),
        add("e", "r", bitmaps=[{"node": "f", "name": "below"}]),
        add("g", "r", name="g", bitmaps=[{"node": "ro", "name": "null"}]),
        add("h", "ro", bitmaps=["null"]),
        Call(list_exports),
        remove("g"),
        add("g", "ro", bitmaps=["null"]),
        add("h", "r", name="h", bitmaps=["on"], writable=True),
        add("i", "r", name="i", bitmaps=["on"]),
        STOP,
        Do(
            "blockdev-add",
            {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "$DIR/q.qcow2"}},
        ),
        Do(
            "blockdev-snapshot-sync",
            {"node-name": "q", "snapshot-file": "$DIR/o.qcow2", "snapshot-node-name": "o", "format": "qcow2"},
        ),
        bitmap("base", "q"),
        START,
        add("e", "o", bitmaps=["base"]),
        Call(list_exports),
    ],
    "odd-sizes": [
        *(Do("blockdev-add", {"driver": "null-co", "node-name": f"n{size}", "size": size}) for size in (0, 1, 1000)),
        Do("blockdev-add", {"driver": "file", "node-name": "of", "filename": "$DIR/odd.raw"}),
        Do("blockdev-add", {"driver": "raw", "node-name": "o", "file": "of"}),
        bitmap("b", "of"),
        START,
        *(add(node, node) for node in ("n0", "n1", "n1000")),
        add("o", "o", writable=True),
        add("of", "of", writable=True, bitmaps=["b"]),
        Call(list_exports),
        *(Call(functools.partial(qemu_io, name, command)) for name, command in ODD_REQUESTS),
        STOP,
        Call(lambda where: (where / "odd.raw").read_bytes().hex()),
    ],
    "block-sizes": [
        START,
        *(
            step
            for name, options in BLOCKS.items()
            for step in (Do("blockdev-add", {"node-name": name, **options}), add(name, name, writable=True))
        ),
        Call(list_exports),
        # Requests that fit the export, but not what is below it.
        *(Call(functools.partial(qemu_io, "raw-over", command)) for command in UNALIGNED),
        STOP,
        Call(lambda where: hashlib.sha256((where / "b.raw").read_bytes()).hexdigest()),
    ],
    "iothreads": [
        START,
        Do("object-add", {"qom-type": "iothread", "id": "io"}),
        Do("object-add", {"qom-type": "iothread", "id": "io2"}),
        add("a", "r", iothread="io", fixed_iothread=True),
        add("b", "r", name="b", iothread="io2"),
        add("c", "r", name="c", iothread="io2", fixed_iothread=True),
        LIST,
        Do("object-del", {"id": "io2"}),
        STOP,
    ],
    "clients-hard": [
        START,
        add("e", "r"),
        *sitting(b"r", "come", remove("e"), remove("e", mode="safe"), LIST, remove("e", mode="hard"), "cut"),
        WaitEvent("BLOCK_EXPORT_DELETED"),
        LIST,
        add("e", "r"),
        STOP,
    ],
    "clients-safe": [
        START,
        add("e", "r", writable=True),
        *sitting(b"r", "come", remove("e"), "leave"),
        Until("block-export-del", lambda _: True, {"id": "e"}),
        LIST,
        STOP,
    ],
    "clients-stop": [
        START,
        add("e", "r"),
        add("g", "r", name="g"),
        *sitting(b"r", "come", STOP, "cut"),
        LIST,
        START,
        STOP,
    ],
    "one-connection": [
        Do("nbd-server-start", {"addr": UNIX, "max-connections": 1}),
        add("e", "r", writable=True),
        *sitting(b"r", "come", "leave"),
        Call(list_exports),
        STOP,
    ],
    "mirror-target": [
        START,
        Do("blockdev-add", {"driver": "null-co", "node-name": "source", "size": 4 << 20, "read-zeroes": True}),
        Do("blockdev-mirror", {"job-id": "j", "device": "source", "target": "r", "sync": "full"}),
        WaitEvent("BLOCK_JOB_READY"),
        add("e", "r"),
        Do("block-job-cancel", {"device": "j"}),
        WaitEvent("BLOCK_JOB_COMPLETED"),
        WaitEvent("JOB_STATUS_CHANGE", {"status": "null"}),
        add("e", "r"),
        STOP,
    ],
}


@pytest.mark.parametrize("name", TALKS)
def test_exports(name: str, tmp_path: Path, images: QemuImages) -> None:
    def prepare(where: Path) -> None:
        with (where / "a.raw").open("wb") as file:
            file.truncate(4 << 20)
        (where / "odd.raw").write_bytes(b"x" * 1000)
        (where / "b.raw").write_bytes(b"y" * (1 << 16))
        for name in ("q.qcow2", "q2.qcow2"):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", where / name, "4M"], check=True)

    assert_same(NODES + TALKS[name], tmp_path, prepare=prepare)

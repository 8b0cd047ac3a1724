"""The nbd driver beside qemu-storage-daemon's, on servers of several kinds: qemu-nbd, and some out of order."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.nbd import protocol as nbd
from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, WaitEvent, assert_same
from tests.interop.pc import hmp
from tests.qemu import QemuImages

pytestmark = pytest.mark.usefixtures("qsd", "qemu_nbd")

SERVER = {"type": "unix", "path": "$DIR/sock"}


def add(**options: Any) -> Do:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Do("blockdev-add", {"driver": "nbd", "node-name": "n", "server": SERVER} | given)


NO_DESCRIPTOR = {"error": {"class": "GenericError", "desc": "File descriptor named 'x' has not been found"}}
"""As the emulator has it; the daemon takes none."""
NODES = Do("query-named-block-nodes", {"flat": True})
GRAPH = Do("x-debug-query-block-graph")
DELETE = Do("blockdev-del", {"node-name": "n"})


class Servers:
    """qemu-nbd processes, which end with the test."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, where: Path, *options: str) -> str:
        path = where / "sock"
        command = ["qemu-nbd", "-k", str(path), "-t", "-e", "4", "-f", "raw", *options, str(where / "a.raw")]
        self._running.append(subprocess.Popen(command))
        deadline = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < deadline
            assert self._running[-1].poll() is None
            time.sleep(0.01)
        return ""

    def close(self) -> None:
        for process in self._running:
            process.terminate()
            process.wait(20)


@pytest.fixture
def servers() -> Iterator[Servers]:
    found = Servers()
    yield found
    found.close()


CASES: dict[str, tuple[list[str], list[Step]]] = {
    "a disk": (["-x", "e"], [add(export="e"), NODES, GRAPH, DELETE]),
    "no name": ([], [add(), NODES, DELETE, add(export=""), NODES, DELETE]),
    "a context that there is not": ([], [add(x_dirty_bitmap="qemu:dirty-bitmap:x"), add(x_dirty_bitmap="")]),
    "wrong name": (["-x", "e"], [add(export="f"), add(export="e")]),
    "read-only export": (["-r"], [add(), add(read_only=True), NODES]),
    "auto-read-only": (["-r"], [add(auto_read_only=True), NODES]),
    "reopen for writing": (
        ["-r"],
        [
            add(read_only=True),
            Do(
                "blockdev-reopen",
                {"options": [{"driver": "nbd", "node-name": "n", "server": SERVER, "read-only": False}]},
            ),
        ],
    ),
    "reopen": (
        [],
        [
            add(),
            Do(
                "blockdev-reopen",
                {"options": [{"driver": "nbd", "node-name": "n", "server": SERVER, "read-only": True}]},
            ),
            Do("blockdev-reopen", {"options": [{"driver": "nbd", "node-name": "n", "server": SERVER, "export": "y"}]}),
            NODES,
        ],
    ),
    "resize": (
        [],
        [
            add(),
            Do("block_resize", {"node-name": "n", "size": 1 << 20}),
            Do("block_resize", {"node-name": "n", "size": 1 << 19}),
            Do("block_resize", {"node-name": "n", "size": 1 << 21}),
        ],
    ),
    "tls wanted, none there": (
        [],
        [
            Do("object-add", {"qom-type": "tls-creds-anon", "id": "t", "endpoint": "client"}),
            Do("object-add", {"qom-type": "tls-creds-anon", "id": "u", "endpoint": "server"}),
            Do("object-add", {"qom-type": "iothread", "id": "i"}),
            add(tls_creds="u"),
            add(tls_creds="i"),
            add(tls_creds="w"),
        ],
    ),
    "wrong options": (
        [],
        [
            add(export="x" * 4097),
            add(x_dirty_bitmap="y" * 4097),
            add(reconnect_delay=-1),
            add(nonsense=1),
            Do("blockdev-add", {"driver": "nbd", "node-name": "n"}),
            Do("blockdev-add", {"driver": "nbd", "node-name": "n", "path": "$DIR/sock"}),
            Do("blockdev-add", {"driver": "nbd", "node-name": "n", "server": SERVER | {"path": "$DIR/none"}}),
            Do("blockdev-add", {"driver": "nbd", "node-name": "n", "server": SERVER | {"path": "$DIR/a.raw"}}),
            Do(
                "blockdev-add",
                {"driver": "nbd", "node-name": "n", "server": {"type": "fd", "str": "x"}},
                ours=NO_DESCRIPTOR,
            ),
            Do(
                "blockdev-add",
                {"driver": "nbd", "node-name": "n", "server": {"type": "inet", "host": "none.invalid", "port": "1"}},
            ),
            *(
                add(server={"type": "inet", "host": host, "port": "1"})
                for host in ("127.0.0.1", "", "a" * 70, "a..b", "\u00e9.invalid")
            ),
            add(server={"type": "unix", "path": ""}),
            add(server={"type": "vsock", "cid": "x", "port": "1"}),
        ],
    ),
    "names": (
        ["-x", "e"],
        [
            Do(
                "blockdev-add",
                {"driver": "raw", "node-name": "r", "file": {"driver": "nbd", "server": SERVER, "export": "e"}},
            ),
            NODES,
            Do(
                "blockdev-add",
                {"driver": "qcow2", "node-name": "q", "file": {"driver": "nbd", "server": SERVER, "export": "e"}},
            ),
        ],
    ),
    "jobs": (
        [],
        [
            add(),
            Do("blockdev-add", {"driver": "null-co", "node-name": "z", "size": 1 << 20, "read-zeroes": True}),
            Do("blockdev-backup", {"job-id": "b", "device": "n", "target": "z", "sync": "full"}),
            WaitEvent("BLOCK_JOB_COMPLETED"),
        ],
    ),
}


ADDRESSES: list[dict[str, Any]] = [
    {},
    {"ipv4": True},
    {"ipv6": False},
    {"to": 5},
    {"numeric": False},
    {"keep-alive": True},
]


def reachable(port: str, address: dict[str, Any]) -> list[Step]:
    """Steps that show what name a node on a server at a TCP port gets; *address*: what else is told of it."""
    server = {"type": "inet", "host": "localhost", "port": port} | address
    file = {"driver": "nbd", "server": server}
    return [
        Do("blockdev-add", {"driver": "raw", "node-name": "r", "file": file}),
        NODES,
        Do("blockdev-del", {"node-name": "r"}),
    ]


def test_names_of_nodes_on_a_tcp_port(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1 << 20))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        # qemu-nbd serves the socket that is handed to it, as systemd does.
        port = str(sock.getsockname()[1])
        fd, start = sock.fileno(), 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec qemu-nbd -t -e 4 -f raw "$1"'
        with subprocess.Popen(["bash", "-c", start, str(fd), str(tmp_path / "a.raw")], pass_fds=[fd]) as server:
            try:
                assert_same([step for each in ADDRESSES for step in reachable(port, each)], tmp_path / "talk")
            finally:
                server.terminate()


@pytest.mark.parametrize("case", CASES)
def test_like_the_daemon(case: str, servers: Servers, tmp_path: Path, images: QemuImages) -> None:
    options, talk = CASES[case]

    def prepare(where: Path) -> None:
        (where / "a.raw").write_bytes(b"x" * 65536 + bytes((1 << 20) - 65536))
        servers.start(where, *options)

    assert_same(talk, tmp_path, prepare=prepare)


URI = "nbd+unix:///e?socket=$DIR/sock"
BLOCK = Do("query-block")


NAMED: dict[str, list[Step]] = {
    "a drive": [hmp(f"drive_add 0 if=none,id=d,format=raw,file={URI}"), BLOCK, NODES, hmp("drive_del d")],
    "a drive without a format": [hmp(f"drive_add 0 if=none,id=d,file={URI}"), BLOCK, NODES],
    "a drive by the old name": [
        hmp("drive_add 0 if=none,id=d,format=raw,file=nbd:unix:$DIR/sock:exportname=e"),
        BLOCK,
        hmp("drive_add 0 if=none,id=e,format=raw,file=nbd:unix:$DIR/sock"),
    ],
    "a drive by options": [
        hmp(
            "drive_add 0 if=none,id=d,driver=raw,file.driver=nbd,file.server.type=unix,"
            "file.server.path=$DIR/sock,file.export=e"
        ),
        BLOCK,
        hmp("drive_add 0 if=none,id=f,driver=nbd,path=$DIR/sock,export=e"),
        hmp("drive_add 0 if=none,id=g,driver=nbd,path=$DIR/sock,host=x,export=e"),
        BLOCK,
    ],
    "a snapshot of a drive": [
        hmp(f"drive_add 0 if=none,id=d,format=raw,file={URI}"),
        Do("blockdev-snapshot-sync", {"device": "d", "snapshot-file": "$DIR/snap.qcow2", "snapshot-node-name": "s"}),
        BLOCK,
    ],
    "a backing file": [
        Do(
            "blockdev-add",
            {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "$DIR/top.qcow2"}},
        ),
        NODES,
        GRAPH,
        Do("blockdev-del", {"node-name": "q"}),
    ],
    "wrong names": [
        *(
            hmp(f"drive_add 0 if=none,id=d,format=raw,file={name}")
            for name in (
                *("nbd:", "nbd:x", "nbd:[::1", "nbd:h:1:exportname=", "nbd://", "nbd://h:x/e"),
                *(
                    "nbd+unix:///e",
                    "nbd+unix://h/e?socket=/s",
                    "nbd+unix:///e?path=/s",
                    "nbd+foo://h/e",
                    "nbd://h/e?a=b",
                ),
            )
        ),
        hmp("drive_add 0 if=none,id=d,format=raw,file=nbd+unix:///wrong?socket=$DIR/sock"),
        hmp("drive_add 0 if=none,id=d,format=raw,file=nbd+unix:///e?socket=$DIR/none"),
    ],
    "names as the RFC has them": [
        step
        for name in (
            *(
                "nbd+unix:///e?socket=$DIR/sock&",
                "nbd+unix:///e?&socket=$DIR/sock",
                "nbd+unix://user@/%65?socket=$DIR/sock",
            ),
            *("nbd+unix:///e?socket=$DIR/sock#x", "nbd+unix:///e?socket=/none/a+b", "nbd+unix:///e?socket=a=b"),
            *("nbd+unix:///e?socket=$DIR/sock;x=1", "nbd+unix:///e?SOCKET=$DIR/sock", "nbd+unix:///e?socket=/[a"),
            *(
                "nbd+unix:///e?socket=",
                "nbd+unix:///%zz?socket=/s",
                "nbd+unix:///é?socket=/s",
                "nbd+unix://:1/?socket=/s",
            ),
            *("nbd://127.0.0.1:0/e", "nbd://127.0.0.1:/e", "nbd://127.0.0.1:65536", "nbd://127.0.0.1:+1/e"),
            *(
                "nbd://ABC.invalid:1/e",
                "nbd://a@b@c:1/e",
                "nbd://127.0.0.1:00001/e?",
                "nbd://[::1/e",
                "nbd://[::1]:1/e",
            ),
        )
        for step in (hmp(f"drive_add 0 if=none,id=d,format=raw,file={name}"), NODES, hmp("drive_del d"))
    ],
    "names of the old kind": [
        hmp(f"drive_add 0 if=none,id=d,format=raw,file={name}".replace(",n", ",,n"))
        for name in (
            *(
                "nbd:unix:",
                "nbd:unix::exportname=e",
                "nbd::10809",
                "nbd:[]:1",
                "nbd:[::1]1",
                "nbd:::1:1",
                "nbd:localhost:",
            ),
            *("nbd:localhost:1:2", "nbd:127.0.0.1:1,nonsense", "nbd:127.0.0.1:1:exportname=x", f"nbd:{'a' * 65}:1"),
        )
    ],
    "names in JSON": [
        step
        for name in (
            "{'driver':'nbd'}",
            "{'driver':'nbd','path':'$DIR/sock','export':'e'}",
            "{'driver':'nbd','server':{'type':'unix','path':'$DIR/sock'},'export':'e'}",
            "{'driver':'nbd','server.type':'unix','server.path':'$DIR/sock','export':1}",
            "{'driver':'nbd','server.type':'unix'}",
            "{'driver':'nbd','server.path':'x'}",
            "{'driver':'nbd','server':'x'}",
            "{'driver':'nbd','server.type':'inet','server.host':'x'}",
            "{'driver':'nbd','server.type':'unix','server.path':'x','server.foo':'y'}",
            "{'driver':'nbd','path':'x','server.type':'unix'}",
            "{'driver':'nbd','path':'x','port':'3'}",
            "{'driver':'nbd','host':'127.0.0.1','port':1}",
            "{'driver':'nbd','port':'1'}",
            "{'driver':'nbd','server.type':'fd','server.str':'x'}",
            "{'driver':'nbd','server.type':'vsock','server.cid':'x','server.port':'1'}",
            # Here it is not the name of an image, but of a file.
            "{'driver':'raw','file.filename':'nbd:unix:$DIR/sock:exportname=e'}",
            "{'file.filename':'nbd:unix:$DIR/sock:exportname=e'}",
            "{'driver':'raw','file.filename':'json:{}'}",
            "{'filename':'$DIR/a.raw'}",
            "{'driver':'raw','file':1}",
            "{'driver':'null-co','node-name':12}",
            "{'driver':'throttle','throttle-group':1,'file.driver':'null-co'}",
        )
        for step in (hmp(f"drive_add 0 if=none,id=d,file=json:{name.replace(',', ',,')}"), NODES, hmp("drive_del d"))
    ],
    "a file made there": [
        Do("blockdev-create", {"job-id": "j", "options": {"driver": "nbd", "size": 1 << 20}}),
        Do("drive-mirror", {"device": "d", "target": URI, "format": "raw", "sync": "full"}),
    ],
}


@pytest.mark.parametrize("case", NAMED)
def test_names_and_drives_like_the_emulator(
    case: str, servers: Servers, tmp_path: Path, images: QemuImages, qemu_system: str
) -> None:
    def prepare(where: Path) -> None:
        (where / "a.raw").write_bytes(b"x" * 65536 + bytes((1 << 20) - 65536))
        servers.start(where, "-x", "e")
        uri = f"nbd+unix:///e?socket={where}/sock"
        images.run("create", "-q", "-u", "-f", "qcow2", "-b", uri, "-F", "raw", where / "top.qcow2", "1M")

    assert_same(NAMED[case], tmp_path, prepare=prepare, real=SYSTEM_EMULATOR)


# -- servers out of order --------------------------------------------------------------------------------------------

GREETING = nbd.MAGIC + nbd.OPTION_MAGIC


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return nbd.REPLY.pack(nbd.REPLY_MAGIC, option, kind, len(data)) + data


def info(size: int = 1 << 20, flags: int = 1) -> bytes:
    return reply(nbd.OPT_GO, nbd.REP_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, size, flags))


def blocks(least: int, liked: int, most: int) -> bytes:
    return reply(nbd.OPT_GO, nbd.REP_INFO, struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, least, liked, most))


FIXED = GREETING + b"\0\3"
UNSUPPORTED = 1 << 31 | 1
NO_CHUNKS = FIXED + reply(nbd.OPT_STRUCTURED_REPLY, UNSUPPORTED)
ACK = reply(nbd.OPT_GO, nbd.REP_ACK)

BROKEN: dict[str, bytes] = {
    "silent": b"",
    "half a magic": b"NBD",
    "another protocol": b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",
    "half a greeting": nbd.MAGIC + b"IHAVE",
    "another magic": nbd.MAGIC + b"abcdefgh" + bytes(200),
    "no flags": GREETING,
    "gone after the flags": FIXED,
    "wrong reply magic": FIXED + bytes(20),
    "reply to another option": FIXED + reply(nbd.OPT_LIST, nbd.REP_ACK),
    "gone after structured replies": NO_CHUNKS,
    "unknown export": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 6),
    "tls needed": FIXED + reply(nbd.OPT_STRUCTURED_REPLY, 1 << 31 | 5),
    "policy": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 2, b"not today"),
    "invalid": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 3),
    "platform": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 4),
    "shutting down": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 7),
    "block size required": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 8),
    "unknown error": NO_CHUNKS + reply(nbd.OPT_GO, 1 << 31 | 99),
    "no export": NO_CHUNKS + ACK,
    "odd minimum": NO_CHUNKS + blocks(3, 4096, 1 << 25),
    "no minimum": NO_CHUNKS + blocks(0, 4096, 1 << 25),
    "odd preference": NO_CHUNKS + blocks(512, 4097, 1 << 25),
    "small preference": NO_CHUNKS + blocks(512, 256, 1 << 25),
    "small maximum": NO_CHUNKS + blocks(512, 4096, 256),
    "half a block": NO_CHUNKS + blocks(512, 4096, 1 << 25) + info(1000),
    "not in the list": NO_CHUNKS
    + reply(nbd.OPT_GO, UNSUPPORTED)
    + reply(nbd.OPT_LIST, nbd.REP_SERVER, b"\0\0\0\3foo")
    + reply(nbd.OPT_LIST, nbd.REP_ACK),
    "fine": NO_CHUNKS + blocks(1, 4096, 1 << 25) + info() + ACK,
    "fine, and says more": NO_CHUNKS + reply(nbd.OPT_GO, nbd.REP_INFO, b"\0\7hello") + info() + ACK,
    "fine, not fixed": GREETING + b"\0\0" + struct.pack(">QH", 1 << 20, 1) + bytes(124),
    "fine, old style": nbd.MAGIC + struct.pack(">QQI", 0x00420281861253, 1 << 20, 1) + bytes(124),
    "old style with odd flags": nbd.MAGIC + struct.pack(">QQI", 0x00420281861253, 1 << 20, 1 << 20) + bytes(124),
    "old style, cut": nbd.MAGIC + struct.pack(">QI", 0x00420281861253, 1 << 20),
}


class Scripted:
    """A server that says its piece to whoever comes, and hangs up when the client has nothing more to say.

    Extended headers, which our client asks for first and 7.2's not at all, it does not know.
    """

    def __init__(self, path: Path, piece: bytes, hang_up: bool) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._piece = piece
        self._hang_up = hang_up
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            with sock:
                try:
                    begin = len(FIXED) if self._piece.startswith(FIXED) else 0
                    sock.sendall(self._piece[:begin])
                    if begin and len(self._piece) > begin:
                        asked = sock.recv(4 + nbd.OPTION.size, socket.MSG_WAITALL)
                        if asked[4 + 11 :] == bytes([nbd.OPT_EXTENDED_HEADERS, 0, 0, 0, 0]):
                            sock.sendall(reply(nbd.OPT_EXTENDED_HEADERS, UNSUPPORTED))
                    sock.sendall(self._piece[begin:])
                    if self._hang_up:
                        sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except OSError:
                    pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def scripted() -> Iterator[Callable[[Path, bytes, bool], None]]:
    running: list[Scripted] = []
    yield lambda path, piece, hang_up: running.append(Scripted(path, piece, hang_up))
    for server in running:
        server.close()


@pytest.mark.parametrize("case", BROKEN)
def test_servers_out_of_order(case: str, scripted: Callable[[Path, bytes, bool], None], tmp_path: Path) -> None:
    fine = case.startswith("fine")
    talk: list[Step] = [add(), NODES, DELETE] if fine else [add(export="e" if "list" in case else "")]
    if case == "old style with odd flags":
        # 7.2 puts the x of 0x behind the number.
        ours = {"error": {"class": "GenericError", "desc": "Unexpected export flags 0x100000"}}
        talk = [Do("blockdev-add", add().arguments, ours=ours)]
    assert_same(talk, tmp_path, prepare=lambda where: scripted(where / "sock", BROKEN[case], not fine))


def test_a_server_that_resets_the_connection(tmp_path: Path) -> None:
    """It goes without having read what the client said."""
    listening: list[socket.socket] = []

    def rude(sock: socket.socket) -> None:
        client, _ = sock.accept()
        with client:
            client.sendall(FIXED)
            while len(client.recv(100, socket.MSG_PEEK)) < 4 + nbd.OPTION.size:
                pass

    def prepare(where: Path) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(where / "sock"))
        sock.listen()
        listening.append(sock)
        threading.Thread(target=rude, args=(sock,), daemon=True).start()

    assert_same([add()], tmp_path, prepare=prepare)
    for sock in listening:
        sock.close()

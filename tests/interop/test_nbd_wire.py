"""Our NBD server beside the real daemon's, byte by byte: every option and request, right and wrong ones."""

from __future__ import annotations

import itertools
import random
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client, Gone, Reply, string
from tests.interop.differential import OurPeer, Peer, RealPeer

SIZE = 4 << 20
MOST = 32 << 20
BITS64 = (1 << 64) - 1


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, qsd: str) -> Iterator[list[Path]]:
    """The sockets of both servers: ours, and the real daemon's. They offer the same."""
    peers: list[Peer] = [OurPeer(), RealPeer()]
    paths = []
    try:
        for peer in peers:
            where = tmp_path_factory.mktemp("wire")
            _offer(peer, where)
            paths.append(where / "sock")
        yield paths
    finally:
        for peer in peers:
            peer.close()


def _offer(peer: Peer, where: Path) -> None:
    def do(command: str, **arguments: Any) -> None:
        reply = peer.ask(command, {name.replace("_", "-"): value for name, value in arguments.items()})
        assert "return" in reply, reply

    for name in ("a", "ro"):
        with (where / name).open("wb") as file:
            file.truncate(SIZE)
            file.seek(1 << 20)
            file.write(b"x" * 65536)
    for name in ("a", "ro"):
        file_options = {"driver": "file", "filename": str(where / name)}
        do("blockdev-add", driver="raw", node_name=name, file=file_options, read_only=name == "ro", discard="unmap")
    do("blockdev-add", driver="blkdebug", node_name="big", image="ro", align=4096, read_only=True)
    for name, compat in (("old", "0.10"), ("new", "1.1")):
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", "ro", "-F", "raw", name]
        subprocess.run(command, cwd=where, check=True, timeout=20)
        file_options = {"driver": "file", "filename": str(where / name)}
        do("blockdev-add", driver="qcow2", node_name=name, file=file_options, backing="ro", discard="unmap")
        do("block-dirty-bitmap-add", node=name, name="b", granularity=65536)
    do("block-dirty-bitmap-add", node="a", name="b", granularity=65536)
    do("block-dirty-bitmap-add", node="a", name="c")
    do("nbd-server-start", addr={"type": "unix", "data": {"path": str(where / "sock")}})
    offer = {"type": "nbd"}
    do("block-export-add", **offer, id="a", node_name="a", writable=True, allocation_depth=True, bitmaps=["b", "c"])
    for name in ("old", "new"):
        do("block-export-add", **offer, id=name, node_name=name, writable=True, allocation_depth=True, bitmaps=["b"])
    do("block-export-add", **offer, id="ro", node_name="ro", description="can't be written")
    do("block-export-add", **offer, id="big", node_name="big", allocation_depth=True)
    do("block-export-add", **offer, id="long", node_name="ro", name="n" * 4096, description="d" * 4096)


Talk = Callable[[Client], Any]


def play(path: Path, talk: Talk, flags: int = 3) -> Any:
    """What a conversation comes to."""
    with Client(path, flags) as client:
        try:
            return talk(client)
        except Gone:
            return "gone"


def assert_same(servers: list[Path], talk: Talk, flags: int = 3) -> Any:
    ours, real = (play(path, talk, flags) for path in servers)
    assert ours == real
    return ours


# -- handshake -------------------------------------------------------------------------------------------------------


def say(client: Client, option: int, data: bytes = b"", length: int | None = None) -> Any:
    """The answers to an option, without the texts of errors; "gone" when there is none."""
    if option == nbd.OPT_EXPORT_NAME:
        client.send(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data) if length is None else length) + data)
        return client.receive(10)
    return [(kind, b"" if kind >> 31 else text) for kind, text in client.option(option, data, length)]


def info(name: str, *wanted: int, number: int | None = None) -> bytes:
    return string(name) + struct.pack(f">H{len(wanted)}H", len(wanted) if number is None else number, *wanted)


def queries(name: str, *texts: str, number: int | None = None) -> bytes:
    count = struct.pack(">I", len(texts) if number is None else number)
    return string(name) + count + b"".join(map(string, texts))


LIST, ABORT, TLS, INFO, GO = nbd.OPT_LIST, nbd.OPT_ABORT, nbd.OPT_STARTTLS, nbd.OPT_INFO, nbd.OPT_GO
CHUNKS, LISTS, SETS = nbd.OPT_STRUCTURED_REPLY, nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT
NAMES = ("a", "ro", "big", "n" * 4096, "", "none", "n" * 4097, "\udcff", "ä")
TEXTS = (
    *("", ":", "base", "base:", "base:allocation", "base:allocation:", "Base:allocation", "base:x", "x:y", "qemu"),
    *("qemu:", "qemu:allocation-depth", "qemu:allocation-depth2", "qemu:dirty-bitmap", "qemu:dirty-bitmap:"),
    *("qemu:dirty-bitmap:b", "qemu:dirty-bitmap:c", "qemu:dirty-bitmap:nope", "qemu:x", "q" * 4096, "q" * 4097),
)
AN_OPTION = nbd.OPTION.pack(nbd.OPTION_MAGIC, LIST, 0)

HANDSHAKES: dict[str, list[tuple[Any, ...]]] = {
    "list": [(LIST,), (CHUNKS,), (LIST,), (LIST, b"x"), (LIST,), (ABORT,)],
    "abort with data": [(ABORT, b"abc")],
    "tls": [(TLS,), (TLS, b"x"), (LIST,)],
    "structured": [(CHUNKS, b"x"), (CHUNKS,), (CHUNKS,), (CHUNKS, b"y"), (LIST,)],
    "too long": [(LIST, b"", MOST + 1)],
    "just not too long": [(LIST, bytes(MOST)), (GO, info("a"))],
    "long go": [(GO, info("a") + bytes(MOST - 7))],
    "export name": [(nbd.OPT_EXPORT_NAME, b"a")],
    "export name of 4096": [(nbd.OPT_EXPORT_NAME, b"n" * 4096)],
    "export name of 4097": [(nbd.OPT_EXPORT_NAME, b"n" * 4097)],
    "no such name": [(nbd.OPT_EXPORT_NAME, b"none")],
    "default name": [(nbd.OPT_EXPORT_NAME, b"")],
    "name after structured replies": [(CHUNKS,), (nbd.OPT_EXPORT_NAME, b"a")],
    "name after contexts": [(CHUNKS,), (SETS, queries("a", "base:allocation")), (nbd.OPT_EXPORT_NAME, b"a")],
    "names": [*((INFO, string(name) + b"\0\0") for name in NAMES if name != "\udcff"), (CHUNKS,), (INFO, info("a"))],
    "infos": [
        *((INFO, info(name, *wanted)) for name in ("ro", "big") for wanted in itertools.product(range(6), range(5))),
        (INFO, info("ro", 3, 3, 3, 3, 1, 1, 2, 2, 0, 0, 65535)),
    ],
    "info of no length": [(INFO,), (INFO, b"\0"), (INFO, b"\0" * 4), (INFO, b"\0" * 5), (INFO, b"\xff" * 6)],
    "info with odd numbers": [(INFO, info("a", 1, number=number)) for number in (0, 2, 65535)],
    "info with more": [(INFO, info("a") + b"x"), (INFO, info("a", 1) + b"xy")],
    "go and blocks": [(GO, info("big", nbd.INFO_BLOCK_SIZE))],
    "go without blocks": [(GO, info("big"))],
    "go after all": [(GO, info("none")), (GO, b""), (GO, info("a", 0, 1, 2, 3, 4))],
    "list contexts": [
        *((LISTS, queries("a", text)) for text in TEXTS),
        *((LISTS, queries(name)) for name in NAMES if name != "\udcff"),
        (CHUNKS,),
        (LISTS, queries("a", *TEXTS[:-1])),
        (LISTS, queries("a", "base:", "base:allocation", "base:")),
        (LISTS, queries("a", "qemu:dirty-bitmap:c", "qemu:dirty-bitmap:b", "base:allocation")),
    ],
    "set contexts": [
        (SETS, queries("a", "base:allocation")),
        (CHUNKS,),
        *((SETS, queries("a", text)) for text in TEXTS),
        *((SETS, queries(name, "base:allocation")) for name in NAMES if name != "\udcff"),
        (SETS, queries("a")),
        (SETS, queries("a", *TEXTS[:-1])),
        (SETS, queries("ro", *TEXTS[:-1])),
        (SETS, queries("a", "qemu:dirty-bitmap:c", "base:allocation", "qemu:dirty-bitmap:c")),
    ],
    "odd contexts": [
        (CHUNKS,),
        *((kind, data) for kind in (LISTS, SETS) for data in (b"", b"\0", b"\0" * 4, b"\0" * 7, b"\0\0\0\1a\0\0\0")),
        *((kind, queries("a", "base:", number=number)) for kind in (LISTS, SETS) for number in (2, 1 << 31)),
        # Not with more behind the queries: 7.2 takes that for the next option.
        *((kind, string("a") + b"\0\0\0\1" + b"\0\0\0\5base") for kind in (LISTS, SETS)),
        *((kind, b"\xff\xff\xff\xff" + bytes(8)) for kind in (LISTS, SETS)),
        *((kind, queries("none", "base:", number=5)) for kind in (LISTS, SETS)),
        (SETS, queries("a", *["base:allocation"] * 1000)),
        (LISTS, queries("a", *["qemu:"] * 1000)),
    ],
}


@pytest.mark.parametrize("case", HANDSHAKES)
def test_options(case: str, servers: list[Path]) -> None:
    def talk(client: Client) -> Any:
        answers = []
        for step in HANDSHAKES[case]:
            try:
                answers.append(say(client, *step))
            except Gone:
                answers.append("gone")
                break
        return answers

    ours, real = (play(path, talk) for path in servers)
    for step, *answers in zip(HANDSHAKES[case], ours, real, strict=False):
        assert answers[0] == answers[1], (step[0], step[1:][:1] and step[1][:80])
    assert len(ours) == len(real)


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 7, 1 << 16, 0xFFFFFFFF])
@pytest.mark.parametrize("option", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 255, 1 << 31])
def test_who_may_say_what(servers: list[Path], flags: int, option: int) -> None:
    """Clients of the old style have one option, and unknown flags none."""
    assert_same(servers, lambda client: say(client, option, b"a" if option == 1 else b""), flags)


@pytest.mark.parametrize("data", [b"IHAVENOT" + bytes(8), bytes(16), AN_OPTION[:8] + b"\xff" * 8])
def test_nonsense(servers: list[Path], data: bytes) -> None:
    def talk(client: Client) -> Any:
        client.send(data)
        return client.receive(1)

    assert assert_same(servers, talk) == "gone"


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_zeroes_behind_the_name(servers: list[Path], flags: int) -> None:
    def talk(client: Client) -> Any:
        client.send(nbd.OPTION.pack(nbd.OPTION_MAGIC, 1, 1) + b"a")
        answer = client.receive(10 if flags & 2 else 134)
        client.request(nbd.CMD_FLUSH)
        return answer, client.reply()

    assert_same(servers, talk, flags)


# -- transmission ----------------------------------------------------------------------------------------------------


def ask(client: Client, kind: int, offset: int, length: int, flags: int, data: bytes = b"") -> Any:
    """The answer to a request; of a read what it says, not in which pieces."""
    if kind == nbd.CMD_BLOCK_STATUS:
        client.request(kind, offset, length, flags)
        chunks = []
        while True:
            (magic,) = struct.unpack(">I", begun := client.receive(4))
            if magic == nbd.SIMPLE_MAGIC:
                return client.receive(12)
            done, found, cookie, body = client.chunk(begun)
            chunks.append((found, cookie, body[:4] if found == nbd.CHUNK_ERROR else body))
            if done:
                return chunks
    reply: Reply = client.ask(kind, offset, length, flags, data)
    last = reply.kinds[-1:]
    return reply.cookie, reply.error, reply.data, last if reply.error or not reply.data else bool(last)


KINDS = (*range(10), 255, 65535)
FLAGS = (0, *(1 << bit for bit in range(7)), 3, 17, 1 << 15, 0xFFFF)
PLACES = ((0, 0), (0, 1), (0, 512), (SIZE - 1, 1), (SIZE - 1, 2), (SIZE, 0), (SIZE, 1), (SIZE + 1, 0), (BITS64, 1))
LONG = ((0, SIZE), (0, SIZE + 1), (0, MOST), (0, MOST + 1), (0, 0xFFFFFFFF), (BITS64, 0xFFFFFFFF), (1 << 63, 512))


def specified(name: str, kind: int, place: tuple[int, int], answer: Any) -> Any:
    """The real server's answer with the specification's errors: it makes EINVAL of each that it finds by itself."""
    if kind not in (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM) or answer[1] != nbd.EINVAL:
        return answer
    if name in ("ro", "big"):
        return answer[0], nbd.EPERM, *answer[2:]
    if kind != nbd.CMD_TRIM and sum(place) > SIZE:
        return answer[0], nbd.ENOSPC, *answer[2:]
    return answer


@pytest.mark.parametrize(("structured", "contexts"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", ["a", "ro", "big", "old", "new"])
def test_requests(servers: list[Path], name: str, structured: bool, contexts: bool) -> None:
    def talk(client: Client) -> Any:
        if structured:
            client.structured()
        if contexts:
            client.contexts(name, "base:allocation", "qemu:dirty-bitmap:b", "qemu:allocation-depth")
        client.go(name)
        answers = []
        for kind in KINDS:
            if kind == nbd.CMD_DISC or (name == "big" and kind == nbd.CMD_CACHE):
                continue  # 7.2 fails an assertion when it caches what is no whole block
            places = PLACES if kind == nbd.CMD_WRITE else PLACES + LONG
            for flags, (offset, length) in itertools.product(FLAGS, places):
                data = b"y" * length if kind == nbd.CMD_WRITE else b""
                answers.append(((kind, flags, offset, length), ask(client, kind, offset, length, flags, data)))
        return answers

    ours, real = (play(path, talk) for path in servers)
    pairs = [
        (what, one, specified(name, what[0], what[2:], two)) for (what, one), (_, two) in zip(ours, real, strict=True)
    ]
    different = [(what, one, two) for what, one, two in pairs if one != two]
    assert not different, "\n".join(
        f"{what}: ours {str(one)[:200]}, real {str(two)[:200]}" for what, one, two in different
    )


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("length", [MOST, MOST + 1, 0xFFFFFFFF])
def test_long_writes(servers: list[Path], length: int, structured: bool) -> None:
    """What is too long is an error, and the end: what follows could be anything."""

    def talk(client: Client) -> Any:
        if structured:
            client.structured()
        client.go("a")
        answers: list[Any] = []
        for _ in range(2):
            try:
                data = b"y" * length if length <= MOST else b""
                answers.append(ask(client, nbd.CMD_WRITE, 0, length, 0, data))
            except Gone:
                answers.append("gone")
        return answers

    ours, real = (play(path, talk) for path in servers)
    assert ours == [
        each if each == "gone" or length > MOST else specified("a", nbd.CMD_WRITE, (0, length), each) for each in real
    ]


@pytest.mark.parametrize("flags", [0, 0xFFFF])
def test_leaving(servers: list[Path], flags: int) -> None:
    def talk(client: Client) -> Any:
        client.go("a")
        client.request(nbd.CMD_DISC, BITS64, 0xFFFFFFFF, flags)
        return client.receive(1)

    assert assert_same(servers, talk) == "gone"


@pytest.mark.parametrize("magic", [0, nbd.SIMPLE_MAGIC, nbd.EXT_REQUEST_MAGIC, 0xFFFFFFFF])
def test_no_requests(servers: list[Path], magic: int) -> None:
    def talk(client: Client) -> Any:
        client.go("a")
        client.send(nbd.REQUEST.pack(magic, 0, nbd.CMD_READ, 1, 0, 512) + bytes(100))
        while True:
            client.receive(1)  # 7.2 answers request 0 with an error before it goes

    assert assert_same(servers, talk) == "gone"


CONTEXTS: dict[str, list[tuple[int, bytes]]] = {
    "of another export": [(SETS, queries("ro", "base:allocation"))],
    "set again": [(SETS, queries("a", "base:allocation")), (SETS, queries("a", "qemu:allocation-depth"))],
    "set to nothing": [(SETS, queries("a", "base:allocation")), (SETS, queries("a"))],
    "set to what there is not": [(SETS, queries("a", "base:allocation")), (SETS, queries("a", "x:y"))],
    "set for no export": [(SETS, queries("a", "base:allocation")), (SETS, queries("none", "base:allocation"))],
    "set wrongly": [(SETS, queries("a", "base:allocation")), (SETS, b"\0")],
    "too long a query": [(SETS, queries("a", "base:allocation", "q" * 4097))],
    "listed": [(SETS, queries("a", "base:allocation")), (LISTS, queries("a"))],
    "listed wrongly": [(SETS, queries("a", "base:allocation")), (LISTS, b"\0")],
    "all": [(SETS, queries("a", *(text for text in TEXTS if len(text) < 100)))],
    "one bitmap": [(SETS, queries("a", "qemu:dirty-bitmap:c"))],
    "info between": [(SETS, queries("a", "base:allocation")), (INFO, info("ro"))],
    "a wrong go between": [(SETS, queries("a", "base:allocation")), (GO, info("none"))],
}


@pytest.mark.parametrize("case", CONTEXTS)
def test_contexts(case: str, servers: list[Path]) -> None:
    """Which contexts BLOCK_STATUS tells of in the end."""

    def talk(client: Client) -> Any:
        client.structured()
        for option, data in CONTEXTS[case]:
            say(client, option, data)
        client.go("a")
        return [
            ask(client, nbd.CMD_BLOCK_STATUS, offset, length, flags)
            for offset, length in ((0, SIZE), (4096, 512), (1 << 20, 1 << 20), ((1 << 20) + 1, 70_000))
            for flags in (0, nbd.FLAG_REQ_ONE)
        ]

    assert_same(servers, talk)


def test_many_clients_at_a_time(servers: list[Path]) -> None:
    """Those who sit in the handshake, in the transmission and in a half request keep nobody from being served."""
    for path in servers:
        sitting = [Client(path) for _ in range(30)]
        for number, client in enumerate(sitting):
            if number % 3:
                client.go("a")
            if number % 3 == 2:
                client.request(nbd.CMD_WRITE, 0, 4096, data=b"half")
        served: list[bytes] = []

        def serve(path: Path = path, served: list[bytes] = served) -> None:
            with Client(path) as client:
                client.go("ro")
                served.append(client.read(1 << 20, 4))

        threads = [threading.Thread(target=serve) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert served == [b"xxxx"] * 20
        for client in sitting:
            client.socket.close()


@pytest.mark.parametrize("name", ["a", "old", "new"])
def test_many_requests_by_chance(servers: list[Path], name: str) -> None:
    """What is read, what is dirty, where it lies, and each error, whatever was written, zeroed and trimmed.

    Not base:allocation: zeroed pages that somebody has read count as data on some file systems of the host.
    """

    def talk(client: Client) -> Any:
        chance = random.Random(9)
        client.structured()
        client.contexts(name, "qemu:dirty-bitmap:b", "qemu:allocation-depth")
        client.go(name)
        answers = []
        for _ in range(800):
            kind = chance.choice(
                [nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES, nbd.CMD_BLOCK_STATUS]
            )
            unit = chance.choice([1, 512, 4096, 65536])
            offset = chance.randrange(SIZE // unit) * unit
            length = min(chance.randrange(1, 20) * unit, SIZE - offset + (chance.random() < 0.05))
            flags = {
                nbd.CMD_READ: (0, nbd.FLAG_DF),
                nbd.CMD_WRITE: (0, nbd.FLAG_FUA),
                nbd.CMD_TRIM: (0, nbd.FLAG_FUA),
                nbd.CMD_WRITE_ZEROES: (0, nbd.FLAG_NO_HOLE, nbd.FLAG_FAST_ZERO, nbd.FLAG_FAST_ZERO | nbd.FLAG_NO_HOLE),
                nbd.CMD_BLOCK_STATUS: (0, nbd.FLAG_REQ_ONE),
            }[kind]
            request = kind, offset, length, chance.choice(flags)
            data = chance.randbytes(length) if kind == nbd.CMD_WRITE else b""
            answers.append((request, ask(client, *request, data)))
        return answers

    ours, real = (play(path, talk) for path in servers)
    for (what, one), (_, two) in zip(ours, real, strict=True):
        assert one == specified(name, what[0], what[1:3], two), what

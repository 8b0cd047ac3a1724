"""vhost-user-blk exports: a real virtual machine boots from one; errors and limits beside the real daemon."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.exports.vhost_user import wire
from tests.boot import SAID, SECTOR, TEXT, boot, bootable
from tests.interop.differential import Do, Step, WaitEvent, assert_same
from tests.interop.vhost_front import DATA, SIZE, Front

MIB = 1 << 20


class Serving:
    """An engine whose node ``disk`` (qcow2, 4 MiB, bootable) is exported."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sock"
        self.engine = Engine()
        self.do("blockdev-create", job_id="c", options={"driver": "file", "filename": str(folder / "a"), "size": 0})
        self._finish("c")
        self.do("blockdev-add", driver="file", node_name="file", filename=str(folder / "a"))
        self.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "file", "size": 4 * MIB})
        self._finish("c")
        self.do("blockdev-add", driver="qcow2", node_name="disk", file="file", discard="unmap")
        self.node = self.engine.graph.nodes["disk"]
        self.node.write(0, memoryview(bootable(2 * SECTOR)))

    def _finish(self, job: str) -> None:
        while (found := self.do("query-jobs")) and found[0]["status"] != "concluded":
            pass
        assert "error" not in found[0]
        self.do("job-dismiss", id=job)

    def do(self, command: str, **arguments: Any) -> Any:
        return self.engine.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def export(self, **options: Any) -> None:
        address = {"type": "unix", "path": str(self.path)}
        self.do("block-export-add", type="vhost-user-blk", id="e", node_name="disk", addr=address, **options)

    def read(self, sector: int) -> bytes:
        buffer = bytearray(SECTOR)
        self.node.read(sector * SECTOR, memoryview(buffer))
        return bytes(buffer)

    def machine(self) -> tuple[str, ...]:
        """Options of a virtual machine that has the disk."""
        return (
            *("-object", "memory-backend-memfd,id=m,size=64M,share=on", "-machine", "memory-backend=m"),
            *("-chardev", f"socket,id=c,path={self.path}", "-device", "vhost-user-blk-pci,chardev=c,bootindex=0"),
        )


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    found = Serving(tmp_path)
    yield found
    found.engine.close()


@pytest.mark.parametrize("options", [{}, {"num_queues": 4, "logical_block_size": 512}, {"writethrough": True}])
def test_a_guest_boots_reads_and_writes(serving: Serving, qemu_system: str, options: dict[str, Any]) -> None:
    serving.export(writable=True, **options)
    assert boot(qemu_system, *serving.machine()).endswith(SAID.decode())
    assert serving.read(2) == TEXT.ljust(SECTOR, b".")
    # The next machine is served as well.
    serving.node.write(2 * SECTOR, memoryview(bytes(SECTOR)))
    assert boot(qemu_system, *serving.machine()).endswith(SAID.decode())
    assert serving.read(2) == TEXT.ljust(SECTOR, b".")


def test_a_read_only_disk_refuses_to_be_written(serving: Serving, qemu_system: str) -> None:
    serving.export()
    assert boot(qemu_system, *serving.machine()).endswith(f"{TEXT.decode()}F")
    assert serving.read(2) == bytes(SECTOR)


def test_an_export_in_use_goes_only_when_forced(serving: Serving) -> None:
    serving.export(writable=True)
    gone: list[str] = []
    serving.engine.subscribe(lambda event: gone.append(event["event"]))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(serving.path))
        client.settimeout(20)
        client.sendall(wire.HEADER.pack(wire.GET_FEATURES, wire.VERSION, 0))
        assert len(client.recv(100)) == wire.HEADER.size + 8
        with pytest.raises(Exception, match="export 'e' still in use"):
            serving.do("block-export-del", id="e")
        serving.do("block-export-del", id="e", mode="hard")
        assert client.recv(1) == b""
    while "BLOCK_EXPORT_DELETED" not in gone:
        serving.do("query-block-exports")
    assert not serving.path.exists()


HOSTILE: dict[str, list[bytes]] = {
    "another version": [wire.HEADER.pack(wire.GET_FEATURES, 2, 0)],
    "a long message": [wire.HEADER.pack(wire.SET_FEATURES, wire.VERSION, 1 << 31)],
    "an unknown request": [wire.HEADER.pack(99, wire.VERSION, 8) + bytes(8)],
    "no payload": [wire.HEADER.pack(wire.SET_FEATURES, wire.VERSION, 0)],
    "a queue too many": [wire.HEADER.pack(wire.SET_VRING_NUM, wire.VERSION, 8) + wire.VRING_STATE.pack(7, 1)],
    "memory without descriptors": [
        wire.HEADER.pack(wire.SET_MEM_TABLE, wire.VERSION, 40)
        + wire.MEM_TABLE.pack(1, 0)
        + wire.REGION.pack(0, 1, 0, 0)
    ],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_who_breaks_the_protocol_is_cut_off_and_harms_nobody(serving: Serving, case: str) -> None:
    serving.export(writable=True)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(serving.path))
            client.settimeout(20)
            for data in HOSTILE[case]:
                client.sendall(data)
            assert client.recv(100) == b""
    assert [export["shutting-down"] for export in serving.do("query-block-exports")] == [False]


# -- front ends in Python --------------------------------------------------------------------------------------------


def test_requests_and_their_statuses(serving: Serving) -> None:
    serving.export(writable=True)
    one = wire.BLK_RANGE.pack(0, 8, 0)
    with Front(serving.path) as front:
        assert front.request(wire.BLK_OUT, 8, b"x" * SECTOR) == (wire.STATUS_OK, b"")
        assert front.request(wire.BLK_IN, 8, wanted=SECTOR) == (wire.STATUS_OK, b"x" * SECTOR)
        assert front.request(wire.BLK_GET_ID, wanted=20) == (wire.STATUS_OK, b"vhost_user_blk".ljust(20, b"\0"))
        for kind in (wire.BLK_DISCARD_REQUEST, wire.BLK_WRITE_ZEROES_REQUEST):
            assert front.request(kind, data=one) == (wire.STATUS_OK, b"")
            assert front.request(kind, data=one * 2) == (wire.STATUS_UNSUPP, b"")
            assert front.request(kind, data=one[1:]) == (wire.STATUS_IOERR, b"")
        assert front.request(99)[0] == wire.STATUS_UNSUPP
        assert front.request(wire.BLK_IN, 4 * MIB // SECTOR, wanted=SECTOR)[0] == wire.STATUS_IOERR
        assert front.request(wire.BLK_IN, 0, wanted=100)[0] == wire.STATUS_IOERR


def test_the_last_sector_counts_as_a_whole_one(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    try:
        file = tmp_path / "odd"
        file.write_bytes(b"q" * 1000)
        serving.do("blockdev-add", driver="file", node_name="odd", filename=str(file))
        address = {"type": "unix", "path": str(serving.path)}
        serving.do("block-export-add", type="vhost-user-blk", id="e", node_name="odd", addr=address, writable=True)
        with Front(serving.path) as front:
            assert front.request(wire.BLK_IN, 1, wanted=SECTOR) == (wire.STATUS_OK, (b"q" * 488).ljust(SECTOR, b"\0"))
            assert front.request(wire.BLK_IN, 2, wanted=SECTOR)[0] == wire.STATUS_IOERR
            assert front.request(wire.BLK_OUT, 1, b"w" * SECTOR)[0] == wire.STATUS_OK
        assert file.read_bytes() == b"q" * SECTOR + b"w" * SECTOR
    finally:
        serving.engine.close()


Chain = list[tuple[int, int, int, int]]
CHAINS: dict[str, Chain] = {
    "a loop": [(DATA, 16, wire.DESC_NEXT, 1), (DATA, 16, wire.DESC_NEXT, 0)],
    "what is not shared": [(SIZE - 4, 16, wire.DESC_NEXT, 1), (DATA, 1, wire.DESC_WRITE, 0)],
    "a descriptor that there is not": [(DATA, 16, wire.DESC_NEXT, 999)],
    "half a table": [(DATA, 17, wire.DESC_INDIRECT, 0)],
    "to be read behind what is to be written": [
        (DATA, 1, wire.DESC_WRITE | wire.DESC_NEXT, 1),
        (DATA + 16, 16, 0, 0),
    ],
}


@pytest.mark.parametrize("case", CHAINS)
def test_who_describes_no_request_is_cut_off(serving: Serving, case: str) -> None:
    serving.export(writable=True)
    with Front(serving.path) as front:
        for index, descriptor in enumerate(CHAINS[case]):
            front.describe(index, *descriptor)
        front.post(0)
        assert front.cut_off()
    with Front(serving.path) as front:
        assert front.request(wire.BLK_FLUSH_REQUEST)[0] == wire.STATUS_OK


def test_who_can_not_be_woken_holds_nobody_up(serving: Serving) -> None:
    """What it wants to be woken by is a pipe that is full."""
    serving.export(writable=True)
    end, pipe = os.pipe()
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, bytes(65536))
    os.set_blocking(pipe, True)
    try:
        with Front(serving.path, call=pipe) as front:
            front.describe(0, DATA, 16, wire.DESC_NEXT, 1)
            front.describe(1, DATA + 16, 1, wire.DESC_WRITE)
            front.post(0)
            while not front.done():
                pass
        with Front(serving.path) as front:
            assert front.request(wire.BLK_FLUSH_REQUEST)[0] == wire.STATUS_OK
    finally:
        os.close(end)


# -- beside the real one ---------------------------------------------------------------------------------------------

UNIX = {"type": "unix", "path": "$DIR/sock"}
NODE = Do("blockdev-add", {"driver": "null-co", "node-name": "n"})


def add(**options: Any) -> Do:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Do("block-export-add", {"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": UNIX} | given)


def test_like_the_daemon(qsd: str, tmp_path: Path) -> None:
    talk: list[Step] = [
        NODE,
        add(num_queues=0),
        add(logical_block_size=3),
        add(logical_block_size=513),
        add(logical_block_size=4 << 20),
        add(logical_block_size=-1),
        add(addr={"type": "inet", "host": "localhost", "port": "1"}),
        add(addr={"type": "unix", "path": "$DIR/none/sock"}),
        add(addr={"type": "fd", "str": "x"}),
        add(writable=True),
        Do("query-block-exports"),
        Do("x-debug-query-block-graph"),
        Do("block-export-del", {"id": "e"}),
        WaitEvent("BLOCK_EXPORT_DELETED"),
        add(),
        Do("x-debug-query-block-graph"),
    ]
    assert_same(talk, tmp_path)

"""Exports come and go while clients use them."""

from __future__ import annotations

import threading
import time

import pytest

from engine.errors import QMPError
from engine.graph.drain import drained
from engine.graph.node import Node
from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client, Gone
from tests.engine.exports.conftest import Serving


def test_a_drain_keeps_clients_waiting(serving: Serving) -> None:
    node = serving.engine.graph.nodes["disk"]
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with drained([node]):
            inside.set()
            assert leave.wait(20)

    with serving.connect() as client:
        client.go()
        holder = threading.Thread(target=lambda: serving.engine.control.call(hold))
        holder.start()
        assert inside.wait(20)
        client.request(nbd.CMD_WRITE, 0, 3, data=b"abc")
        client.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.socket.recv(1)
        leave.set()
        holder.join()
        client.socket.settimeout(20)
        assert client.reply().error == 0
        assert client.read(0, 3) == b"abc"


def test_the_control_plane_does_not_wait_for_a_client_that_does_not_read(serving: Serving) -> None:
    with serving.connect() as client:
        client.structured().go()
        for _ in range(64):
            client.request(nbd.CMD_READ, 0, 1 << 20, nbd.FLAG_DF)
        # The server can't get rid of its answers now.
        overlay = str(serving.folder / "snap.qcow2")
        serving.do("blockdev-snapshot-sync", node_name="disk", snapshot_file=overlay, snapshot_node_name="top")
        serving.do("block-export-del", id="e-disk", mode="hard")
        serving.wait_event("BLOCK_EXPORT_DELETED")
    serving.wait_no_threads()


def slow_requests(serving: Serving, client: Client, kind: int) -> None:
    """Have a client ask in one go for what takes some ten seconds, and wait until the server is at it."""
    serving.do("blockdev-add", driver="null-co", node_name="slow", size=1 << 20, latency_ns=20_000_000)
    serving.export("slow", "slow", writable=True)
    client.go("slow")
    request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, kind, 1, 0, 256)
    client.send((request + bytes(256 if kind == nbd.CMD_WRITE else 0)) * 500)
    door = next(each.door for each in serving.engine.graph.backends if each.node.name == "slow")
    while not door.in_flight:
        pass


@pytest.mark.parametrize("kind", [nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_CACHE])
@pytest.mark.parametrize("how", ["delete", "stop", "drain"])
def test_nobody_waits_for_all_that_a_client_asked_for(serving: Serving, how: str, kind: int) -> None:
    with serving.connect() as client:
        slow_requests(serving, client, kind)
        begun = time.monotonic()
        match how:
            case "delete":
                serving.do("block-export-del", id="e-slow", mode="hard")
                serving.wait_event("BLOCK_EXPORT_DELETED")
            case "stop":
                serving.do("nbd-server-stop")
            case _:
                serving.engine.control.call(lambda: drain(serving.engine.graph.nodes["slow"]))
        assert time.monotonic() - begun < 2
    serving.wait_no_threads()


@pytest.mark.parametrize("kind", [nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_CACHE])
def test_slow_requests_are_answered_one_by_one(serving: Serving, kind: int) -> None:
    """Whoever asked for many at once gets what is done, not all at the end (a throttled node)."""
    with serving.connect() as client:
        slow_requests(serving, client, kind)
        assert client.reply(256 if kind == nbd.CMD_READ else 0).error == 0
        node = serving.engine.graph.nodes["slow"]
        assert node.rd_operations + node.wr_operations < 50
        client.socket.close()
        serving.do("nbd-server-stop")


def test_slow_errors_are_answered_one_by_one(serving: Serving) -> None:
    serving.do("object-add", qom_type="throttle-group", id="group", limits={"iops-total": 50})
    rules = [{"event": "none", "iotype": "read", "errno": 5}]
    broken = {"driver": "blkdebug", "image": {"driver": "null-co", "size": 1 << 20}, "inject-error": rules}
    serving.do("blockdev-add", driver="throttle", node_name="slow", throttle_group="group", file=broken)
    serving.export("slow", "slow")
    with serving.connect() as client:
        client.go("slow")
        client.send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, 1, 0, 256) * 500)
        assert client.reply().error == nbd.EIO
        assert serving.engine.graph.nodes["slow"].rd_operations < 50
        serving.do("nbd-server-stop")


def drain(node: Node) -> None:
    with drained([node]):
        pass


def test_safe_removal_needs_the_clients_to_leave(serving: Serving) -> None:
    with serving.connect() as client, serving.connect() as looking:
        client.go()
        looking.option(nbd.OPT_LIST)
        with pytest.raises(QMPError, match="export 'e-disk' still in use"):
            serving.do("block-export-del", id="e-disk")
        client.request(nbd.CMD_DISC)
        assert client.gone
    serving.wait_no_threads()
    serving.do("block-export-del", id="e-disk")
    with serving.connect() as late, pytest.raises(Gone):
        late.go()


def test_a_half_written_request_is_dropped(serving: Serving) -> None:
    for data in (b"", b"x" * 5000, b"x" * (1 << 20)):
        with serving.connect() as client:
            client.go()
            client.request(nbd.CMD_WRITE, 0, 2 << 20, data=data)
    serving.wait_no_threads()
    with serving.connect() as client:
        client.go()
        assert client.read(0, 10) == bytes(10)
        client.request(nbd.CMD_WRITE, 0, 2 << 20, data=b"x")
        serving.do("nbd-server-stop")
        assert client.gone


def test_the_export_of_a_device_goes_with_its_medium(serving: Serving) -> None:
    image = serving.folder / "d.raw"
    image.write_bytes(bytes(65536))
    line = f"drive_add 0 file={image},format=raw,if=none,id=d0"
    serving.do("human-monitor-command", command_line=line)
    serving.do("nbd-server-add", device="d0", writable=True)
    with serving.connect() as client:
        client.go("d0")
        assert [export["id"] for export in serving.do("query-block-exports")] == ["d0", "e-disk"]
        serving.do("eject", device="d0", force=True)
        serving.wait_event("BLOCK_EXPORT_DELETED")
        assert client.gone
    assert [export["id"] for export in serving.do("query-block-exports")] == ["e-disk"]


def test_the_export_follows_its_node_to_an_overlay(serving: Serving) -> None:
    with serving.connect() as client:
        client.go()
        client.write(0, b"below")
        overlay = serving.folder / "snap.qcow2"
        serving.do("blockdev-snapshot-sync", node_name="disk", snapshot_file=str(overlay), snapshot_node_name="top")
        assert serving.do("query-block-exports")[0]["node-name"] == "top"
        client.write(0, b"ABOVE")
        assert client.read(0, 5) == b"ABOVE"
    serving.do("nbd-server-stop")
    assert (serving.folder / "disk.raw").read_bytes()[:5] == b"below"


def test_the_screen_can_name_an_export(serving: Serving) -> None:
    (parent,) = [found for found in serving.do("x-blockmon-query-graph")["parents"] if found["kind"] == "export"]
    assert (parent["name"], parent["model"]) == ("e-disk", "nbd")
    with serving.connect() as client:
        client.go()
        client.write(0, bytes(65536))
        client.read(0, 4096)
    stats = serving.engine.graph.backends[0].stats
    assert (stats.wr_bytes, stats.wr_operations, stats.rd_bytes, stats.rd_operations) == (65536, 1, 4096, 1)


def test_a_bitmap_is_busy_while_exported(serving: Serving) -> None:
    serving.raw("tracked")
    serving.do("block-dirty-bitmap-add", node="tracked", name="b")
    serving.export("tracked", "t", writable=True, bitmaps=["b"])
    with pytest.raises(QMPError, match="Bitmap 'b' is currently in use"):
        serving.do("block-dirty-bitmap-clear", node="tracked", name="b")
    serving.do("block-export-del", id="e-tracked")
    serving.do("block-dirty-bitmap-clear", node="tracked", name="b")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vduse-blk", {"name": "x"}),
    ],
)
def test_types_that_are_not_there_say_so(serving: Serving, kind: str, options: dict[str, object]) -> None:
    with pytest.raises(QMPError, match=f"Exports of type '{kind}' are not available in this version"):
        serving.do("block-export-add", type=kind, id="e", node_name="disk", **options)


def test_closing_the_engine_with_clients(serving: Serving) -> None:
    with serving.connect() as client, serving.connect() as silent:
        client.structured().go()
        client.request(nbd.CMD_READ, 0, 1 << 20, nbd.FLAG_DF)
        serving.engine.close()
        assert [event["data"]["id"] for event in serving.events if event["event"] == "BLOCK_EXPORT_DELETED"] == [
            "e-disk"
        ]
        assert silent.gone
        assert not serving.path.exists()


def test_clients_are_taken_while_the_control_plane_is_busy(serving: Serving) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert leave.wait(20)

    holder = threading.Thread(target=lambda: serving.engine.control.call(hold))
    holder.start()
    try:
        assert inside.wait(20)
        with serving.connect() as client:
            client.go()
            assert client.read(0, 3) == b"\0" * 3
    finally:
        leave.set()
        holder.join()


class Busy:
    """Clients that write, each its own page again and again, until the server cuts them off."""

    def __init__(self, serving: Serving, number: int, name: str = "") -> None:
        self._serving, self._name = serving, name
        self.acknowledged: dict[int, bytes] = {}
        self._begun = threading.Barrier(number + 1)
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(number)]
        for thread in self._threads:
            thread.start()
        self._begun.wait(20)

    def _run(self, at: int) -> None:
        with self._serving.connect() as client:
            (client.extend() if at % 3 == 0 else client).go(self._name)
            number = 0
            try:
                while True:
                    page = (number.to_bytes(8) * 512)[:4096]
                    assert client.write(at * 4096, page) == 0
                    self.acknowledged[at] = page
                    if number == 3:
                        self._begun.wait(20)
                    number += 1
            except (Gone, OSError):
                pass

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.parametrize("how", ["delete", "stop", "close"])
def test_an_end_in_the_middle_of_everything(serving: Serving, how: str) -> None:
    """Fifty clients are cut off while they write; what they were told is written is."""
    busy = Busy(serving, 50)
    if how == "delete":
        serving.do("block-export-del", id="e-disk", mode="hard")
        serving.wait_event("BLOCK_EXPORT_DELETED")
    elif how == "stop":
        serving.do("nbd-server-stop")
    else:
        serving.engine.close()
    busy.wait()
    serving.wait_no_threads()
    assert [event["data"] for event in serving.events if event["event"] == "BLOCK_EXPORT_DELETED"] == [{"id": "e-disk"}]
    content = (serving.folder / "disk.raw").read_bytes()
    for at, page in busy.acknowledged.items():
        # The last one may have been written and not acknowledged.
        found = content[at * 4096 : (at + 1) * 4096]
        assert int.from_bytes(found[:8]) - int.from_bytes(page[:8]) in (0, 1)
        assert found == (found[:8] * 512)[:4096]


def test_one_of_two_exports_goes_and_the_other_stays(serving: Serving) -> None:
    serving.raw("other")
    serving.export("other", "other", writable=True)
    staying = Busy(serving, 10, "other")
    going = Busy(serving, 10)
    serving.do("block-export-del", id="e-disk", mode="hard")
    going.wait()
    before = dict(staying.acknowledged)
    with serving.connect() as client:
        client.go("other")
        while staying.acknowledged == before:
            assert client.read(0, 8)
    serving.do("nbd-server-stop")
    staying.wait()


def test_the_server_can_be_started_again_with_the_same_address_at_once(serving: Serving) -> None:
    for _ in range(5):
        busy = Busy(serving, 5)
        serving.do("nbd-server-stop")
        serving.start()
        serving.export("disk", writable=True)
        busy.wait()
    with serving.connect() as client:
        client.go()
        assert client.read(0, 8) != bytes(8)


def test_more_clients_than_there_may_be(serving: Serving) -> None:
    """They wait, and all are served in the end."""
    serving.do("nbd-server-stop")
    serving.start(max_connections=3)
    serving.export("disk", writable=True)
    served: list[int] = []

    def come(number: int) -> None:
        with serving.connect() as client:
            client.go()
            assert client.write(number * 512, bytes([number]) * 512) == 0
            assert len(serving.threads()) <= 4  # one more may be about to end
            served.append(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(served) == list(range(40))

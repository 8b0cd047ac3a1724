"""What a guest's requests come to: policy, stop and cont, trays, accounting."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.devices.disk import Request
from engine.errors import QMPError
from tests.engine.devices.machine import MIB, Lab, Running, wait_for

SECTOR = memoryview(bytes(512))
PATH = "/machine/peripheral/v/virtio-backend"


def buffer(size: int = 512) -> memoryview:
    return memoryview(bytearray(size))


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


def test_a_guest_reads_what_it_wrote(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n")
    disk.write(0, SECTOR)
    disk.write(512, SECTOR, fua=True)
    disk.write_zeroes(0, 4096)
    disk.discard(0, 4096)
    disk.flush()
    got = buffer(4096)
    disk.read(0, got)
    stats = lab.stats(PATH)
    assert (stats["wr_operations"], stats["wr_bytes"]) == (3, 512 + 512 + 4096)
    assert (stats["rd_operations"], stats["rd_bytes"]) == (1, 4096)
    assert (stats["unmap_operations"], stats["unmap_bytes"], stats["flush_operations"]) == (1, 4096, 1)
    assert disk.length == MIB


def test_requests_beyond_the_end_are_invalid_and_no_error_of_the_host(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n", rerror="stop", werror="stop")
    for request in (
        lambda: disk.read(MIB, buffer()),
        lambda: disk.write(MIB, SECTOR),
        lambda: disk.discard(MIB - 512, 1024),
        lambda: disk.read(100, buffer()),
        lambda: disk.write(0, memoryview(bytes(100))),
    ):
        with pytest.raises(OSError):
            request()
    stats = lab.stats(PATH)
    assert stats["invalid_rd_operations"] == 2
    assert stats["invalid_wr_operations"] == 2
    assert stats["invalid_unmap_operations"] == 1
    assert not [name for name in stats if name.startswith("failed") and stats[name]]
    assert lab.names() == []


def test_the_logical_block_size_is_the_least_request(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n", logical_block_size=4096, physical_block_size=4096)
    with pytest.raises(OSError):
        disk.read(512, buffer())
    disk.read(4096, buffer(4096))
    assert lab.stats(PATH)["invalid_rd_operations"] == 1


@pytest.mark.parametrize(
    ("kind", "iotype"), [("read", "read"), ("write", "write"), ("write_zeroes", "write-zeroes"), ("discard", "discard")]
)
@pytest.mark.parametrize("policy", ["report", "ignore", "stop"])
def test_policies(lab: Lab, kind: str, iotype: str, policy: str) -> None:
    lab.failing("bad", iotype, errno.EIO)
    disk = lab.add("virtio-blk", "v", drive="bad", rerror=policy, werror=policy)
    calls = {
        "read": lambda: disk.read(0, buffer()),
        "write": lambda: disk.write(0, SECTOR),
        "write_zeroes": lambda: disk.write_zeroes(0, 512),
        "discard": lambda: disk.discard(0, 512),
    }
    running = Running(calls[kind])
    event = lab.wait_event("BLOCK_IO_ERROR")
    assert event["action"] == policy
    assert event["operation"] == ("read" if kind == "read" else "write")
    assert event["node-name"] == "bad"
    assert event["reason"] == os.strerror(errno.EIO)
    counted = {"read": "rd", "discard": "unmap"}.get(kind, "wr")
    if policy == "stop":
        lab.wait_event("STOP")
        assert lab.do("query-status") == {"running": False, "singlestep": False, "status": "io-error"}
        assert lab.info(PATH)["io-status"] == "failed"
        assert running.waits
        lab.do("cont")
    if policy == "report":
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            running.finish()
    else:
        running.finish()
    stats = lab.stats(PATH)
    assert stats[f"failed_{counted}_operations"] == (policy == "report")
    assert stats[f"{counted}_operations"] == (policy != "report")
    assert lab.do("query-status")["running"]


def test_a_failing_flush_is_a_failing_write(lab: Lab) -> None:
    lab.failing("bad", "flush", errno.EIO)
    disk = lab.add("virtio-blk", "v", drive="bad", werror="report")
    disk.write(0, SECTOR)
    with pytest.raises(OSError):
        disk.flush()
    event = lab.wait_event("BLOCK_IO_ERROR")
    assert (event["operation"], event["action"]) == ("write", "report")
    assert "nospace" not in event
    assert lab.stats(PATH)["failed_flush_operations"] == 1


def test_no_space_stops_by_default_and_other_errors_do_not(lab: Lab) -> None:
    lab.failing("full", "write", errno.ENOSPC)
    lab.failing("bad", "write", errno.EIO)
    full = lab.add("virtio-blk", "v", drive="full")
    bad = lab.add("virtio-blk", "w", drive="bad")
    with pytest.raises(OSError):
        bad.write(0, SECTOR)
    assert lab.wait_event("BLOCK_IO_ERROR") | {"reason": ""} == {
        "device": "",
        "node-name": "bad",
        "operation": "write",
        "action": "report",
        "nospace": False,
        "reason": "",
    }
    running = Running(lambda: full.write(0, SECTOR))
    event = lab.wait_event("BLOCK_IO_ERROR")
    assert (event["action"], event["nospace"]) == ("stop", True)
    lab.wait_event("STOP")
    assert lab.info(PATH)["io-status"] == "nospace"
    lab.do("cont")
    running.finish()


def test_named_back_ends_forget_their_error_at_cont(lab: Lab) -> None:
    lab.failing("bad", "read", errno.EIO)
    machine, graph = lab.engine.machine, lab.engine.graph
    lab.engine.control.call(lambda: machine.add_backend("drive", graph.node("bad")))
    disk = lab.add("virtio-blk", "v", drive="drive", rerror="stop")
    running = Running(lambda: disk.read(0, buffer()))
    assert lab.wait_event("BLOCK_IO_ERROR")["device"] == "drive"
    lab.wait_event("STOP")
    assert lab.info(PATH)["io-status"] == "failed"
    lab.do("cont")
    assert lab.info(PATH)["io-status"] == "ok"
    running.finish()


def test_all_requests_that_failed_are_retried(lab: Lab) -> None:
    lab.failing("bad", "write", errno.EIO, once=False)
    disk = lab.add("virtio-blk", "v", drive="bad", werror="stop")
    running = [Running(lambda at=at: disk.write(at * 512, SECTOR)) for at in range(4)]  # type: ignore[misc]
    lab.wait_event("BLOCK_IO_ERROR")
    lab.wait_event("STOP")
    lab.do("cont")
    lab.wait_event("STOP")
    assert any(one.waits for one in running)
    lab.do("system_reset")
    for one in running:
        with pytest.raises(OSError):
            one.finish()


def test_stopped_guests_wait(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n")
    lab.do("stop")
    running = [Running(lambda: disk.read(0, buffer())), Running(disk.flush)]
    assert lab.stats(PATH)["rd_operations"] == 0
    assert all(one.waits for one in running)
    lab.do("cont")
    for one in running:
        one.finish()
    assert lab.stats(PATH)["rd_operations"] == 1
    assert lab.names() == ["STOP", "RESUME"]


def test_nothing_is_written_once_the_guests_are_stopped(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(MIB))
    lab.do("blockdev-add", driver="file", node_name="f", filename=str(path))
    lab.add("virtio-blk", "v", drive="f")
    for number in range(3):
        lab.do("x-blockmon-guest-add", id=f"g{number}", device="v", iops=1_000_000, write_percent=100, seed=number)
    for _ in range(5):
        lab.do("stop")
        seen = path.read_bytes()
        operations = lab.stats(PATH)["wr_operations"]
        for _ in range(20):
            lab.do("query-status")
        assert path.read_bytes() == seen
        assert lab.stats(PATH)["wr_operations"] == operations
        lab.do("cont")
        wait_for(lambda before=operations: lab.stats(PATH)["wr_operations"] > before)  # type: ignore[misc]


def test_the_engine_can_end_while_requests_wait() -> None:
    lab = Lab()
    lab.failing("bad", "read", errno.EIO, once=False)
    disk = lab.add("virtio-blk", "v", drive="bad", rerror="stop")
    running = Running(lambda: disk.read(0, buffer()))
    lab.wait_event("STOP")
    lab.close()
    with pytest.raises(OSError):
        running.finish()


def test_a_device_goes_although_its_requests_wait(lab: Lab) -> None:
    lab.failing("bad", "read", errno.EIO, once=False)
    lab.add("virtio-blk", "v", drive="bad", rerror="stop")
    lab.do("device_add", driver="virtio-scsi", id="s")
    lab.node("n")
    other = lab.add("scsi-hd", "h", drive="n")
    disk = lab.disk("v")
    running = Running(lambda: disk.read(0, buffer()))
    lab.wait_event("STOP")
    waiting = Running(lambda: other.read(0, buffer()))
    lab.do("device_del", id="h")
    with pytest.raises(OSError):
        waiting.finish()
    lab.do("device_del", id="v")
    with pytest.raises(QMPError, match="Device v is already in the process of unplug"):
        lab.do("device_del", id="v")
    lab.do("cont")
    with pytest.raises(OSError):
        running.finish()
    lab.wait_event("DEVICE_DELETED")
    assert lab.do("query-block") == []


def test_a_read_only_disk_refuses_writes_and_asks_no_policy(lab: Lab) -> None:
    lab.node("n", read_only=True)
    disk = lab.add("virtio-blk", "v", drive="n", werror="stop")
    for write in (lambda: disk.write(0, SECTOR), lambda: disk.write_zeroes(0, 512), lambda: disk.discard(0, 512)):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == errno.EROFS
    assert lab.names() == []


def test_neighbours_that_come_together_are_merged(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n")
    reads = [Request("read", at * 512, buffer()) for at in (0, 1, 2, 4)]
    writes = [Request("write", at * 512, SECTOR) for at in (8, 9)]
    assert disk.submit([*reads, *writes]) == [None] * 6
    stats = lab.stats(PATH)
    assert (stats["rd_operations"], stats["rd_merged"], stats["rd_bytes"]) == (4, 2, 2048)
    assert (stats["wr_operations"], stats["wr_merged"], stats["wr_bytes"]) == (2, 1, 1024)


def test_merged_reads_get_their_own_data(lab: Lab, tmp_path: object) -> None:
    path = f"{tmp_path}/a.raw"
    with open(path, "wb") as file:
        file.write(b"".join(bytes([number]) * 512 for number in range(8)))
    lab.do("blockdev-add", driver="file", node_name="f", filename=path)
    disk = lab.add("virtio-blk", "v", drive="f")
    reads = [Request("read", at * 512, buffer()) for at in (2, 3, 4)]
    assert disk.submit(reads) == [None] * 3
    assert [bytes(read.buffer[:1]) for read in reads] == [b"\2", b"\3", b"\4"]
    assert disk.submit([Request("write", 0, memoryview(b"x" * 512)), Request("write", 512, memoryview(b"y" * 512))])
    disk.flush()
    with open(path, "rb") as file:
        assert file.read(1024) == b"x" * 512 + b"y" * 512


def test_without_request_merging_nothing_is_merged(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n", **{"request-merging": "off"})
    disk.submit([Request("read", 0, buffer()), Request("read", 512, buffer())])
    assert lab.stats(PATH)["rd_merged"] == 0


def test_one_bad_request_of_several_tells_who(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n")
    good, bad = disk.submit([Request("read", 0, buffer()), Request("read", MIB, buffer())])
    assert good is None
    assert isinstance(bad, OSError)


def test_accounting_properties(lab: Lab) -> None:
    lab.failing("bad", "read", errno.EIO)
    options = {"account-failed": "off", "account-invalid": "off"}
    disk = lab.add("virtio-blk", "v", drive="bad", **options)
    with pytest.raises(OSError):
        disk.read(0, buffer())
    with pytest.raises(OSError):
        disk.read(MIB, buffer())
    stats = lab.stats(PATH)
    assert (stats["account_failed"], stats["account_invalid"]) == (False, False)
    assert (stats["failed_rd_operations"], stats["invalid_rd_operations"]) == (1, 1)
    assert "idle_time_ns" not in stats


def test_latency_histograms_count_requests(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n")
    lab.do("block-latency-histogram-set", id=PATH, boundaries=[1, 1 << 62])
    disk.read(0, buffer())
    disk.read(0, buffer())
    disk.flush()
    stats = lab.stats(PATH)
    assert stats["rd_latency_histogram"] == {"boundaries": [1, 1 << 62], "bins": [0, 2, 0]}
    assert stats["wr_latency_histogram"]["bins"] == [0, 0, 0]
    assert stats["flush_latency_histogram"]["bins"] == [0, 1, 0]
    lab.do("block-latency-histogram-set", id=PATH)
    assert "rd_latency_histogram" not in lab.stats(PATH)


def test_intervals_are_shown(lab: Lab) -> None:
    lab.node("n")
    disk = lab.add("virtio-blk", "v", drive="n")
    disk.backend.stats.add_interval(60)
    disk.write(0, SECTOR)
    (interval,) = lab.stats(PATH)["timed_stats"]
    assert interval["interval_length"] == 60
    assert 0 < interval["min_wr_latency_ns"] == interval["max_wr_latency_ns"] == interval["avg_wr_latency_ns"]
    assert interval["max_rd_latency_ns"] == 0
    assert interval["avg_wr_queue_depth"] > 0


def test_write_cache_off_makes_writes_durable(lab: Lab) -> None:
    lab.node("n")
    lab.add("virtio-blk", "v", drive="n", **{"write-cache": "off"})
    assert lab.info(PATH)["inserted"]["cache"]["writeback"] is False


# -- removable media -------------------------------------------------------------------------------------------------


@pytest.fixture
def cd(lab: Lab) -> Lab:
    lab.node("m")
    lab.add("ide-cd", "cd", drive="m")
    return lab


def test_an_empty_drive_has_no_medium_to_read(cd: Lab) -> None:
    disk = cd.disk("cd")
    disk.read(0, buffer())
    cd.do("blockdev-open-tray", id="cd")
    with pytest.raises(OSError) as caught:
        disk.read(0, buffer())
    assert caught.value.errno == errno.ENOMEDIUM
    cd.do("blockdev-remove-medium", id="cd")
    cd.do("blockdev-close-tray", id="cd")
    with pytest.raises(OSError) as caught:
        disk.read(0, buffer())
    assert caught.value.errno == errno.ENOMEDIUM
    assert cd.names() == ["DEVICE_TRAY_MOVED", "DEVICE_TRAY_MOVED"]


def test_nobody_writes_to_a_cd(cd: Lab) -> None:
    with pytest.raises(OSError) as caught:
        cd.disk("cd").write(0, SECTOR)
    assert caught.value.errno == errno.EROFS


def test_the_guest_moves_its_tray(cd: Lab) -> None:
    disk = cd.disk("cd")
    cd.do("x-blockmon-guest-tray", device="cd", open=True)
    assert cd.wait_event("DEVICE_TRAY_MOVED") == {"device": "", "id": "cd", "tray-open": True}
    cd.do("x-blockmon-guest-tray", device="cd", open=True)
    cd.do("x-blockmon-guest-tray", device="cd", open=False, lock=True)
    assert cd.wait_event("DEVICE_TRAY_MOVED")["tray-open"] is False
    with pytest.raises(QMPError, match="locked by its guest"):
        cd.do("x-blockmon-guest-tray", device="cd", open=True)
    cd.do("blockdev-open-tray", id="cd")
    assert disk.eject_requested
    assert not disk.tray_open
    cd.do("x-blockmon-guest-tray", device="cd", lock=False, open=True)
    assert disk.tray_open
    assert cd.names() == ["DEVICE_TRAY_MOVED"]


def test_a_floppy_has_no_tray(lab: Lab) -> None:
    lab.add("floppy", "fl")
    with pytest.raises(QMPError, match="does not have a tray"):
        lab.do("x-blockmon-guest-tray", device="fl", open=True)


def test_a_floppy_tells_its_guest_only(lab: Lab) -> None:
    lab.failing("bad", "read", errno.EIO)
    disk = lab.add("floppy", "fl", drive="bad")
    with pytest.raises(OSError):
        disk.read(0, buffer())
    assert lab.names() == []
    assert "io-status" not in lab.info("fl")


def test_a_medium_is_changed_under_running_requests(cd: Lab) -> None:
    cd.node("other", size=2 * MIB)
    disk = cd.disk("cd")
    stop = False

    def read_all() -> None:
        while not stop:
            try:
                disk.read(0, buffer())
            except OSError as exc:
                if exc.errno != errno.ENOMEDIUM:
                    raise

    readers = [Running(read_all) for _ in range(2)]
    for node in ["other", "m"] * 4:
        cd.do("eject", id="cd")
        cd.do("blockdev-insert-medium", id="cd", node_name=node)
        cd.do("blockdev-close-tray", id="cd")
    stop = True
    for reader in readers:
        reader.finish()
    assert disk.length == MIB
    cd.do("blockdev-del", node_name="other")

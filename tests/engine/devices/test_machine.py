"""Adding and removing devices, guests with workloads, and what other parts of the engine see of devices."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.devices.models import MODELS, find_model, table_text
from engine.errors import DeviceNotFound, GenericError, QMPError
from tests.engine.devices.machine import MIB, TIMEOUT, Lab

PATH = "/machine/peripheral/v/virtio-backend"


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


def test_a_node_goes_with_its_last_device_unless_the_monitor_holds_it(lab: Lab, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(MIB))
    lab.node("mine")
    lab.add("virtio-blk", "v", drive="mine")
    with pytest.raises(QMPError, match="Node mine is in use"):
        lab.do("blockdev-del", node_name="mine")
    lab.add("ide-cd", "cd")
    lab.do("blockdev-change-medium", id="cd", filename=str(image), format="raw")
    assert len(lab.do("query-named-block-nodes")) == 3
    lab.do("device_del", id="cd")
    lab.do("device_del", id="v")
    lab.wait_event("DEVICE_DELETED")
    assert [node["node-name"] for node in lab.do("query-named-block-nodes")] == ["mine"]
    lab.do("blockdev-del", node_name="mine")


def test_a_failed_device_leaves_nothing_behind(lab: Lab) -> None:
    lab.node("n")
    with pytest.raises(QMPError, match="opt_io_size"):
        lab.add("virtio-blk", "v", drive="n", opt_io_size=1000)
    assert lab.do("query-block") == []
    lab.do("blockdev-del", node_name="n")
    lab.node("n")
    lab.add("virtio-blk", "v", drive="n")


def test_ide_and_floppy_devices_can_be_added_at_any_time(lab: Lab) -> None:
    for number in range(3):
        lab.node(f"n{number}")
    lab.add("ide-hd", "h0", drive="n0")
    lab.add("ide-hd", "h1", drive="n1")
    lab.add("ide-hd", "h2", drive="n2", bus="ide.0", unit=1)
    lab.add("ide-cd", "cd", bus="ide.0")
    for bus in ("ide.0", "ide.1"):
        with pytest.raises(QMPError, match="IDE unit 1 is in use"):
            lab.add("ide-cd", "more", bus=bus)
    lab.do("device_del", id="h2")
    lab.add("ide-cd", "more", bus="ide.0")
    assert lab.info("more")["tray_open"] is False


def coldplugged(*devices: str) -> list[tuple[str, dict[str, object]]]:
    """Devices as on a command line, their properties as texts."""
    found = []
    for device in devices:
        driver, *properties = device.split(",")
        found.append((driver, dict(text.split("=") for text in properties)))
    return found


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        (("floppy", "floppy", "floppy"), "Can't create floppy unit 2, bus supports only 2 units"),
        (("floppy,unit=0", "floppy,unit=0"), "Floppy unit 0 is in use"),
        (("ide-cd", "ide-cd", "ide-cd"), "IDE unit 1 is in use"),
        (("ide-cd,bus=ide.0,unit=0", "ide-cd,bus=ide.0,unit=0"), "IDE unit 0 is in use"),
        (("ide-cd,unit=2",), "Can't create IDE unit 2, bus supports only 2 units"),
        (("ide-hd",), "No drive specified"),
        (("ide-hd,drive=ro",), "Block node is read-only"),
        (("ide-hd,drive=ro,cyls=1,heads=17,secs=1",), "heads must be between 1 and 16"),
        (("ide-hd,drive=e",), "Device needs media, but drive is empty"),
        (("virtio-blk,drive=e",), "Device needs media, but drive is empty"),
        (("ide-cd,drive=e", "floppy,drive=e"), "Drive 'e' is already in use by another device"),
        (
            ("ide-cd,logical_block_size=4096,physical_block_size=4096",),
            "discard_granularity must be a multiple of logical_block_size",
        ),
        (
            ("floppy,logical_block_size=4096,physical_block_size=4096",),
            "Physical and logical block size must be 512 for floppy",
        ),
    ],
)
def test_what_qemu_refuses_on_its_command_line(lab: Lab, devices: tuple[str, ...], text: str) -> None:
    lab.node("ro", read_only=True)
    lab.engine.control.call(lambda: lab.engine.machine.add_backend("e"))
    *good, (driver, properties) = coldplugged(*devices)
    for number, (name, given) in enumerate(good):
        lab.add(name, f"d{number}", **given)
    with pytest.raises(QMPError) as caught:
        lab.add(driver, "bad", **properties)
    assert caught.value.desc == text


def test_a_stopped_guest_lets_go_when_it_runs_again(lab: Lab) -> None:
    lab.node("n")
    lab.add("virtio-blk", "v", drive="n")
    lab.do("stop")
    lab.do("device_del", id="v")
    assert lab.names() == ["STOP"]
    assert lab.info(PATH)["inserted"]["node-name"] == "n"
    lab.do("cont")
    assert lab.names() == ["STOP", "RESUME", "DEVICE_DELETED", "DEVICE_DELETED"]
    assert lab.events[-1]["data"] == {"device": "v", "path": "/machine/peripheral/v"}


def test_all_32_slots(lab: Lab) -> None:
    lab.node("n")
    for number in range(30):
        lab.add("virtio-blk", f"v{number}", drive="n", **{"share-rw": True})
    with pytest.raises(QMPError, match="no slot/function available for virtio-blk-pci"):
        lab.add("virtio-blk", "more", drive="n", **{"share-rw": True})


def test_devices_by_id_and_path(lab: Lab) -> None:
    lab.node("n")
    lab.add("virtio-blk", "v", drive="n")
    machine = lab.engine.machine
    for name in ("v/virtio-backend", PATH):
        assert machine.backend_of(name).device is machine.disk("v")
    with pytest.raises(GenericError, match="Device does not have a block device backend"):
        machine.backend_of("v")
    for name in ("nope", "", "/machine/peripheral", "v/"):
        with pytest.raises(DeviceNotFound):
            machine.find(name)


def test_an_iothread_in_use_cannot_be_deleted(lab: Lab) -> None:
    lab.node("n")
    lab.do("object-add", qom_type="iothread", id="io")
    lab.add("virtio-blk", "v", drive="n", iothread="io")
    with pytest.raises(QMPError, match="in use"):
        lab.do("object-del", id="io")
    lab.do("device_del", id="v")
    lab.wait_event("DEVICE_DELETED")
    lab.do("object-del", id="io")


def test_named_back_ends(lab: Lab) -> None:
    machine = lab.engine.machine
    lab.node("n")
    lab.engine.control.call(lambda: machine.add_backend("drive"))
    for taken in ("drive", "n"):
        with pytest.raises(GenericError):
            lab.engine.control.call(lambda name=taken: machine.add_backend(name))
    with pytest.raises(QMPError, match="node-name=drive is conflicting with a device id"):
        lab.node("drive")
    lab.add("ide-cd", "cd", drive="drive")
    with pytest.raises(QMPError, match="Drive 'drive' is already in use by another device"):
        lab.add("floppy", "f", drive="drive")
    lab.do("eject", device="drive")
    assert lab.wait_event("DEVICE_TRAY_MOVED") == {"device": "drive", "id": "cd", "tray-open": True}


def test_a_guest_works_on_a_device_until_it_is_told_to_stop(lab: Lab) -> None:
    lab.node("n")
    lab.add("virtio-blk", "v", drive="n")
    lab.do("x-blockmon-guest-add", id="g", device="v", iops=10000)
    deadline = time.monotonic() + TIMEOUT
    while not lab.stats(PATH)["rd_operations"] and time.monotonic() < deadline:
        pass
    assert lab.stats(PATH)["rd_operations"]
    lab.do("x-blockmon-guest-del", id="g")
    assert lab.info(PATH)["inserted"]["node-name"] == "n"
    with pytest.raises(QMPError, match="Device 'g' not found"):
        lab.do("x-blockmon-guest-del", id="g")


def test_a_guest_goes_with_its_device(lab: Lab) -> None:
    lab.node("n")
    lab.do("x-blockmon-guest-add", id="g", node_name="n", iops=10000)
    (info,) = lab.do("query-block")
    assert (info["device"], info["qdev"]) == ("g", "/machine/peripheral/g/virtio-backend")
    lab.do("device_del", id="g")
    lab.wait_event("DEVICE_DELETED")
    assert lab.do("query-block") == []
    assert lab.engine.guests == {}


def test_a_guest_that_only_reads_leaves_the_writing_to_others(lab: Lab) -> None:
    lab.node("n")
    lab.do("x-blockmon-guest-add", id="g", node_name="n", write_percent=0)
    (edge,) = lab.do("x-debug-query-block-graph")["edges"]
    assert edge["perm"] == ["consistent-read"]
    lab.do("x-blockmon-guest-del", id="g")
    assert lab.do("query-block") == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"id": "n", "node_name": "n"}, "Duplicate or empty"),
        ({"id": "", "node_name": "n"}, "Duplicate or empty"),
        ({"id": "g"}, "Need exactly one"),
        ({"id": "g", "node_name": "n", "device": "v"}, "Need exactly one"),
        ({"id": "g", "node_name": "nope"}, "Failed to find node"),
        ({"id": "g", "device": "nope"}, "Device 'nope' not found"),
        ({"id": "g", "node_name": "n", "iops": 0}, "'iops'"),
        ({"id": "v", "node_name": "n"}, "Duplicate device ID 'v'"),
    ],
)
def test_guests_that_cannot_be(lab: Lab, arguments: dict[str, object], text: str) -> None:
    lab.node("n")
    lab.do("device_add", driver="virtio-scsi", id="v")
    with pytest.raises(QMPError, match=text):
        lab.do("x-blockmon-guest-add", **arguments)
    assert lab.do("query-block") == []


def test_single_requests(lab: Lab) -> None:
    lab.node("n")
    lab.add("virtio-blk", "v", drive="n")
    ask = "x-blockmon-guest-request"
    lab.do(ask, device="v", operation="write", offset=512, pattern=7)
    lab.do(ask, device="v", operation="read", pattern=0)
    lab.do(ask, device="v", operation="flush")
    lab.do(ask, device="v", operation="discard", length=4096)
    lab.do(ask, device="v", operation="write-zeroes", length=4096)
    with pytest.raises(QMPError, match="Pattern verification failed at offset 0, 512 bytes"):
        lab.do(ask, device="v", operation="read", pattern=1)
    with pytest.raises(QMPError, match="read failed: Input/output error"):
        lab.do(ask, device="v", operation="read", offset=MIB)
    stats = lab.stats(PATH)
    assert (stats["wr_operations"], stats["rd_operations"], stats["invalid_rd_operations"]) == (2, 2, 1)


def test_models_by_name_and_alias() -> None:
    assert find_model("virtio-blk") is MODELS["virtio-blk-pci"]
    assert find_model("scsi-disk") is None
    assert find_model("") is None
    assert 'name "scsi-cd", bus SCSI, desc "virtual SCSI CD-ROM"\n' in table_text()

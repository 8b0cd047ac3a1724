"""host_cdrom on a device that is no drive; calls for the drive itself are watched, for none is at hand."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.protocol.host_cdrom import HostCdromDriver
from engine.errors import GenericError
from engine.graph.node import Node
from tests.graphs import Bench


class Drive:
    """Stands for the kernel's side of a drive."""

    def __init__(self) -> None:
        self.inserted = True
        self.calls: list[tuple[int, int]] = []
        self.fails = False

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        if request == 0x5326:
            assert argument == 0x7FFFFFFF
            return 4 if self.inserted else 2
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")
        self.calls.append((request, argument))
        return 0


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Drive:
    found = Drive()
    monkeypatch.setattr(fcntl, "ioctl", found.ioctl)
    return found


def opened(bench: Bench, **options: Any) -> tuple[Node, HostCdromDriver]:
    given: dict[str, Any] = {"filename": "/dev/zero", "read_only": True, "locking": "off"}
    node = bench.add(driver="host_cdrom", node_name="cd", **(given | options))
    assert isinstance(node.driver, HostCdromDriver)
    return node, node.driver


def test_requests_need_a_medium(bench: Bench, drive: Drive) -> None:
    _, driver = opened(bench)
    buffer = bytearray(b"?" * 512)
    driver.read(0, memoryview(buffer))
    assert not any(buffer)
    drive.inserted = False
    assert not driver.is_inserted()
    with pytest.raises(OSError, match="No medium found"):
        driver.read(0, memoryview(buffer))


def test_a_device_that_is_no_drive_has_no_medium(bench: Bench) -> None:
    _, driver = opened(bench)
    assert not driver.is_inserted()
    with pytest.raises(GenericError, match="Could not open the tray of '/dev/zero': Inappropriate ioctl for device"):
        driver.eject(True)


def test_tray_and_door(bench: Bench, drive: Drive) -> None:
    _, driver = opened(bench)
    driver.lock_medium(True)
    driver.lock_medium(False)
    driver.eject(True)
    driver.eject(False)
    assert drive.calls == [(0x5329, 1), (0x5329, 0), (0x5309, 0), (0x5319, 0)]
    drive.fails = True
    with pytest.raises(GenericError, match="Could not lock the door of '/dev/zero': Input/output error"):
        driver.lock_medium(True)
    with pytest.raises(GenericError, match="Could not close the tray"):
        driver.eject(False)


def test_only_devices(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(GenericError, match="to be either a character or block device"):
        opened(bench, filename=bench.file("regular", bytes(512)))
    with pytest.raises(GenericError, match="The 'host_cdrom' block driver requires a file name"):
        opened(bench, filename="")
    with pytest.raises(GenericError, match="No such file or directory"):
        opened(bench, filename=str(tmp_path / "missing"))

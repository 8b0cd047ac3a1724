"""A simulated guest: a workload on a disk, for demonstrations, tests and measuring."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.devices.bus import Device
    from engine.devices.disk import Disk
    from engine.devices.machine import Machine

log = logging.getLogger("engine.devices")

_SLICE = 0.05
"""Seconds of work a guest does between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a guest does.

    iops: requests a second. write_percent: share of writes. request_size: bytes; offsets are multiples of it. span:
    bytes at the start of the disk that are touched, 0 for all. seed: of the random numbers.
    """

    iops: int = 100
    write_percent: int = 50
    request_size: int = 4096
    span: int = 0
    seed: int = 0


class Guest:
    """A thread that does requests on a disk until the disk goes. Control plane: __init__, stop."""

    def __init__(self, machine: Machine, name: str, disk: Disk, workload: Workload, *, owned: Device | None) -> None:
        """owned: the device that goes with the guest, None when it stays."""
        self.name = name
        self.disk = disk
        self.workload = workload
        self.error: str | None = None
        self._machine = machine
        self._owned = owned
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"guest {name}", daemon=True)
        disk.on_close.append(self._disk_goes)
        self._thread.start()

    def stop(self) -> None:
        """End the guest, with its own device if it has one; a request in flight is waited for."""
        self._stop.set()
        if self._owned is not None and not self.disk.closed:
            self._machine.remove(self._owned)
            return
        # Nobody waits for the thread: its request may be held up for as long as the guests are stopped.
        if self._disk_goes in self.disk.on_close:
            self.disk.on_close.remove(self._disk_goes)

    def _disk_goes(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._machine.engine.guests.get(self.name) is self:
            del self._machine.engine.guests[self.name]

    def _run(self) -> None:
        work = self.workload
        rng = random.Random(work.seed)
        size = work.request_size
        buffer = memoryview(bytearray(size))
        per_slice = work.iops * _SLICE
        owed = 0.0
        due = time.monotonic()
        while not self._stop.is_set():
            owed += per_slice
            while owed >= 1 and not self._stop.is_set():
                owed -= 1
                try:
                    length = self.disk.length
                    blocks = min(work.span or length, length) // size
                    if not blocks:
                        break
                    offset = rng.randrange(blocks) * size
                    if rng.randrange(100) < work.write_percent:
                        self.disk.write(offset, memoryview(rng.randbytes(size)))
                    else:
                        self.disk.read(offset, buffer)
                except OSError as exc:
                    if self._stop.is_set() or exc.errno == errno.ESHUTDOWN:
                        return
                    if self.error is None:
                        log.warning("guest %s: %s", self.name, exc)
                    self.error = str(exc)
            due += _SLICE
            now = time.monotonic()
            if due < now:
                due = now
            self._stop.wait(due - now)

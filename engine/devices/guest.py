"""A simulated guest: a disk with a workload of its own, for demonstrations, tests and measuring."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from engine.graph.backend import BlockBackend
from engine.graph.graph import Graph
from engine.graph.node import Node
from engine.graph.permissions import Perm

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
    """A device on a node and the thread that plays its guest. Control plane: __init__, stop."""

    def __init__(self, graph: Graph, name: str, node: Node, workload: Workload) -> None:
        """Errors: GenericError (permissions)."""
        self.graph = graph
        self.workload = workload
        self.error: str | None = None
        perm = Perm.CONSISTENT_READ | (Perm.WRITE if workload.write_percent else Perm.NONE)
        self.backend: BlockBackend = graph.add_backend(
            "device", name, node, perm, Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
        )
        self.backend.model = "simulated guest"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"guest {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the guest and take its device away; a request in flight is waited for."""
        self._stop.set()
        # A drain that lasts (a pivot waiting to be finalized) would keep the thread, and us with it, for ever.
        self.backend.door.retire()
        self._thread.join()
        self.graph.remove_backend(self.backend)

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
                span = min(work.span or self.backend.length, self.backend.length)
                blocks = span // size
                if not blocks:
                    break
                offset = rng.randrange(blocks) * size
                try:
                    if rng.randrange(100) < work.write_percent:
                        self.backend.write(offset, memoryview(rng.randbytes(size)))
                    else:
                        self.backend.read(offset, buffer)
                except OSError as exc:
                    if self._stop.is_set():
                        return
                    if self.error is None:
                        log.warning("guest %s: %s", self.backend.name, exc)
                    self.error = str(exc)
            due += _SLICE
            now = time.monotonic()
            if due < now:
                due = now
            self._stop.wait(due - now)

"""An engine that serves one raw image by NBD."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from tests.engine.exports.client import Client

SIZE = 4 << 20


class Serving:
    """An engine with the NBD server, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "sock"
        self.engine = Engine()
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.engine.subscribe(self._take)

    def _take(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_event(self, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(event["event"] == name for event in self.events), 20), name

    def do(self, command: str, **arguments: Any) -> Any:
        """Run a command; _ stands for - in arguments' names."""
        return self.engine.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def start(self, **options: Any) -> None:
        self.do("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.path)}}, **options)

    def raw(self, name: str, content: bytes | None = None, **options: Any) -> Path:
        """A raw node over a new file."""
        path = self.folder / f"{name}.raw"
        with path.open("wb") as file:
            file.write(content or b"")
            if content is None:
                file.truncate(SIZE)
        self.do("blockdev-add", driver="raw", node_name=name, file={"driver": "file", "filename": str(path)}, **options)
        return path

    def export(self, node: str, name: str = "", **options: Any) -> None:
        self.do("block-export-add", **({"type": "nbd", "id": f"e-{node}", "node_name": node, "name": name} | options))

    def connect(self, flags: int = 3) -> Client:
        return Client(self.path, flags)

    def threads(self) -> list[threading.Thread]:
        """The threads of clients that are alive."""
        return [thread for thread in threading.enumerate() if thread.name in ("nbd client", "nbd request")]

    def wait_no_threads(self) -> None:
        end = time.monotonic() + 20
        while threads := self.threads():
            with contextlib.suppress(RuntimeError):  # one is there that has not begun yet
                threads[0].join(max(end - time.monotonic(), 0))
                assert not threads[0].is_alive()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """The engine with the node "disk" (raw, 4 MiB of holes), exported for writing under the empty name."""
    serving = Serving(tmp_path)
    try:
        serving.start()
        serving.raw("disk", discard="unmap")
        serving.export("disk", writable=True, allocation_depth=True)
        yield serving
    finally:
        serving.engine.close()
        serving.wait_no_threads()

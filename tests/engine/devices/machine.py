"""An engine with devices, for tests."""

import threading
import time
from collections.abc import Callable
from typing import Any

from engine.devices.disk import Disk
from engine.engine import Engine

TIMEOUT = 20.0
MIB = 1 << 20


def wait_for(condition: Callable[[], bool]) -> None:
    """Until *condition* holds; asked again and again."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline


class Lab:
    """An engine, its events, and requests that run in threads of their own."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.engine.subscribe(self._take)

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"].startswith("X_"):
            return
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def do(self, command: str, **arguments: Any) -> Any:
        return self.engine.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def add(self, driver: str, id: str, **properties: Any) -> Disk:
        """A device; its disk. *properties* by their names, dashes as such."""
        self.engine.execute("device_add", {"driver": driver, "id": id, **properties})
        return self.disk(id)

    def disk(self, id: str) -> Disk:
        return self.engine.control.call(lambda: self.engine.machine.disk(id))

    def node(self, name: str, size: int = MIB, **options: Any) -> None:
        self.do("blockdev-add", driver="null-co", node_name=name, size=size, read_zeroes=True, **options)

    def failing(self, name: str, iotype: str, errno: int, *, once: bool = True) -> None:
        """A node whose requests of one kind fail, the first one or all of them."""
        self.node(f"{name}-image")
        rule = {"event": "none", "iotype": iotype, "errno": errno, "once": once}
        image = f"{name}-image"
        self.do("blockdev-add", driver="blkdebug", node_name=name, image=image, discard="unmap", inject_error=[rule])

    def wait_event(self, name: str) -> dict[str, Any]:
        """The data of the first event of this name, waited for and taken out."""

        def find() -> dict[str, Any] | None:
            return next((event for event in self.events if event["event"] == name), None)

        with self._changed:
            assert self._changed.wait_for(lambda: find() is not None, TIMEOUT), (name, self.events)
            found = find()
            assert found is not None
            self.events.remove(found)
        return found.get("data", {})

    def names(self) -> list[str]:
        """The names of the events so far; nothing is on its way after this."""
        self.do("query-version")
        return [event["event"] for event in self.events]

    def info(self, qdev: str) -> dict[str, Any]:
        return next(item for item in self.do("query-block") if item["qdev"] == qdev)

    def stats(self, qdev: str) -> dict[str, Any]:
        return next(item["stats"] for item in self.do("query-blockstats") if item["qdev"] == qdev)

    def close(self) -> None:
        self.engine.close()


class Running:
    """A call that runs in a thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as exc:
            self.error = exc

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def finish(self) -> None:
        """Wait for its end, and raise what it raised."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

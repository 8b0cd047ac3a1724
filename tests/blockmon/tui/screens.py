"""Starting the screen on the fake server, and reading what is on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from rich.cells import cell_len
from textual.pilot import Pilot

from blockmon.options import CommonOptions
from blockmon.repl.session import ReplSession
from blockmon.tui.app import BlockmonApp
from tests.blockmon.tui.fake import GIB, MIB, FakeBackend, block_job, busy_graph, event

READS = (3, 8, 20, 31, 40, 44, 20, 10, 7, 30, 41, 44)


def busy_backend() -> FakeBackend:
    """A server with a graph and jobs in the states that look different."""
    return FakeBackend(
        busy_graph(),
        [
            block_job("backup7", "backup", "pending", GIB, GIB, auto_finalize=False),
            block_job("commit1", "commit", "concluded", 3 * GIB, 20 * GIB, error="No space left on device"),
            block_job("mirror0", "mirror", "ready", 20 * GIB, 20 * GIB),
            block_job("stream0", "stream", "running", 12 * GIB, 20 * GIB),
        ],
    )


class FloodedBackend(FakeBackend):
    """A server that tells a thousand events a second and reads all the time."""

    title = "flooded"

    def __init__(self, graph: dict[str, Any]) -> None:
        super().__init__(graph, busy_backend().jobs)
        self._flood: asyncio.Task[None] | None = None
        self._count = 0

    async def start(self) -> None:
        await super().start()
        self._flood = asyncio.create_task(self._emit())

    async def close(self) -> None:
        if self._flood is not None:
            self._flood.cancel()
        await super().close()

    async def _emit(self) -> None:
        log = os.environ.get("BLOCKMON_TEST_LOG")  # a file as long as the number of events
        while True:
            await asyncio.sleep(0.02)
            for name in ("overlay2", "overlay2-file", "overlay1", "clone"):
                self.count_io(name, read=self._count * 4096 % 999983, written=4096)
            for job in self.jobs:
                job["offset"] = (job["offset"] + MIB) % job["len"]
            batch = range(self._count, self._count + 20)
            self._count = batch.stop
            self.emit(
                *(
                    event(
                        "BLOCK_IO_ERROR",
                        number / 1000,
                        device=f"disk-{number * 2654435761 % 10**16:016x}",
                        nospace=bool(number % 2),
                        operation="write",
                        action="report",
                        reason=f"{number * 40503 % 10**9:09d}",
                    )
                    for number in batch
                )
            )
            if log is not None:
                os.truncate(log, self._count)


def make_app(backend: FakeBackend, theme: str = "dark") -> BlockmonApp:
    """The screen on *backend*, with its clock."""
    session = ReplSession(backend, show_events=False, local_files=False)
    return BlockmonApp(backend, session, CommonOptions(theme=theme), clock=backend.clock)


def lines(app: BlockmonApp) -> list[str]:
    """The screen's text, a line each."""
    strips = app.screen_stack[0]._compositor.render_strips()
    return ["".join(segment.text for segment in strip).rstrip() for strip in strips]


def text(app: BlockmonApp) -> str:
    """The screen's text."""
    return "\n".join(lines(app))


def unwrapped(words: str) -> str:
    """Text without blanks and line breaks: what a long path wraps where it likes can be looked for in it."""
    return "".join(words.split())


def popup_text(app: BlockmonApp) -> str:
    """The text of what has opened over the screen."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def line_with(app: BlockmonApp, words: str) -> str:
    """The first line that holds *words*."""
    return next((line for line in lines(app) if words in line), "")


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    """Wait until *condition* holds; fails after five seconds, with the screen in the message."""
    for _ in range(500):
        await pilot.pause()
        if condition():
            return
        await asyncio.sleep(0.01)
    app = pilot.app
    raise AssertionError("never happened; the screen:\n" + (text(app) if isinstance(app, BlockmonApp) else ""))


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until the server's state and the prompt are on the screen."""
    app = pilot.app
    assert isinstance(app, BlockmonApp)
    await until(pilot, lambda: app.state.connected and (app.graph.rows or not app.backend.graph["nodes"]))  # type: ignore[attr-defined]
    await until(pilot, lambda: any("(qmp)" in line for line in lines(app)) or not app.repl.display)


async def go_on(pilot: Pilot[Any]) -> None:
    """Have what the server says now on the screen."""
    app = pilot.app
    assert isinstance(app, BlockmonApp)
    app.refresher.kick()
    await app.refresher.step()
    await pilot.pause()


async def twelve_busy_seconds(pilot: Pilot[Any]) -> None:
    """Let the guest read and the stream job get on, second by second, and a few events come."""
    app = pilot.app
    assert isinstance(app, BlockmonApp)
    backend = app.backend
    assert isinstance(backend, FakeBackend)
    await settled(pilot)
    for read in READS:
        backend.now += 1
        for name in ("overlay2", "overlay2-file"):
            backend.count_io(name, read=read * MIB, written=3 * MIB)
        backend.jobs[-1]["offset"] += 50 * MIB
        await go_on(pilot)
    backend.emit(
        event("JOB_STATUS_CHANGE", 1.123, id="stream0", status="running"),
        event("BLOCK_JOB_READY", 2.5, type="mirror", device="mirror0", len=20 * GIB, offset=20 * GIB, speed=0),
        event("BLOCK_JOB_ERROR", 3.75, device="commit1", operation="write", action="report"),
    )
    await go_on(pilot)


@asynccontextmanager
async def shown(
    backend: FakeBackend | None = None, *, size: tuple[int, int] = (80, 24), theme: str = "dark"
) -> AsyncIterator[tuple[BlockmonApp, Pilot[Any], FakeBackend]]:
    """The screen, up and settled."""
    backend = backend if backend is not None else busy_backend()
    app = make_app(backend, theme)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        yield app, pilot, backend
    await app.session.close()


def widest(app: BlockmonApp) -> int:
    """Cells of the widest line."""
    return max(cell_len(line) for line in lines(app))

"""What is asked of the server, when, and what the screen is told."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from blockmon.backend import CommandError
from blockmon.backend.connection import Connection, ConnectionLost, ConnectionState
from blockmon.model.graph import EdgeInfo, GraphModel, IoCounters, NodeInfo
from blockmon.model.refresher import Changes, Refresher, ScreenState
from tests.blockmon.tui.fake import MIB, FakeBackend, block_job, busy_graph, event


class Screen:
    """Takes what the refresher says."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.state = ScreenState()
        self.told: list[Changes] = []
        self.refresher = Refresher(backend, self.state, self.told.append, clock=backend.clock)
        self.refresher.listen()

    async def step(self, seconds: float = 0.0) -> float | None:
        """Let time pass and have one round done."""
        self.backend.now += seconds
        self.backend.executed.clear()
        self.told.clear()
        return await self.refresher.step()


async def started(backend: FakeBackend) -> Screen:
    screen = Screen(backend)
    await screen.refresher.begin()
    await screen.step()
    return screen


async def test_at_first_everything_is_asked_for() -> None:
    screen = await started(FakeBackend(busy_graph(), [block_job("j", "stream", "running", 1, 2)]))
    assert screen.state.connected
    assert "overlay2" in screen.state.graph.nodes
    assert [job.id for job in screen.state.jobs.listed()] == ["j"]
    assert screen.told[0].graph.shape
    assert screen.told[0].status


async def test_a_quiet_server_is_asked_once_a_second_and_the_screen_hears_nothing() -> None:
    screen = await started(FakeBackend(busy_graph()))
    assert await screen.step(0.1) == pytest.approx(0.9)
    assert screen.backend.executed == []
    assert await screen.step(0.9) == 1.0
    assert screen.backend.executed == ["x-blockmon-query-graph"]
    assert screen.told == []


async def test_an_empty_server_is_not_asked_at_all() -> None:
    screen = await started(FakeBackend())
    assert await screen.step() is None
    screen.backend.graph = busy_graph()
    screen.backend.change_graph()
    await screen.step()
    assert screen.told[0].graph.shape


async def test_a_running_job_is_followed_faster_than_the_graph() -> None:
    backend = FakeBackend(busy_graph(), [block_job("j", "stream", "running", 0, 100)])
    screen = await started(backend)
    backend.jobs[0]["offset"] = 50
    assert await screen.step(0.2) is not None
    assert backend.executed == ["query-jobs", "query-block-jobs"]
    assert screen.told == [Changes(jobs=True)]


async def test_a_paused_job_is_not_followed_fast() -> None:
    screen = await started(FakeBackend(busy_graph(), [block_job("j", "stream", "paused", 0, 100)]))
    await screen.step(0.5)
    assert screen.backend.executed == []


async def test_a_large_graph_that_changes_all_the_time_is_not_asked_for_all_the_time() -> None:
    backend = FakeBackend(busy_graph())
    ask = backend.execute

    async def slowly(command: str, arguments: object = None) -> object:
        if command == "x-blockmon-query-graph":
            backend.now += 0.3
        return await ask(command)

    screen = await started(backend)
    await screen.step(5)
    backend.execute = slowly  # type: ignore[method-assign, assignment]
    for _ in range(3):
        backend.change_graph()
        # Four times as long as it took, for everything else; then the change is asked for.
        wait = await screen.step()
        assert backend.executed == ["x-blockmon-query-graph"]
        backend.change_graph()
        assert wait == pytest.approx(1.2)
        assert await screen.step(0.5) == pytest.approx(0.7)
        assert backend.executed == []
        backend.now += 0.7


async def test_a_change_while_an_empty_graph_is_asked_for_is_not_lost() -> None:
    backend = FakeBackend()
    ask = backend.execute

    async def changed(command: str, arguments: object = None) -> object:
        answer = await ask(command)
        if command == "x-blockmon-query-graph" and not backend.graph["nodes"]:
            backend.graph = busy_graph()
            backend.change_graph()
        return answer

    backend.execute = changed  # type: ignore[method-assign, assignment]
    screen = await started(backend)
    await screen.step()
    assert "overlay2" in screen.state.graph.nodes


async def test_an_event_brings_the_questions_it_raises() -> None:
    backend = FakeBackend(busy_graph())
    screen = await started(backend)
    backend.emit(event("JOB_STATUS_CHANGE", id="j", status="created"))
    await screen.step()
    assert "query-jobs" in backend.executed
    assert "x-blockmon-query-graph" not in backend.executed
    assert screen.told[0].events
    backend.graph["nodes"].pop()
    backend.change_graph()
    await screen.step()
    assert backend.executed == ["x-blockmon-query-graph"]
    assert screen.told[0].graph.nodes_removed == ("scratch",)


async def test_a_flood_of_events_is_one_update() -> None:
    backend = FakeBackend(busy_graph())
    screen = await started(backend)
    for number in range(5000):
        backend.emit(event("BLOCK_JOB_ERROR", device="j", operation="read", action="ignore", number=number))
    await screen.step()
    assert len(screen.told) == 1
    assert len(screen.state.events) == 5000


async def test_io_shows_and_comes_to_rest() -> None:
    backend = FakeBackend(busy_graph())
    screen = await started(backend)
    backend.count_io("base-file", read=8 * MIB)
    backend.count_io("base", read=8 * MIB)
    await screen.step(1.0)
    assert screen.told[0].io == {"base-file", "base"}
    # Only what the bottom nodes did counts, or every layer would count it again.
    assert screen.state.total_rate().rd_bytes == 8 * MIB
    for _ in range(40):
        await screen.step(1.0)
    assert screen.told == []
    assert screen.state.total_rate().rd_bytes == 0


async def test_a_query_that_takes_long_is_not_asked_all_the_time() -> None:
    backend = FakeBackend(busy_graph())
    screen = await started(backend)
    execute = backend.execute

    async def slow(command: str, arguments: object = None) -> object:
        backend.now += 2.0
        return await execute(command)

    backend.execute = slow  # type: ignore[method-assign, assignment]
    await screen.step(1.0)
    wait = await screen.refresher.step()
    assert wait is not None
    assert wait >= 7.9


async def test_a_refused_query_is_said_and_tried_again() -> None:
    backend = FakeBackend(busy_graph())
    screen = await started(backend)
    execute = backend.execute

    async def refuse(command: str, arguments: object = None) -> object:
        raise CommandError("GenericError", "not now")

    backend.execute = refuse  # type: ignore[method-assign, assignment]
    await screen.step(1.0)
    assert screen.state.graph_error == "not now"
    assert screen.told[0].status
    await screen.step(1.0)
    assert screen.told == []
    backend.execute = execute  # type: ignore[method-assign]
    await screen.step(1.0)
    assert screen.state.graph_error is None
    assert screen.told[0].status


async def test_a_server_without_the_graph_query() -> None:
    backend = FakeBackend(busy_graph(), [block_job("j", "stream", "running", 0, 1)])
    for command in ("x-blockmon-query-graph", "query-named-block-nodes"):
        backend.commands.remove(command)
    screen = await started(backend)
    assert screen.state.graph_error is not None
    assert screen.state.jobs.active == 1
    await screen.step(10.0)
    assert "x-blockmon-query-graph" not in backend.executed


async def test_it_runs_until_the_server_is_lost() -> None:
    backend = FakeBackend(busy_graph())
    screen = Screen(backend)
    seen = asyncio.Event()
    screen.refresher._on_change = lambda changes: seen.set()
    task = asyncio.create_task(screen.refresher.run())
    await asyncio.wait_for(seen.wait(), 5)

    async def fail(command: str, arguments: object = None) -> object:
        raise ConnectionResetError("gone")

    backend.execute = fail  # type: ignore[method-assign, assignment]
    backend.change_graph()
    await asyncio.wait_for(task, 5)
    assert screen.state.lost == "gone"
    assert not screen.state.connected


class Wired(FakeBackend):
    """A backend with a connection that the test breaks and mends."""

    def __init__(self, graph: dict[str, Any], jobs: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(graph, jobs)
        self.connection = Connection()

    async def start(self) -> None:
        await super().start()
        self.connection.change(ConnectionState(True))

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if not self.connection.state.connected:
            raise ConnectionLost("not connected: gone", self.connection.watched)
        return await super().execute(command, arguments)


async def test_a_lost_connection_is_shown_and_everything_is_asked_anew_when_it_is_back() -> None:
    backend = Wired(busy_graph(), [block_job("j", "stream", "running", 0, 100)])
    screen = Screen(backend)
    changed = asyncio.Event()
    told: list[Changes] = []

    def take(changes: Changes) -> None:
        told.append(changes)
        changed.set()

    async def until(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                changed.clear()
                await changed.wait()

    screen.refresher._on_change = take
    await backend.start()
    task = asyncio.create_task(screen.refresher.run())
    state = screen.state
    await until(lambda: state.jobs.active)
    now = asyncio.get_running_loop().time()
    backend.connection.change(ConnectionState(False, "gone", now + 30))
    await until(lambda: state.retry_in)
    assert state.lost == "gone"
    assert state.retry_in == pytest.approx(30, abs=1)
    assert not state.connected
    assert "overlay2" in state.graph.nodes
    assert told[-1].status
    backend.jobs.clear()
    backend.graph["nodes"].pop()
    backend.graph["generation"] += 1
    backend.connection.change(ConnectionState(True))
    await until(lambda: "scratch" not in state.graph.nodes and not state.jobs.active)
    assert (state.lost, state.retry_in, state.connected) == (None, None, True)
    (job,) = state.jobs.listed()
    assert job.word == "gone"
    assert [state.events[number].name for number in range(len(state.events))] == [
        "CONNECTION_LOST",
        "CONNECTION_RESTORED",
    ]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not backend.connection.watched


async def test_a_command_of_ones_own_makes_another_servers_graph_stale() -> None:
    backend = Wired(busy_graph())
    backend.commands.remove("x-blockmon-query-graph")
    await backend.start()
    screen = await started(backend)
    await screen.step()
    assert "query-named-block-nodes" not in backend.executed
    backend.connection.commanded("blockdev-add")
    await screen.step()
    assert "query-named-block-nodes" in backend.executed


async def test_a_server_that_knows_only_block_jobs() -> None:
    backend = FakeBackend(busy_graph(), [block_job("j", "stream", "running", 1, 2)])
    backend.commands.remove("query-jobs")
    screen = await started(backend)
    (job,) = screen.state.jobs.listed()
    assert (job.id, job.status, job.current, job.total) == ("j", "running", 1, 2)
    # There is no event for one that begins.
    backend.jobs.clear()
    await screen.step(5.0)
    backend.jobs.append(block_job("k", "commit", "running", 1, 2))
    await screen.step(5.0)
    await screen.step(5.0)
    assert [job.id for job in screen.state.jobs.listed() if not job.gone] == ["k"]


def test_the_total_is_that_of_all_devices_where_only_devices_are_counted() -> None:
    nodes = {name: NodeInfo(name) for name in ("disk", "disk-file", "scratch")}
    edges = (EdgeInfo("disk", "node", "file", "disk-file"),)

    def graph(read: int) -> GraphModel:
        # scratch is a leaf, and a device stands on it.
        return GraphModel(1, nodes, {}, edges, {name: IoCounters(rd_bytes=read) for name in ("disk", "scratch")})

    state = ScreenState(graph=graph(1000))
    for second in range(6):
        state.graph = graph(1000 * second)
        state.io.update(state.graph.counters, float(second))
    assert state.io.rate("disk").rd_bytes == state.io.rate("scratch").rd_bytes > 0
    assert state.total_rate().rd_bytes == 2 * state.io.rate("disk").rd_bytes

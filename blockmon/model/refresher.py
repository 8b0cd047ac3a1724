"""
What keeps the model fresh: events tell what to ask for, and while something moves it is asked for at a bounded rate.

The screen hears of changes in batches, some ten a second at most, however many events arrive; and of nothing at all
while nothing changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockmon.backend import Backend, CommandError, Event
from blockmon.backend.connection import Connection, ConnectionLost, ConnectionState, connection_of
from blockmon.model.events import EventLog
from blockmon.model.graph import EdgeInfo, GraphDiff, GraphModel, diff
from blockmon.model.iohistory import STILL, IoHistory, IoRate
from blockmon.model.jobs import JobsModel
from blockmon.model.source import GraphSource, choose_source
from blockmon.model.standard import jobs_from_block_jobs

COALESCE = 0.1
"""Seconds between two updates of the screen at least."""
JOBS_MOVING = 0.2
GRAPH_MOVING = 0.5
QUIET = 1.0
DUTY = 4.0
"""A query is not repeated before this many times the time it took, so that a large graph does not eat the machine."""


_NOTICES = "X_BLOCKMON_"
_TRAYS = frozenset({"DEVICE_TRAY_MOVED", "DEVICE_DELETED"})


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What query-block tells of a device that the graph does not. *tray_open* is None for one without a tray."""

    removable: bool = False
    tray_open: bool | None = None
    inserted: str | None = None
    """The node that is in it."""
    qdev: str | None = None
    """Its QOM path or id, which is what commands want for `id`; None for a drive without a guest device."""


@dataclass(frozen=True, slots=True)
class BitmapState:
    """A dirty bitmap, as far as it decides what can be done to it."""

    name: str
    recording: bool = True
    busy: bool = False
    inconsistent: bool = False


@dataclass
class ScreenState:
    """Everything that the screen shows of a server."""

    title: str = ""
    connected: bool = False
    commands: frozenset[str] = frozenset()
    graph: GraphModel = field(default_factory=GraphModel)
    jobs: JobsModel = field(default_factory=JobsModel)
    events: EventLog = field(default_factory=EventLog)
    io: IoHistory = field(default_factory=IoHistory)
    devices: Mapping[str, DeviceState] = field(default_factory=dict)
    """By the names and the ids that query-block has for a device."""
    bitmaps: Mapping[str, tuple[BitmapState, ...]] = field(default_factory=dict)
    """The dirty bitmaps on each node, where they have been asked for."""
    graph_known: bool = False
    """True once the server has told its graph, or that it cannot."""
    graph_error: str | None = None
    """Why there is no graph to show, or no fresh one."""
    lost: str | None = None
    """Why the server does not answer any more. What was learned before is kept, and may be out of date."""
    unanswered: float | None = None
    """Since when (Unix time) a server that is connected leaves a question unanswered; None while it answers."""
    retry_in: float | None = None
    """Seconds to the next attempt to get it back; 0 while one is under way, None where there will be none."""
    _total: tuple[tuple[EdgeInfo, ...], int, IoRate] | None = field(default=None, repr=False, compare=False)

    def total_rate(self) -> IoRate:
        """What the bottom nodes of the graph read and write a second, all together."""
        known, edges, version = self._total, self.graph.edges, self.io.version
        if known is None or known[0] is not edges or known[1] != version:
            # QEMU itself only counts what guests do, at the nodes their devices stand on, some of which may be leaves.
            everywhere = len(self.graph.counters) >= len(self.graph.nodes)
            counted = self.graph.leaves if everywhere else tuple(self.graph.counters)
            rates = [rate for name in counted if (rate := self.io.rate(name)) is not STILL]
            total = IoRate(
                sum(rate.rd_bytes for rate in rates),
                sum(rate.wr_bytes for rate in rates),
                sum(rate.rd_ops for rate in rates),
                sum(rate.wr_ops for rate in rates),
            )
            known = self._total = edges, version, total
        return known[2]


@dataclass(frozen=True)
class Changes:
    """What an update of the screen has to look at."""

    graph: GraphDiff = field(default_factory=GraphDiff)
    io: frozenset[str] = frozenset()
    jobs: bool = False
    events: bool = False
    status: bool = False
    """Title, connection, commands or errors."""

    def __bool__(self) -> bool:
        return bool(self.graph.rows or self.io or self.jobs or self.events or self.status)


class Refresher:
    """Keeps a `ScreenState` fresh from a started backend and tells *on_change* what changed."""

    def __init__(
        self,
        backend: Backend,
        state: ScreenState,
        on_change: Callable[[Changes], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        coalesce: float = COALESCE,
    ) -> None:
        self._coalesce = coalesce
        self.backend = backend
        self.state = state
        self._on_change = on_change
        self._clock = clock
        self._wake = asyncio.Event()
        self._source: GraphSource | None = None
        self._graph_due: float | None = 0.0
        self._graph_stale = False
        """Whether something has told of a change since the graph was asked for."""
        self._graph_rest = 0.0
        """When the graph may be asked for again."""
        self._jobs_due: float | None = 0.0
        self._devices_stale = True
        self._jobs_changed = False
        self._events_changed = False
        self._status_changed = True
        self._ends: list[Callable[[], object]] = []
        self._connection: Connection | None = connection_of(backend)
        self._connected = False

    def listen(self) -> None:
        """Take in events from now on. The backend need not be started yet, and nothing that it tells is missed."""
        if self._ends:
            return
        self._ends.append(self.backend.subscribe(self.on_events))
        if (connection := self._connection) is not None:
            self._connected = connection.state.connected
            self._ends += [connection.watch(self._connection_changed), connection.on_command(self._commanded)]

    async def run(self) -> None:
        """Follow the server until cancelled, or until it is lost, which `ScreenState.lost` then tells."""
        self.listen()
        try:
            while True:
                try:
                    await self.begin()
                    await self._follow()
                except ConnectionLost as error:
                    if not error.retrying:
                        raise
                await self._come_back()
        except (OSError, EOFError, RuntimeError) as error:
            self.state.lost = str(error) or type(error).__name__
            self.state.retry_in = None
            self.state.connected = False
            self._on_change(Changes(status=True))
        finally:
            while self._ends:
                self._ends.pop()()

    async def _follow(self) -> None:
        """Keep the model fresh until the connection is lost and is being tried again."""
        while self._connection is None or self._connection.state.connected:
            started = self._clock()
            wait = await self.step()
            await self._woken(wait)
            pause = started + self._coalesce - self._clock()
            if pause > 0:
                await asyncio.sleep(pause)

    async def _woken(self, seconds: float | None) -> None:
        """Wait until there is something to do, at most so long."""
        # Not wait_for(): Python 3.11's forgets that it was cancelled when the event comes at the same time.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # A connection that is lost and comes back.

    def _connection_changed(self, connection: ConnectionState) -> None:
        state = self.state
        if connection.connected != self._connected:
            if self._connected or state.lost is not None:
                # No event of the server's: it marks the gap in the log that some may have fallen into.
                name = "CONNECTION_RESTORED" if connection.connected else "CONNECTION_LOST"
                data = {} if connection.connected else {"reason": connection.reason}
                seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
                stamp = {"seconds": seconds, "microseconds": microseconds}
                state.events.extend([{"timestamp": stamp, "event": name, "data": data}])
                self._events_changed = True
            self._connected = connection.connected
            if not connection.connected:
                state.jobs.lost_sight()
                self._jobs_changed = True
        state.connected = connection.connected
        state.lost = None if connection.connected else connection.reason
        if state.unanswered != connection.unanswered:
            # At once: whatever asks for what is shown waits for its answer itself.
            state.unanswered = connection.unanswered
            self._on_change(Changes(status=True))
        self._wake.set()

    async def _come_back(self) -> None:
        """Show how long it is to the next attempt, until there is a connection again; then everything is asked anew."""
        connection = self._connection
        assert connection is not None
        await asyncio.sleep(COALESCE)  # however often it is lost at once, others have their turn
        while not connection.state.connected:
            at = connection.state.retry_at
            left = 0.0 if at is None else max(0.0, at - asyncio.get_running_loop().time())
            self.state.retry_in = left
            self._on_change(Changes(jobs=self._jobs_changed, events=self._events_changed, status=True))
            self._jobs_changed = self._events_changed = False
            self._wake.clear()
            await self._woken(1.0)
        self.state.retry_in = None
        self._status_changed = True
        self.kick()

    def _commanded(self, command: str) -> None:
        """A command of our own was carried out: other servers than our engine announce few changes."""
        if self._source is not None and not self._source.announced:
            self._source.touch()
            self.kick()

    async def begin(self) -> None:
        """Learn what the server can do."""
        state = self.state
        state.title = self.backend.title
        reply = await self.backend.execute("query-commands")
        state.commands = frozenset(str(item["name"]) for item in reply)
        state.connected = True
        self._source = choose_source(state.commands, self._clock)
        if self._source is None:
            state.graph_error = "this server has no command that tells its block graph"
            state.graph_known = True
            self._graph_due = None

    def kick(self) -> None:
        """Ask for everything again soon."""
        self._devices_stale = True
        self._graph_due = 0.0 if self._source is not None else None
        self._graph_stale = True
        self._jobs_due = 0.0
        self._wake.set()

    def on_events(self, events: Sequence[Event]) -> None:
        """Log a batch of events, and note what they make worth asking for."""
        state, source = self.state, self._source
        # An engine's own notices drive the screen; they are no news for people.
        news = [event for event in events if not str(event.get("event")).startswith(_NOTICES)]
        if news:
            state.events.extend(news)
            self._events_changed = True
        for event in events:
            if state.jobs.on_event(event):
                self._jobs_changed = True
                self._jobs_due = 0.0
            if source is not None and source.is_stale_after(event):
                source.touch()
                self._graph_stale = True
                # At once, but for a large graph that was asked for a moment ago.
                self._graph_due = (
                    self._graph_rest if self._graph_due is None else min(self._graph_due, self._graph_rest)
                )
            if event.get("event") in _TRAYS:
                self._devices_stale = True
        self._wake.set()

    async def step(self) -> float | None:
        """Ask for what is due, tell the screen, and return the seconds until more is due; None: not before an event."""
        self._wake.clear()
        state = self.state
        graph_diff, io_changed = GraphDiff(), frozenset[str]()
        if self._jobs_due is not None and self._clock() >= self._jobs_due:
            await self._ask_jobs()
        if self._graph_due is not None and self._clock() >= self._graph_due:
            graph_diff, io_changed = await self._ask_graph()
            self._devices_stale |= graph_diff.shape
        if self._devices_stale:
            await self._ask_devices()
        changes = Changes(graph_diff, io_changed, self._jobs_changed, self._events_changed, self._status_changed)
        self._jobs_changed = self._events_changed = self._status_changed = False
        if changes:
            self._on_change(changes)
        if not state.graph.nodes and not state.graph_error and self._source is not None and self._source.announced:
            # Without nodes there is nothing that could move unannounced.
            if not self._graph_stale:
                self._graph_due = None
        due = [moment for moment in (self._graph_due, self._jobs_due) if moment is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    async def _ask_jobs(self) -> None:
        jobs = self.state.jobs
        started, since = self._clock(), jobs.moment()
        self._jobs_due = None
        try:
            if "query-jobs" in self.state.commands:
                listed = await self.backend.execute("query-jobs")
                block_jobs = await self.backend.execute("query-block-jobs") if listed else []
            else:
                block_jobs = await self.backend.execute("query-block-jobs")
                listed = jobs_from_block_jobs(block_jobs)
        except CommandError:
            return
        now = self._clock()
        if jobs.update(listed, block_jobs, now, since):
            self._jobs_changed = True
        if self._jobs_due is None and jobs.active:
            self._jobs_due = now + max(JOBS_MOVING if jobs.moving else QUIET, DUTY * (now - started))

    async def _ask_devices(self) -> None:
        """Ask for trays and media, where there are devices."""
        state = self.state
        self._devices_stale = False
        if "query-block" not in state.commands or not any(p.kind == "device" for p in state.graph.parents.values()):
            return
        try:
            listed = await self.backend.execute("query-block")
        except CommandError:
            return
        found: dict[str, DeviceState] = {}
        for item in listed:
            device = _device_state(item)
            for name in (item.get("device"), *_qdev_names(item.get("qdev"))):
                if name:
                    found[str(name)] = device
        if found != state.devices:
            state.devices = found
            self._status_changed = True

    async def _ask_graph(self) -> tuple[GraphDiff, frozenset[str]]:
        state, source = self.state, self._source
        started = self._clock()
        self._graph_due, self._graph_stale = None, False
        if source is None:
            return GraphDiff(), frozenset()
        try:
            graph = await source.fetch(self.backend)
        except CommandError as error:
            if state.graph_error != error.desc:
                state.graph_error = error.desc
                self._status_changed = True
            if self._graph_due is None:
                self._graph_due = started + QUIET
            return GraphDiff(), frozenset()
        if not state.graph_known:
            state.graph_known = self._status_changed = True
        if state.graph_error != source.problem:
            state.graph_error = source.problem
            self._status_changed = True
        now = self._clock()
        self._graph_rest = now + DUTY * (now - started)
        if self._graph_due is not None:
            self._graph_due = max(self._graph_due, self._graph_rest)
        await asyncio.sleep(0)  # keys come first; with thousands of nodes each of these steps takes a while
        changed = diff(state.graph, graph)
        if changed:
            state.graph = graph
        io_changed = state.io.update(graph.counters, now)
        if self._graph_due is None:
            moving = state.io.moving or state.jobs.moving
            self._graph_due = max(now + (GRAPH_MOVING if moving else QUIET), self._graph_rest)
        if self._jobs_due is None and "query-jobs" not in state.commands:
            self._jobs_due = self._graph_due  # such an old server has no event for a job that begins
        return changed, frozenset(io_changed)


def _device_state(item: Mapping[str, Any]) -> DeviceState:
    medium = item.get("inserted")
    return DeviceState(
        removable=bool(item.get("removable", False)),
        tray_open=item.get("tray_open"),
        inserted=str(medium.get("node-name") or medium.get("file") or "") if medium else None,
        qdev=str(item["qdev"]) if item.get("qdev") else None,
    )


def _qdev_names(path: object) -> tuple[str, ...]:
    """A device's QOM path, and its id where that is part of it (``/machine/peripheral/ID/virtio-backend``)."""
    if not isinstance(path, str) or not path:
        return ()
    parts = path.split("/")
    given = parts[3] if path.startswith("/machine/peripheral/") and len(parts) > 3 else path
    return (path, given)

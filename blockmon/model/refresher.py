"""
What keeps the model fresh: events tell what to ask for, and while something moves it is asked for at a bounded rate.

The screen hears of changes in batches, some ten a second at most, however many events arrive; and of nothing at all
while nothing changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blockmon.backend import Backend, CommandError, Event
from blockmon.model.events import EventLog
from blockmon.model.graph import GraphDiff, GraphModel, diff
from blockmon.model.iohistory import IoHistory, IoRate
from blockmon.model.jobs import JobsModel
from blockmon.model.source import GraphSource, choose_source

COALESCE = 0.1
"""Seconds between two updates of the screen at least."""
JOBS_MOVING = 0.2
GRAPH_MOVING = 0.5
QUIET = 1.0
DUTY = 4.0
"""A query is not repeated before this many times the time it took, so that a large graph does not eat the machine."""


_NOTICES = "X_BLOCKMON_"


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
    graph_error: str | None = None
    """Why there is no graph to show, or no fresh one."""
    lost: str | None = None
    """Why the server does not answer any more."""

    def total_rate(self) -> IoRate:
        """What the bottom nodes of the graph read and write a second, all together."""
        rates = [self.io.rate(name) for name in self.graph.leaves()]
        return IoRate(
            sum(rate.rd_bytes for rate in rates),
            sum(rate.wr_bytes for rate in rates),
            sum(rate.rd_ops for rate in rates),
            sum(rate.wr_ops for rate in rates),
        )


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
    ) -> None:
        self.backend = backend
        self.state = state
        self._on_change = on_change
        self._clock = clock
        self._wake = asyncio.Event()
        self._source: GraphSource | None = None
        self._graph_due: float | None = 0.0
        self._jobs_due: float | None = 0.0
        self._jobs_changed = False
        self._events_changed = False
        self._status_changed = True
        self._unsubscribe: Callable[[], None] | None = None

    def listen(self) -> None:
        """Take in events from now on. The backend need not be started yet, and nothing that it tells is missed."""
        if self._unsubscribe is None:
            self._unsubscribe = self.backend.subscribe(self.on_events)

    async def run(self) -> None:
        """Follow the server until cancelled, or until it is lost, which `ScreenState.lost` then tells."""
        self.listen()
        try:
            await self.begin()
            while True:
                started = self._clock()
                wait = await self.step()
                try:
                    await asyncio.wait_for(self._wake.wait(), wait)
                except TimeoutError:
                    pass
                pause = started + COALESCE - self._clock()
                if pause > 0:
                    await asyncio.sleep(pause)
        except (OSError, EOFError, RuntimeError) as error:
            self.state.lost = str(error) or type(error).__name__
            self.state.connected = False
            self._on_change(Changes(status=True))
        finally:
            if self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None

    async def begin(self) -> None:
        """Learn what the server can do."""
        state = self.state
        state.title = self.backend.title
        reply = await self.backend.execute("query-commands")
        state.commands = frozenset(str(item["name"]) for item in reply)
        state.connected = True
        self._source = choose_source(state.commands)
        if self._source is None:
            state.graph_error = "this server has no command that tells its block graph"
            self._graph_due = None

    def kick(self) -> None:
        """Ask for everything again soon."""
        self._graph_due = 0.0 if self._source is not None else None
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
                self._graph_due = 0.0
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
        changes = Changes(graph_diff, io_changed, self._jobs_changed, self._events_changed, self._status_changed)
        self._jobs_changed = self._events_changed = self._status_changed = False
        if changes:
            self._on_change(changes)
        if not state.graph.nodes and not state.graph_error:
            # Without nodes there is nothing that could move unannounced.
            if self._graph_due:
                self._graph_due = None
        due = [moment for moment in (self._graph_due, self._jobs_due) if moment is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    async def _ask_jobs(self) -> None:
        jobs = self.state.jobs
        started, since = self._clock(), jobs.moment()
        self._jobs_due = None
        try:
            listed = await self.backend.execute("query-jobs")
            block_jobs = await self.backend.execute("query-block-jobs") if listed else []
        except CommandError:
            return
        now = self._clock()
        if jobs.update(listed, block_jobs, now, since):
            self._jobs_changed = True
        if self._jobs_due is None and jobs.active:
            self._jobs_due = now + max(JOBS_MOVING if jobs.moving else QUIET, DUTY * (now - started))

    async def _ask_graph(self) -> tuple[GraphDiff, frozenset[str]]:
        state, source = self.state, self._source
        started = self._clock()
        self._graph_due = None
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
        if state.graph_error is not None:
            state.graph_error = None
            self._status_changed = True
        now = self._clock()
        changed = diff(state.graph, graph)
        if changed:
            state.graph = graph
        io_changed = state.io.update(graph.counters, now)
        if self._graph_due is None:
            moving = state.io.moving or state.jobs.moving
            self._graph_due = now + max(GRAPH_MOVING if moving else QUIET, DUTY * (now - started))
        return changed, frozenset(io_changed)

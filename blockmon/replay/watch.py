"""What happened while a script runs: the events since its last command, and the states each job went through.

Waits look at what was recorded first, so that nothing is missed between a command and the wait for what it causes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]

INTERNAL = frozenset({"X_BLOCKMON_GRAPH_CHANGE"})
"""Events that only keep a front end's picture of the graph fresh: they tell a person nothing."""

MAX_EVENTS = 100_000  # kept since the last command; older ones are forgotten


@dataclass(slots=True)
class JobHistory:
    """One job since it was created. `statuses` are (the event's number, status)."""

    statuses: list[tuple[int, str]] = field(default_factory=list)
    error: str | None = None
    cancelled: bool = False

    def names(self, since: int = 0) -> list[str]:
        """The statuses it went through from event *since* on."""
        return [status for number, status in self.statuses if number >= since]

    @property
    def status(self) -> str | None:
        """The last one heard of; None when no event told about it."""
        return self.statuses[-1][1] if self.statuses else None


class Watch:
    """Records events; `feed` is the callback for Backend.subscribe."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobHistory] = {}
        self.mark = 0
        self._events: deque[tuple[int, Event]] = deque(maxlen=MAX_EVENTS)
        self._number = 0
        self._news = asyncio.Event()
        self._reported = 0
        self._lost: str | None = None

    def feed(self, events: Sequence[Event]) -> None:
        """Take events in, in their order."""
        for event in events:
            self._number += 1
            self._events.append((self._number, event))
            self._follow_job(event)
        self._news.set()

    def _follow_job(self, event: Event) -> None:
        name, data = event.get("event"), event.get("data") or {}
        if name == "JOB_STATUS_CHANGE":
            history = self.jobs.setdefault(data["id"], JobHistory())
            if data["status"] == "created":
                # Of an earlier job of this name nothing matters any more.
                history = self.jobs[data["id"]] = JobHistory()
            history.statuses.append((self._number, data["status"]))
        elif name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            history = self.jobs.setdefault(data["device"], JobHistory())
            history.error = data.get("error", history.error)
            history.cancelled = history.cancelled or name == "BLOCK_JOB_CANCELLED"

    def adopt_job(self, job: str, status: str) -> None:
        """Begin the history of a job that no event has told about with the *status* it is in."""
        history = self.jobs.setdefault(job, JobHistory())
        if not history.statuses:
            history.statuses.append((0, status))

    def command_begins(self) -> None:
        """From here on waits look: events heard before are forgotten."""
        self.mark = self._number + 1
        self._events.clear()

    def take(self, matches: Callable[[Event], bool]) -> Event | None:
        """Return the first recorded event that *matches*, and forget it, so that it satisfies one wait only."""
        for index, (_, event) in enumerate(self._events):
            if matches(event):
                del self._events[index]
                return event
        return None

    def has(self, matches: Callable[[Event], bool]) -> bool:
        """Whether an event that *matches* is recorded."""
        return any(matches(event) for _, event in self._events)

    def seen(self) -> list[str]:
        """The names of the events recorded since the last command, but for INTERNAL ones."""
        return [
            name for name in dict.fromkeys(str(event.get("event")) for _, event in self._events) if name not in INTERNAL
        ]

    def lose(self, reason: str) -> None:
        """Note that the server is gone: whoever waits for more than it has told waits in vain."""
        self._lost = reason
        self._news.set()

    async def news(self) -> None:
        """Wait until events arrive that `news` has not yet reported. Raises ConnectionError when none ever will."""
        await self._news.wait()
        if self._lost is None:
            self._news.clear()
        elif self._reported == self._number:
            raise ConnectionError(self._lost)
        self._reported = self._number

"""The event log: a ring of the last events with their times, and views of it that select by text."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from blockmon.model.format import clock_time, safe_text, size_short

CAPACITY = 100_000

_FIRST_MEMBERS = ("id", "device", "node-name", "reference", "status", "type")
_ERRORS = frozenset(
    {"BLOCK_JOB_ERROR", "BLOCK_IO_ERROR", "BLOCK_IMAGE_CORRUPTED", "QUORUM_FAILURE", "QUORUM_REPORT_BAD"}
)
_NOTABLE = frozenset({"BLOCK_JOB_READY", "BLOCK_JOB_PENDING", "BLOCK_JOB_CANCELLED", "BLOCK_WRITE_THRESHOLD"})
_DONE = frozenset({"BLOCK_JOB_COMPLETED"})


@dataclass(frozen=True)
class LoggedEvent:
    """An event with its running number."""

    number: int
    event: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The event's name."""
        return str(self.event.get("event", "?"))

    @property
    def time(self) -> float:
        """When it happened by the server's clock, in seconds since the epoch."""
        stamp = self.event.get("timestamp", {})
        return float(stamp.get("seconds", 0)) + float(stamp.get("microseconds", 0)) / 1e6

    @cached_property
    def clock(self) -> str:
        """Time of day for display."""
        return clock_time(self.time)

    @cached_property
    def severity(self) -> str:
        """One of error, notable, done, plain, and trivial for what only tells the screen to look again."""
        if self.name in _ERRORS or "error" in self.event.get("data", {}):
            return "error"
        if self.name in _NOTABLE:
            return "notable"
        if self.name.startswith("X_"):
            return "trivial"
        return "done" if self.name in _DONE else "plain"

    @cached_property
    def summary(self) -> str:
        """The data in one line: whom it is about, the status, then the other members by name."""
        data = dict(self.event.get("data", {}))
        words = [_plain(data.pop(member)) for member in _FIRST_MEMBERS if member in data]
        error = data.pop("error", None)
        if error is not None:
            words.append(_plain(error))
        if isinstance(data.get("len"), int) and isinstance(data.get("offset"), int):
            done, total = size_short(data.pop("offset")), size_short(data.pop("len"))
            words.append(f"{done} of {total}" if done != total else done)
            if not data.get("speed"):
                data.pop("speed", None)
        words += [f"{name}={_plain(value)}" for name, value in data.items()]
        return safe_text(" ".join(words))

    def as_json(self) -> str:
        """The event as on the wire."""
        return json.dumps(self.event, ensure_ascii=False)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class EventLog:
    """The last *capacity* events. Numbers start at 0 and are never used twice."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._ring: list[LoggedEvent] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def first(self) -> int:
        """Number of the oldest event kept."""
        return self._next - len(self._ring)

    @property
    def end(self) -> int:
        """One more than the number of the newest event; how many there have ever been."""
        return self._next

    def append(self, event: Mapping[str, Any]) -> LoggedEvent:
        """Log an event; the oldest one makes room for it."""
        entry = LoggedEvent(self._next, event)
        if len(self._ring) < self.capacity:
            self._ring.append(entry)
        else:
            self._ring[self._next % self.capacity] = entry
        self._next += 1
        return entry

    def extend(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Log several events."""
        for event in events:
            self.append(event)

    def __getitem__(self, number: int) -> LoggedEvent:
        """The event with this number; IndexError when it is not kept (any more)."""
        if not self.first <= number < self._next:
            raise IndexError(number)
        return self._ring[number % self.capacity]


class EventView:
    """The events of a log that hold a text, in order; kept up by looking only at what is new."""

    def __init__(self, log: EventLog, text: str = "") -> None:
        self.log = log
        self.text = text
        self._wanted = text.casefold()
        self._numbers = array("Q")
        self._seen = log.first
        self.refresh()

    def refresh(self) -> None:
        """Take in what the log has got since."""
        if not self.text:
            return
        log, wanted = self.log, self._wanted
        for number in range(max(self._seen, log.first), log.end):
            entry = log[number]
            if wanted in entry.name.casefold() or wanted in entry.summary.casefold():
                self._numbers.append(number)
        self._seen = log.end
        fallen = bisect_left(self._numbers, log.first)
        if fallen:
            del self._numbers[:fallen]

    def __len__(self) -> int:
        return len(self._numbers) if self.text else len(self.log)

    def __getitem__(self, index: int) -> LoggedEvent:
        """The event at *index*, counted from the oldest."""
        return self.log[self._numbers[index] if self.text else self.log.first + index]

    def index_of(self, number: int) -> int:
        """The index of the event numbered *number*, or of the next one after it."""
        if self.text:
            return bisect_left(self._numbers, number)
        return min(max(0, number - self.log.first), len(self.log))

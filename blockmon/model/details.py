"""
What a server tells of one thing beyond the graph: asked for only while somebody looks, and at a bounded rate.

Only standard commands are needed, so that any server answers; what one does not have is simply not asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockmon.backend import Backend, CommandError

DUTY = 6.0
"""A query is not repeated before this many times the time it took."""
LEAST = 0.5
"""Seconds between two askings at least, however often what is asked about changes."""


@dataclass
class Answer:
    """The last answer to a query and the one before, for rates; *error* where the server refused."""

    value: Any = None
    before: Any = None
    error: str | None = None
    known: bool = False
    """Something has come, if only an error."""


@dataclass
class _Query:
    answer: Answer
    stamp: Hashable = None
    asked: float = 0.0
    took: float = 0.0
    running: bool = False
    ever: bool = False


async def _execute(backend: Backend, command: str, arguments: Mapping[str, Any] | None) -> Any:
    try:
        return await backend.execute(command, arguments)
    except CommandError as error:
        # Before QEMU 5.0 nodes cannot be told of without the images behind them.
        if "flat" not in (arguments or {}) or "'flat'" not in error.desc:
            raise
    return await backend.execute(command)


class Details:
    """
    Answers to queries, kept until they are out of date.

    *run* starts a coroutine in the background; *arrived* is called for every answer that is other than the one before.
    """

    def __init__(
        self,
        run: Callable[[Coroutine[Any, Any, None]], object],
        arrived: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend: Backend | None = None
        self._run = run
        self._arrived = arrived
        self._clock = clock
        self._queries: dict[str, _Query] = {}
        self.waiting = False
        """A query was put off because it was asked a moment ago; ask again soon."""

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        stamp: Hashable = None,
        every: float | None = None,
    ) -> Answer:
        """
        The last answer, which is asked for anew when *stamp* is another than last time, or *every* seconds old.

        Never waits: the answer may be unknown as yet.
        """
        query = self._queries.setdefault(_key(command, arguments), _Query(Answer()))
        if query.running or self.backend is None:
            self.waiting |= query.running and query.stamp != stamp
            return query.answer
        age = self._clock() - query.asked
        due = not query.ever or query.stamp != stamp or (every is not None and age >= every * 0.95)
        if due and query.ever and age < max(LEAST, DUTY * query.took):
            self.waiting = True
        elif due:
            query.running = query.ever = True
            query.stamp = stamp
            query.asked = self._clock()
            self._run(self._fetch(query, self.backend, command, arguments))
        return query.answer

    def known(self, command: str, arguments: Mapping[str, Any] | None = None) -> Answer:
        """The last answer, without asking for another."""
        query = self._queries.get(_key(command, arguments))
        return query.answer if query is not None else Answer()

    def forget(self) -> None:
        """Ask for everything anew, however young it is."""
        for query in self._queries.values():
            query.ever = False

    def drop(self, keep: Sequence[str] = ()) -> None:
        """Give up answers that belong to a thing that is not looked at any more, but not those to *keep*."""
        self._queries = {
            key: query for key, query in self._queries.items() if query.running or key.startswith(tuple(keep))
        }

    async def _fetch(self, query: _Query, backend: Backend, command: str, arguments: Mapping[str, Any] | None) -> None:
        answer, started = query.answer, self._clock()
        value, error = answer.value, None
        try:
            value = await _execute(backend, command, arguments)
        except CommandError as exc:
            error = exc.desc
        except (asyncio.CancelledError, OSError, EOFError, RuntimeError):
            # The server is lost, which others tell.
            query.ever = False
            return
        finally:
            query.running = False
            query.took = self._clock() - started
        changed = not answer.known or error != answer.error or value != answer.value or value != answer.before
        answer.before, answer.value = answer.value, value
        answer.error, answer.known = error, True
        if changed:
            self._arrived()


def _key(command: str, arguments: Mapping[str, Any] | None) -> str:
    return command if arguments is None else command + json.dumps(arguments, sort_keys=True)


# -- finding one thing in an answer about all of them ------------------------------------------------------------------


def named_node(answer: Any, name: str) -> Mapping[str, Any] | None:
    """A node's entry in the answer to ``query-named-block-nodes``."""
    return next((item for item in answer or () if item.get("node-name") == name), None)


def _stats_below(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    waiting = [entry]
    while waiting:
        item = waiting.pop()
        yield item
        waiting += [item[key] for key in ("parent", "backing") if isinstance(item.get(key), Mapping)]


def node_stats(answer: Any, name: str) -> Mapping[str, Any] | None:
    """
    A node's entry in the answer to ``query-blockstats``: that of the device on it, or one further down.

    QEMU counts requests at devices alone; the entries below have little more than the highest offset written.
    """
    devices: Sequence[Mapping[str, Any]] = answer or ()
    top = next((item for item in devices if item.get("node-name") == name), None)
    if top is not None:
        return top
    return next((item for entry in devices for item in _stats_below(entry) if item.get("node-name") == name), None)


def device_entry(answer: Any, ident: str, name: str) -> Mapping[str, Any] | None:
    """A device's entry in the answer to ``query-block`` or ``query-blockstats``, by its path or its name."""
    wanted = {text for text in (ident, name) if text}
    for item in answer or ():
        qdev = str(item.get("qdev", ""))
        # A virtio device's path ends in that of the part that does the I/O.
        device = qdev.removesuffix("/virtio-backend")
        if wanted & {item.get("device"), qdev, device, device.rpartition("/")[2]}:
            return item if isinstance(item, Mapping) else None
    return None


def by_id(answer: Any, ident: str, key: str = "id") -> Mapping[str, Any] | None:
    """The entry of that id in a list."""
    return next((item for item in answer or () if item.get(key) == ident), None)


def latency(stats: Mapping[str, Any], before: Mapping[str, Any] | None, kind: str) -> tuple[float | None, float | None]:
    """
    Mean nanoseconds that requests of *kind* (rd, wr, flush, unmap) took: since the answer before, and ever.

    None where there were none.
    """
    time_key, count_key = f"{kind}_total_time_ns", f"{kind}_operations"
    count, spent = stats.get(count_key, 0), stats.get(time_key, 0)
    ever = spent / count if count else None
    if before is None:
        return None, ever
    more = count - before.get(count_key, 0)
    return ((spent - before.get(time_key, 0)) / more if more > 0 else None), ever


def nanoseconds(value: float | None, micro: str = "µ") -> str:
    """A latency in at most six characters: ``850ns``, ``12µs``, ``1.2ms``, ``3.4s``; ``-`` when unknown."""
    if value is None:
        return "-"
    for unit in ("ns", f"{micro}s", "ms"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit != "ns" and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.1f}s" if value < 9.95 else f"{value:.0f}s"

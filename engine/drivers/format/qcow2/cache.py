"""A bounded cache of metadata tables, and the thread that empties caches nobody uses.

A cache is used under its image's lock. Lookup and eviction are O(1): the ordered dictionary serves as the ring of a
second-chance (clock) policy.
"""

from __future__ import annotations

import threading
import time
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar


class Table:
    """A cached piece of metadata at host offset *offset*.

    used: touched since the clock hand last came by. pins: users that rely on it being there. generation: the order
    mark of its last change that must not reach the disk before everything up to that mark has (see ordering.py).
    """

    __slots__ = ("generation", "offset", "pins", "used")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.used = True
        self.pins = 0
        self.generation = 0

    @property
    def dirty(self) -> bool:
        raise AssertionError("a table knows whether it is dirty")


class Slice(Table):
    """A slice of an L2 table: *words* in the machine's byte order; [dirty_from, dirty_to) is what the disk lacks."""

    __slots__ = ("dirty_from", "dirty_to", "words")

    def __init__(self, offset: int, words: array[int]) -> None:
        super().__init__(offset)
        self.words = words
        self.dirty_from = self.dirty_to = 0

    @property
    def dirty(self) -> bool:
        return self.dirty_to > 0

    def mark(self, start: int, stop: int) -> None:
        """Words [start, stop) were changed."""
        if self.dirty_to:
            self.dirty_from = min(self.dirty_from, start)
            self.dirty_to = max(self.dirty_to, stop)
        else:
            self.dirty_from, self.dirty_to = start, stop

    def take_dirty(self) -> tuple[int, array[int]]:
        """(host offset, words) of what is to be written, in whole 512-byte sectors; the slice counts as clean then."""
        start = self.dirty_from & ~63
        stop = min((self.dirty_to + 63) & ~63, len(self.words))
        self.dirty_from = self.dirty_to = 0
        return self.offset + start * 8, self.words[start:stop]


T = TypeVar("T", bound=Table)


class TableCache(Generic[T]):
    """At most *capacity* tables (more only while they are pinned), keyed by host offset."""

    def __init__(self, capacity: int, write_back: Callable[[T], None]) -> None:
        self.capacity = capacity
        self.tables: OrderedDict[int, T] = OrderedDict()
        self._touched: dict[int, T] = {}
        self._write_back = write_back

    def get(self, offset: int) -> T | None:
        """The table at *offset*, if it is cached."""
        table = self.tables.get(offset)
        if table is not None:
            table.used = True
        return table

    def make_room(self) -> None:
        """Evict until one more table fits. Errors: OSError from writing a dirty one, which then stays."""
        tables = self.tables
        if len(tables) < self.capacity:
            return
        for _ in range(2 * len(tables)):
            if len(tables) < self.capacity:
                return
            offset = next(iter(tables))
            table = tables[offset]
            if table.pins or table.used:
                table.used = False
                tables.move_to_end(offset)
                continue
            if table.dirty:
                self._write_back(table)
            if tables.get(offset) is table:
                self.drop(offset)

    def insert(self, table: T) -> T:
        """Add *table*; the caller has called make_room()."""
        self.tables[table.offset] = table
        return table

    def drop(self, offset: int) -> None:
        """Forget the table at *offset*, written or not: its cluster is no longer a table."""
        self.tables.pop(offset, None)
        self._touched.pop(offset, None)

    def clear(self) -> None:
        """Forget everything, written or not."""
        self.tables.clear()
        self._touched.clear()

    def drop_range(self, offset: int, size: int, step: int) -> None:
        """Forget all tables in [offset, offset + size), which lie *step* bytes apart."""
        if size // step > len(self.tables):
            for key in [k for k in self.tables if offset <= k < offset + size]:
                self.drop(key)
        else:
            for key in range(offset, offset + size, step):
                self.drop(key)

    def drop_unused(self) -> int:
        """Forget clean tables not used since the last call; return how many are left."""
        for offset, table in list(self.tables.items()):
            if table.used or table.pins or table.dirty:
                table.used = False
            else:
                del self.tables[offset]
        return len(self.tables)

    def touch(self, table: T) -> None:
        """*table* has become dirty."""
        self._touched[table.offset] = table

    def dirty_tables(self) -> list[T]:
        """The dirty ones, by host offset."""
        if not self._touched:
            return []
        self._touched = {offset: table for offset, table in sorted(self._touched.items()) if table.dirty}
        return list(self._touched.values())


class Janitor:
    """Calls registered cleaners at their intervals, from one daemon thread that exists only while there are any."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._due: dict[int, tuple[float, float, weakref.WeakMethod[Callable[[], None]]]] = {}
        self._thread: threading.Thread | None = None
        self._next_key = 0

    def register(self, interval: float, cleaner: Callable[[], None]) -> int:
        """Call the bound method *cleaner* every *interval* seconds until its object dies or unregister(key)."""
        with self._condition:
            self._next_key += 1
            self._due[self._next_key] = (time.monotonic() + interval, interval, weakref.WeakMethod(cleaner))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qcow2-cache-cleaner", daemon=True)
                self._thread.start()
            else:
                self._condition.notify()
            return self._next_key

    def unregister(self, key: int) -> None:
        """Stop calling; unknown keys are ignored."""
        with self._condition:
            self._due.pop(key, None)
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._due:
                    self._thread = None
                    return
                key, (when, interval, reference) = min(self._due.items(), key=lambda item: item[1][0])
                cleaner = reference()
                if cleaner is None:
                    del self._due[key]
                    continue
                wait = when - time.monotonic()
                if wait > 0:
                    cleaner = None
                    self._condition.wait(wait)
                    continue
                self._due[key] = (time.monotonic() + interval, interval, reference)
            cleaner()
            cleaner = None


janitor = Janitor()
"""The process's one cache cleaner."""

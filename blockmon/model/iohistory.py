"""Rates of reading and writing, from counters that only grow, for totals and sparklines."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from blockmon.model.graph import IoCounters

BIN_SECONDS = 1.0
BINS = 24

_ZERO = IoCounters()


@dataclass(frozen=True, slots=True)
class IoRate:
    """Bytes and operations per second."""

    rd_bytes: float = 0.0
    wr_bytes: float = 0.0
    rd_ops: float = 0.0
    wr_ops: float = 0.0

    @property
    def bytes(self) -> float:
        """Both directions together."""
        return self.rd_bytes + self.wr_bytes


STILL = IoRate()


@dataclass
class _Track:
    counters: IoCounters
    bins: deque[float] = field(default_factory=lambda: deque(maxlen=BINS))
    base: IoCounters = _ZERO
    rate: IoRate = STILL


class IoHistory:
    """
    For every node the bytes of each of the last seconds, and its rate over the last of them.

    All nodes share one division of time into bins, so that their sparklines move together, once a second at most.
    """

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}
        self._bin_start: float | None = None
        self._moving: set[str] = set()
        """The nodes with something in one of their bins."""
        self.version = 0
        """Grows when rates may have become others."""

    def update(self, counters: Mapping[str, IoCounters], now: float) -> set[str]:
        """Take in all nodes' counters, read at monotonic time *now*. Returns the nodes that look different."""
        if self._tracks.keys() != counters.keys():
            for name in [name for name in self._tracks if name not in counters]:
                del self._tracks[name]
                self._moving.discard(name)
                self.version += 1
        if self._bin_start is None:
            self._bin_start = now
        elapsed = now - self._bin_start
        due = elapsed >= BIN_SECONDS * 0.95
        changed: set[str] = set()
        # A poll that came late spreads what it found over the bins it missed.
        bins = min(BINS, max(1, round(elapsed / BIN_SECONDS)))
        for name, current in counters.items():
            track = self._tracks.get(name)
            if track is not None and current is track.base and track.rate is STILL and name not in self._moving:
                track.counters = current
                continue  # As still as it was; most are, where there are thousands.
            if (
                track is None
                or current.rd_bytes < track.counters.rd_bytes
                or current.wr_bytes < track.counters.wr_bytes
            ):
                self._tracks[name] = _Track(current, base=current)
                self._moving.discard(name)
                continue
            track.counters = current
            if not due:
                continue
            base, track.base = track.base, current
            moved = (current.rd_bytes - base.rd_bytes) + (current.wr_bytes - base.wr_bytes)
            if moved or any(track.bins):
                track.bins.extend([moved / bins] * bins)
                changed.add(name)
            (self._moving.add if moved or any(track.bins) else self._moving.discard)(name)
            rate = IoRate(
                (current.rd_bytes - base.rd_bytes) / elapsed,
                (current.wr_bytes - base.wr_bytes) / elapsed,
                (current.rd_ops - base.rd_ops) / elapsed,
                (current.wr_ops - base.wr_ops) / elapsed,
            )
            if rate != track.rate:
                track.rate = rate if rate != STILL else STILL
                changed.add(name)
        if due:
            self._bin_start = now
            self.version += 1
        return changed

    def rate(self, node: str) -> IoRate:
        """The node's present rate; zero where nothing is known."""
        track = self._tracks.get(node)
        return track.rate if track is not None else STILL

    def bins(self, node: str, count: int) -> list[float]:
        """The bytes of the last *count* seconds, oldest first."""
        track = self._tracks.get(node)
        values = list(track.bins)[-count:] if track is not None else []
        return [0.0] * (count - len(values)) + values

    @property
    def moving(self) -> bool:
        """True while some sparkline has something to show, and so changes."""
        return bool(self._moving)

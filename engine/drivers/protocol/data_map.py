"""Where a host file has data and where it has holes, by SEEK_DATA and SEEK_HOLE."""

from __future__ import annotations

import errno
import os


class DataMap:
    """What one file holds; the data found last is remembered, as a filesystem may look through all of it for a hole.

    That some data is a hole by now harms nobody: it reads as the zeros it has become. Filesystems that can't tell count
    as all data. Uses the descriptor's position, which positional reads and writes ignore. Any thread.
    """

    def __init__(self) -> None:
        self._data = 0, 0
        """Begin and end of data, bytes."""

    def forget(self, offset: int, length: int) -> None:
        """A hole may have come to be in the range."""
        begin, end = self._data
        if offset < end and begin < offset + length:
            self._data = 0, 0

    def run(self, fd: int, offset: int, length: int) -> tuple[bool, int]:
        """(whether there is data at *offset*, bytes of the run, at most *length*)."""
        begin, end = self._data
        if not begin <= offset < end:
            try:
                found = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError as exc:
                return exc.errno != errno.ENXIO, length
            if found > offset:
                return False, min(found - offset, length)
            try:
                end = os.lseek(fd, offset, os.SEEK_HOLE)
            except OSError:
                return True, length
            if end <= offset:
                return True, length
            self._data = offset, end
        return True, min(end - offset, length)

    def runs(self, fd: int, offset: int, length: int) -> list[tuple[bool, int, int]]:
        """All of a range as run() tells it: (whether there is data, bytes, offset) of every run."""
        found = []
        stop = offset + length
        seek, to_data, to_hole = os.lseek, os.SEEK_DATA, os.SEEK_HOLE
        begin, end = self._data
        while offset < stop:
            if not begin <= offset < end:
                try:
                    data = seek(fd, offset, to_data)
                except OSError as exc:
                    found.append((exc.errno != errno.ENXIO, stop - offset, offset))
                    break
                if data > offset:
                    data = min(data, stop)
                    found.append((False, data - offset, offset))
                    offset = data
                    continue
                try:
                    end = seek(fd, offset, to_hole)
                except OSError:
                    end = stop
                if end <= offset:
                    end = stop
                begin = offset
            here = min(end, stop)
            found.append((True, here - offset, offset))
            offset = here
        if begin < end:
            self._data = begin, end
        return found

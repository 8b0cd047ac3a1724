"""What was printed at a prompt so far: a bounded number of lines, of which only the rows in view are ever laid out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from prompt_toolkit.utils import get_cwidth

Fragment = tuple[str, str]

MOST_LINES = 20_000
LONGEST_LINE = 100_000
"""Characters; what a line has beyond is cut off, with a sign."""

_CUT = ("class:notice", " … (cut)")


class Line:
    """One line as it was printed, of any length."""

    __slots__ = ("_rows", "_rows_width", "columns", "fragments", "number", "plain_widths", "size")

    def __init__(self) -> None:
        self.fragments: list[Fragment] = []
        self.number = 0
        self.size = 0
        self.columns = 0
        self.plain_widths = True
        self._rows: list[list[Fragment]] | None = None
        self._rows_width = 0

    def add(self, style: str, text: str) -> None:
        """Put *text*, which has no line end, behind what is there."""
        if not text or self.size > LONGEST_LINE:
            return
        if self.size + len(text) > LONGEST_LINE:
            text = text[: LONGEST_LINE - self.size]
            self.fragments += [(style, text), _CUT]
            self.columns += get_cwidth(text) + len(_CUT[1])
            self.size = LONGEST_LINE + 1
        else:
            self.fragments.append((style, text))
            self.size += len(text)
            columns = len(text) if text.isascii() else get_cwidth(text)
            self.columns += columns
            self.plain_widths = self.plain_widths and columns == len(text)
        self._rows = None

    def height(self, width: int) -> int:
        """The rows that the line takes in *width* columns."""
        if self.columns <= width:
            return 1
        if self.plain_widths:
            return -(-self.columns // width)
        return len(self.rows(width))

    def rows(self, width: int) -> list[list[Fragment]]:
        """The line broken into rows of at most *width* columns."""
        if self.columns <= width:
            return [self.fragments]
        if self._rows is None or self._rows_width != width:
            self._rows, self._rows_width = _broken(self.fragments, width), width
        return self._rows

    @property
    def text(self) -> str:
        """The line without its styles."""
        return "".join(text for _, text in self.fragments)


def _broken(fragments: Iterable[Fragment], width: int) -> list[list[Fragment]]:
    rows: list[list[Fragment]] = [[]]
    room = width
    for style, text in fragments:
        while text:
            if text.isascii():
                count = columns = min(room, len(text))
            else:
                count = columns = 0
                for char in text:
                    size = get_cwidth(char)
                    if columns + size > room:
                        break
                    count, columns = count + 1, columns + size
            if count:
                rows[-1].append((style, text[:count]))
                text = text[count:]
                room -= columns
            elif room == width:
                text = text[1:]  # wider than the whole row: it cannot be shown
                continue
            if text:
                rows.append([])
                room = width
    return rows


class Transcript:
    """Lines in the order printed. `offset` is how many rows the view is scrolled up from the end."""

    def __init__(self, most_lines: int = MOST_LINES) -> None:
        self._lines: deque[Line] = deque(maxlen=most_lines)
        self._open = False
        self.offset = 0
        self._number = 0
        """Lines begun so far."""
        self._before = 0
        """Lines begun before the last output that can be replaced."""
        self._written = 0
        """Calls of `write`."""

    def __len__(self) -> int:
        return len(self._lines)

    def clear(self) -> None:
        """Forget everything."""
        self._lines.clear()
        self._open = False
        self.offset = 0

    def write(self, fragments: Iterable[Fragment], width: int) -> None:
        """Append output. A view that is scrolled up stays where it is; *width* tells by how many rows."""
        self._written += 1
        follow = self.offset == 0
        before = self._lines[-1].height(width) if self._open and not follow else 0
        added: list[Line] = [self._lines[-1]] if self._open else []
        for style, text in fragments:
            for index, part in enumerate(text.split("\n")):
                if index:
                    if not self._open:
                        self._begin(added)
                    self._open = False
                if part:
                    if not self._open:
                        self._begin(added)
                    self._lines[-1].add(style, part)
        if not follow:
            self.offset += sum(line.height(width) for line in added) - before

    def replace(self, mark: int | None, fragments: Iterable[Fragment], width: int) -> int:
        """Append output in place of what the call that returned *mark* has appended, unless more was written behind it.
        Returns the mark for what is written now."""
        if mark is not None and mark == self._written:
            while len(self._lines) and self._lines[-1].number > self._before:
                self._lines.pop()
            self._open = False
        self._before = self._number
        self.write(fragments, width)
        return self._written

    def _begin(self, added: list[Line]) -> None:
        line = Line()
        self._number += 1
        line.number = self._number
        self._lines.append(line)
        added.append(line)
        self._open = True

    def height(self, width: int, most: int) -> int:
        """The rows that everything takes in *width* columns; counting stops at *most*."""
        rows = 0
        for line in reversed(self._lines):
            rows += line.height(width)
            if rows >= most:
                return most
        return rows

    def scroll(self, rows: int, width: int, height: int) -> None:
        """Move a view of *height* rows up by *rows* (down when negative), as far as there is something to see."""
        wanted = max(0, self.offset + rows)
        if wanted:
            wanted = min(wanted, max(0, self.height(width, wanted + height) - height))
        self.offset = wanted

    def view(self, width: int, height: int) -> list[list[Fragment]]:
        """The rows to show in *height* rows of *width* columns, top to bottom; fewer when there is less."""
        if height <= 0:
            return []
        skip = self.offset
        rows: list[list[Fragment]] = []
        for line in reversed(self._lines):
            if skip:
                size = line.height(width)
                if size <= skip:
                    skip -= size
                    continue
            broken = line.rows(width)
            rows.extend(reversed(broken[: len(broken) - skip] if skip else broken))
            skip = 0
            if len(rows) >= height:
                break
        return rows[:height][::-1]

    def text(self, last: int | None = None) -> str:
        """The text of the last so many lines, or of all."""
        start = max(0, len(self._lines) - last) if last is not None else 0
        return "\n".join(line.text for line in islice(self._lines, start, None))

"""A line of the screen while it is being put together."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from blockmon.tui.look import Look


class Line:
    """Pieces of text with styles, counted in terminal cells and never wider than *width*."""

    __slots__ = ("_segments", "look", "used", "width")

    def __init__(self, look: Look, width: int) -> None:
        self.look = look
        self.width = width
        self.used = 0
        self._segments: list[Segment] = []

    @property
    def room(self) -> int:
        """Cells left."""
        return self.width - self.used

    def add(self, text: str, style: str = "text", limit: int | None = None) -> Line:
        """Append *text*, shortened with an ellipsis to *limit* cells or to what room there is."""
        room = self.room if limit is None else min(self.room, limit)
        if room <= 0 or not text:
            return self
        width = cell_len(text)
        if width > room:
            mark = self.look.symbols.ellipsis
            text = set_cell_size(text, room - 1).rstrip() + mark if room > 1 else mark
            width = cell_len(text)
        self._segments.append(Segment(text, self.look.style(style)))
        self.used += width
        return self

    def to(self, column: int, style: str = "text", fill: str = " ") -> Line:
        """Fill up to *column*, counted from 0."""
        gap = min(column, self.width) - self.used
        if gap > 0:
            self._segments.append(Segment(fill * gap, self.look.style(style)))
            self.used += gap
        return self

    def right(self, text: str, width: int, style: str = "text") -> Line:
        """Append *text* at the right of a field of *width* cells."""
        self.to(self.used + max(0, width - cell_len(text)))
        return self.add(text, style)

    def finish(self, fill: str = "text", over: Style | None = None) -> Strip:
        """The finished line, filled up to its width; *over* is laid over all of it."""
        self.to(self.width, fill)
        segments = self._segments
        if over is not None:
            segments = [Segment(text, style + over if style is not None else over) for text, style, _ in segments]
        return Strip(_merged(segments), self.used)


def join(*strips: Strip) -> Strip:
    """Strips side by side as one."""
    return Strip(
        _merged([segment for strip in strips for segment in strip]), sum(strip.cell_length for strip in strips)
    )


def _merged(segments: list[Segment]) -> list[Segment]:
    """
    The same picture in fewer pieces: blanks join the piece before them where only their ground can be seen.

    Every piece costs some forty bytes of escape sequences, several times what it says.
    """
    merged: list[Segment] = []
    for segment in segments:
        if merged:
            before, style = merged[-1].style, segment.style
            if before == style or (not segment.text.strip(" ") and _same_ground(before, style)):
                merged[-1] = Segment(merged[-1].text + segment.text, before)
                continue
        merged.append(segment)
    return merged


def _same_ground(one: Style | None, other: Style | None) -> bool:
    if one is None or other is None or one.bgcolor != other.bgcolor:
        return False
    return not any(style.underline or style.reverse or style.strike for style in (one, other))

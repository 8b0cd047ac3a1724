"""What a session asks of the place where it is shown: a terminal, the pane of the screen, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from blockmon.repl.printers import Fragment, Fragments, format_error, format_hint, format_text

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

PIECE = 400
"""Fragments that go out at once; between two such pieces others have their turn."""


class PromptError(Exception):
    """What is asked for cannot be done here, or is not understood; the text is for the user."""


class Host:
    """The place of a session that has no screen: everything is printed one below the other."""

    session: ReplSession

    def emit(self, fragments: Fragments, *, answer: bool = False) -> None:
        """Print a piece of output; an *answer*'s is kept for copying."""
        self.session.emit(fragments, answer=answer)

    async def show(self, fragments: Iterable[Fragment]) -> None:
        """Print an answer, of any length."""
        piece: Fragments = []
        for fragment in fragments:
            piece.append(fragment)
            if len(piece) >= PIECE and fragment[1].endswith(("\n", " ")):
                self.emit(piece, answer=True)
                piece = []
                await asyncio.sleep(0)
        self.emit(piece, answer=True)

    async def follow(self, frames: AsyncIterator[Fragments]) -> None:
        """Print *frames*, of which each takes the place of the one before, until they end or one cancels it."""
        async for frame in frames:
            self.emit(frame, answer=True)

    def fail(self, cls: str, desc: str, hints: Iterable[str] = ()) -> None:
        """Tell that a command has failed, and what may help."""
        self.emit(format_error(cls, desc))
        for hint in hints:
            self.emit(format_hint(hint))

    def fail_hmp(self, line: str, answer: str, hints: Iterable[str] = ()) -> None:
        """Tell that the HMP command *line* has failed, by its own text."""
        self.emit(list(format_text(answer)))
        for hint in hints:
            self.emit(format_hint(hint))

    def changed(self, setting: str) -> None:
        """Put a setting that has changed into effect."""

    def use_theme(self, name: str) -> None:
        """Take other colours. Raises PromptError."""
        raise PromptError("there are no colours here")

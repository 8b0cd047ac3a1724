"""Holding a run: pause, one statement at a time, leaving one out, the end."""

import asyncio
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.replay.statements import Statement


class Decision(enum.Enum):
    """What happens to the statement a run is held in front of."""

    RUN = "run"
    SKIP = "skip"
    STOP = "stop"


class Controls:
    """What a front end turns while a script runs; `gate` is for the Runner. On the runner's loop only."""

    def __init__(self, *, paused: bool = False) -> None:
        self.held: Statement | None = None
        """The statement the run stands in front of, when it is paused and has got there."""
        self._paused = paused
        self._stopped = False
        self._decision: Decision | None = None
        self._changed = asyncio.Event()

    @property
    def paused(self) -> bool:
        """Whether the run stops in front of the next statement."""
        return self._paused

    def pause(self) -> None:
        """Stop in front of the next statement."""
        self._paused = True

    def resume(self) -> None:
        """Go on by itself."""
        self._paused = False
        self._decide(Decision.RUN)

    def step(self) -> None:
        """Run one statement, and stop in front of the next."""
        self._paused = True
        self._decide(Decision.RUN)

    def skip(self) -> None:
        """Leave out the statement the run is held in front of, and stop in front of the next."""
        self._paused = True
        self._decide(Decision.SKIP)

    def stop(self) -> None:
        """End the script in front of the next statement; what it deferred still runs."""
        self._stopped = True
        self._changed.set()

    def _decide(self, decision: Decision) -> None:
        # While a statement runs there is none to decide on.
        if self.held is not None:
            self.held, self._decision = None, decision
            self._changed.set()

    async def gate(self, statement: "Statement") -> Decision:
        """Wait until *statement* may run, is to be left out, or the script is to end."""
        if self._stopped:
            return Decision.STOP
        if not self._paused:
            return Decision.RUN
        self.held, self._decision = statement, None
        self._changed.clear()
        try:
            await self._changed.wait()
            return Decision.STOP if self._stopped else self._decision or Decision.RUN
        finally:
            self.held = None

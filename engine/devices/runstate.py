"""Whether the simulated guests run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.devices.events import Reset, Resume, ShutdownCause, Stop
from engine.graph.drain import drained
from engine.qapi import Enum
from engine.throttle.group import unthrottled

if TYPE_CHECKING:
    from engine.engine import Engine


class RunState(Enum):
    """What the machine is doing."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"


class Execution:
    """The run state: guests' threads wait here while the machine is stopped.

    stop, cont and reset belong to the control plane; request_stop, wait and running to any thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition(threading.Lock())
        self._requested = False
        self.state = RunState.RUNNING
        self.running = True
        self.resumes = 0
        """How often the guests were let go on; a request that stopped them is retried when this has grown."""

    def request_stop(self) -> int:
        """A failed request wants the guests stopped. Returns what to pass to wait()."""
        with self._changed:
            ticket = self.resumes
            if self.running and not self._requested:
                self._requested = True
        self._engine.control.post(self._stop_for_error)
        return ticket

    def _stop_for_error(self) -> None:
        with self._changed:
            wanted, self._requested = self._requested, False
        if wanted:
            self.stop(RunState.IO_ERROR)

    def stop(self, state: RunState = RunState.PAUSED) -> None:
        """Stop the guests: new requests wait, those under way are done when this returns, and flushed. No effect when
        they are stopped already.
        """
        machine = self._engine.machine
        with self._changed:
            if not self.running:
                return
            self.running = False
            self.state = state
        media = machine.media
        # Neither a limit nor a fault injected on purpose may hold up the control plane for as long as it likes.
        with drained(media):
            pass
        with unthrottled(media), self._changed:
            self._changed.wait_for(lambda: machine.settled)
        self._engine.emit(Stop())
        machine.flush()

    def cont(self) -> None:
        """Let the guests go on; requests that stopped them are tried again."""
        with self._changed:
            requested, self._requested = self._requested, False
            if self.running and not requested:
                return
            was_running = self.running
            self.running = True
            self.state = RunState.RUNNING
            self.resumes += 1
        # An error whose stop was overtaken by this command still is followed by STOP, as its event promises.
        if was_running:
            self._engine.emit(Stop())
        self._engine.emit(Resume())
        self.wake()

    def reset(self) -> None:
        """Announce a reset. Stopped guests stay so, as if never started."""
        with self._changed:
            if not self.running:
                self.state = RunState.PRELAUNCH
        self._engine.emit(Reset(guest=False, reason=ShutdownCause.HOST_QMP_SYSTEM_RESET))

    def wake(self) -> None:
        """Let everybody who waits look again whether to go on."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, ticket: int | None, over: Callable[[], bool]) -> None:
        """Wait until the guests run (and, given a ticket, have been resumed since) or *over* says so."""
        with self._changed:
            self._changed.wait_for(lambda: over() or (self.running and self.resumes != ticket))

"""Writes what is done to an engine as a command file, while it is done.

The file replays to the same graph: commands that change something stand in it in the order in which they ended, and
in front of each, where it may have mattered, a wait for what jobs had come to when it was sent. Queries are left out.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from blockmon import __version__
from blockmon.backend import CommandError, Event
from blockmon.backend.read_only import why_refused
from blockmon.backend.statements import (
    HMP,
    error_pattern,
    fails_again,
    failure,
    statement,
    with_places,
    with_variables,
    without_secrets,
)

if TYPE_CHECKING:
    from engine.engine import Engine, Outcome

log = logging.getLogger("blockmon")

_NOWHERE: Mapping[str, str] = {}

Ended = Callable[[Any, CommandError | None], None]
"""Takes what a command returned, or its error."""

_JOB_EVENTS = ("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
_GONE = {
    "DEVICE_DELETED": ("device", ("device_del",)),
    "BLOCK_EXPORT_DELETED": ("id", ("block-export-del", "nbd-server-remove")),
}
"""Events that tell the end of what a command began: the member with the name, and the commands."""
_MILESTONES = {"ready": "ready", "standby": "ready", "pending": "pending", "concluded": "concluded", "null": "null"}
"""States that a job does not leave by itself, except to get further; internal pauses come and go."""
_MADE_UP = re.compile(r"#block[0-9]+")
_PATIENCE = 3000
"""Attempts, five a second, to see a job fail."""
_TIME_STEP = 1.0
"""Seconds that have passed when the time is written again."""


class _Told(NamedTuple):
    """An event, and how many things had been told before it."""

    number: int
    event: Event


class _Done(NamedTuple):
    """A command that has ended. begun: how many things had been told before it."""

    begun: int
    at: float
    command: str
    arguments: Mapping[str, Any]
    result: Any
    error: CommandError | None


@dataclass(slots=True, eq=False)
class _Job:
    id: str
    aborted: bool = False
    failed: bool = False
    cancelled: bool = False
    waited: set[str] = field(default_factory=set)


class Recorder:
    """Records to *path* from its making to close(). Errors: OSError when the file can't be made.

    The file is replaced, and for its owner only. notes: sentences for its head, one a line. on_failure: called with a
    sentence, on a thread of the recorder's own, when no more can be written; recording has then ended. places: folders
    that are gone afterwards, by the names of the variables that are written instead.
    begin() and event() must be called in the order in which things happen.
    """

    def __init__(
        self,
        path: str,
        notes: Sequence[str] = (),
        on_failure: Callable[[str], None] = log.error,
        places: Mapping[str, str] = _NOWHERE,
    ) -> None:
        self.path = path
        self._places = places
        self._notes = notes
        self._on_failure = on_failure
        self._numbers = itertools.count(1)
        self._queue: queue.SimpleQueue[_Told | _Done | None] = queue.SimpleQueue()
        self._ended = False
        self._jobs: dict[str, _Job] = {}
        self._pending: list[tuple[int, _Job, str]] = []
        self._gone: list[tuple[int, str, str]] = []
        self._last: _Done | None = None
        self._last_time = 0.0
        # A named pipe that nobody reads is an error instead of a wait.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        os.set_blocking(file, True)
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.fchmod(file, 0o600)
        self._file = file
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    # -- telling it ------------------------------------------------------------------------------------------

    def begin(self, command: str, arguments: Mapping[str, Any]) -> Ended:
        """Tell of a command that is being sent; what is returned is to be told how it ended."""
        if self._ended or why_refused(command, arguments) is None:
            return _ignore
        begun = next(self._numbers)

        def end(result: Any, error: CommandError | None) -> None:
            self._queue.put(_Done(begun, time.time(), command, arguments, result, error))

        return end

    def event(self, event: Event) -> None:
        """Tell of an event."""
        if not self._ended and (event["event"] in _JOB_EVENTS or event["event"] in _GONE):
            self._queue.put(_Told(next(self._numbers), event))

    def events(self, events: Sequence[Event]) -> None:
        """Tell of a batch of events."""
        for event in events:
            self.event(event)

    @property
    def active(self) -> bool:
        """Whether what is told is still written."""
        return not self._ended

    def close(self) -> None:
        """Write what is still to be written and close the file. Idempotent."""
        if not self._ended:
            self._ended = True
            self._queue.put(None)
        self._thread.join()

    # -- writing ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._head()
            while (entry := self._queue.get()) is not None:
                if isinstance(entry, _Told):
                    self._follow(entry)
                else:
                    self._command(entry)
            self._waits_before(next(self._numbers))
        except OSError as error:
            self._give_up(error.strerror or str(error))
        except Exception as error:
            log.exception("recording to %s", self.path)
            self._give_up(f"internal error: {error!r}")
        finally:
            os.close(self._file)

    def _give_up(self, why: str) -> None:
        self._ended = True
        self._on_failure(f"{self.path}: {why}; recording has stopped")

    def _write(self, *lines: str) -> None:
        # One write for what belongs together, past any buffer: what is done stands in the file when the program dies.
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(self._file, data) :]

    def _head(self) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._write(
            f"# Recorded by blockmon {__version__} on {now}, in {os.getcwd()}",
            *(f"# {line}" for note in self._notes for line in note.splitlines()),
        )

    def _command(self, done: _Done) -> None:
        arguments, secrets = without_secrets(done.command, with_places(done.arguments, self._places))
        self._waits_before(done.begun)
        lines: list[str] = []
        if done.at - self._last_time >= _TIME_STEP:
            self._last_time = done.at
            lines += ["", f"# {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(done.at))}"]
        lines += [f"# {variable} has to be set to {what}." for variable, what in secrets]
        line = with_variables(statement(done.command, arguments))
        if (made_up := _MADE_UP.search(line)) is not None:
            lines.append(f"# {made_up[0]} is a name that the engine made up; a replay has another one.")
        error = done.error
        if error is None:
            failed = failure(done.command, done.arguments, done.result)
            if failed is not None:
                cls = "CommandNotFound" if failed.startswith("unknown command: ") else "GenericError"
                error = CommandError(cls, failed)
        if done.command == "quit" or (done.command == HMP and line in ("quit", "q", "hmp quit", "hmp q")):
            lines.append(f"# {line}")
        elif error is None:
            lines += [*self._resumes(done), line]
        elif fails_again(done.command, done.arguments, error.cls, error.desc):
            desc = with_places(error.desc, self._places)
            lines += [line, f"@error {error.cls} {with_variables(error_pattern(desc))}"]
        else:
            lines += [f"# failed, and left out: {line}", *(f"#     {part}" for part in error.desc.splitlines())]
        self._write(*lines)
        self._last = done
        # What went while the command ran needs no wait.
        self._gone.clear()

    # -- what commands wait for ------------------------------------------------------------------------------

    def _follow(self, told: _Told) -> None:
        name, data = str(told.event["event"]), told.event.get("data") or {}
        if name in _GONE:
            self._gone.append((told.number, name, str(data.get(_GONE[name][0]))))
        elif name == "JOB_STATUS_CHANGE":
            self._follow_status(told.number, str(data["id"]), str(data["status"]))
        else:
            job = self._jobs.setdefault(str(data["device"]), _Job(str(data["device"])))
            job.failed = job.failed or "error" in data
            job.cancelled = job.cancelled or name == "BLOCK_JOB_CANCELLED"

    def _follow_status(self, number: int, name: str, status: str) -> None:
        if status == "created" or name not in self._jobs:
            self._jobs[name] = _Job(name)
        job = self._jobs[name]
        job.aborted = job.aborted or status == "aborting"
        milestone = _MILESTONES.get(status)
        if milestone is not None and milestone not in job.waited:
            job.waited.add(milestone)
            self._pending.append((number, job, milestone))
        if status == "null":
            del self._jobs[name]

    def _waits_before(self, begun: int) -> None:
        """Write waits for what had happened when a command was sent."""
        lines = []
        due = [entry for entry in self._pending if entry[0] < begun]
        self._pending = [entry for entry in self._pending if entry[0] >= begun]
        for index, (_, job, milestone) in enumerate(due):
            later = {other for _, same, other in due[index + 1 :] if same is job}
            earlier = any(same is job and other == "concluded" for _, same, other in due[:index])
            # A job that concluded was ready before. One that is gone because it was dismissed needs no wait.
            if milestone in ("ready", "pending") and "concluded" in later:
                continue
            if milestone == "null" and not earlier:
                continue
            # A job that failed and is gone has left nothing to look at.
            if milestone == "concluded" and "null" in later and job.aborted:
                continue
            lines += self._wait(job, milestone)
        lines += self._gone_before(begun)
        if lines:
            self._write(*lines)

    @staticmethod
    def _wait(job: _Job, milestone: str) -> list[str]:
        if milestone != "concluded":
            return [f"@wait-job {job.id} {milestone}"]
        if not job.aborted:
            return [f"@wait-job {job.id} success"]
        if job.cancelled and not job.failed:
            return [f"@wait-job {job.id} concluded"]
        # A wait for a job that fails would fail as well.
        return [
            f"@retry {_PATIENCE} every 200ms",
            "query-jobs",
            f"@expect $[?id=={job.id}].status == concluded",
            f"@expect $[?id=={job.id}].error ~ .",
        ]

    def _gone_before(self, begun: int) -> list[str]:
        """A wait for what the last command had go, if it went after the command and before the next one."""
        last, gone = self._last, self._gone
        self._gone = []
        if last is None:
            return []
        named = str(last.arguments.get("id", last.arguments.get("name")))
        return [
            f"@wait-event {name} {_GONE[name][0]}={what}"
            for number, name, what in gone
            if number < begun and last.command in _GONE[name][1] and what == named
        ]

    def _resumes(self, done: _Done) -> list[str]:
        """A wait for the pause that a command ends, which may be that of an error."""
        if done.command not in ("job-resume", "block-job-resume"):
            return []
        name = str(done.arguments.get("id", done.arguments.get("device")))
        return [f"@wait-job {name} paused|standby"]


def _ignore(result: Any, error: CommandError | None) -> None:
    """What is not recorded ends without notice."""


def attach(recorder: Recorder, engine: Engine) -> Callable[[], None]:
    """Have *recorder* told of every command that *engine* carries out, whoever sends it; returns what ends it."""

    def observe(command: str, arguments: Mapping[str, Any]) -> Outcome:
        ended = recorder.begin(command, arguments)

        def outcome(result: Any, error: Any) -> None:
            ended(result, CommandError(error.error_class, error.desc) if error is not None else None)

        return outcome

    ends = [engine.observe(observe), engine.subscribe(recorder.event)]

    def detach() -> None:
        for end in ends:
            end()

    return detach

"""A backend without an engine: a test says what each command answers and which events follow."""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blockmon.backend import CommandError

Event = dict[str, Any]
Answer = Callable[..., Any]


def event(name: str, **data: Any) -> Event:
    """A QMP event as on the wire; in data's names _ stands for -."""
    return {
        "timestamp": {"seconds": 1, "microseconds": 0},
        "event": name,
        "data": {key.replace("_", "-"): value for key, value in data.items()},
    }


def job_status(job: str, *statuses: str) -> list[Event]:
    """The events of a job going through *statuses*."""
    return [event("JOB_STATUS_CHANGE", id=job, status=status) for status in statuses]


class FakeBackend:
    """Answers from a table; `answers[command]` is a value, an exception, or a function of the arguments.

    A command that is not in the table fails as in QMP. `calls` has what was executed, in order.
    """

    title = "fake"

    def __init__(self, answers: Mapping[str, Any] | None = None, schema: Sequence[Mapping[str, Any]] = ()) -> None:
        self.answers: dict[str, Any] = dict(answers or {})
        self.schema = schema
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.started = False
        self.closed = False
        self._callbacks: list[Callable[[Sequence[Event]], None]] = []

    async def start(self) -> None:
        self.started = True

    async def close(self) -> None:
        self.closed = True

    def subscribe(self, callback: Callable[[Sequence[Event]], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def emit(self, *events: Event) -> None:
        """Deliver *events* as one batch, now."""
        for callback in list(self._callbacks):
            callback(events)

    def emit_later(self, *events: Event, turns: int = 5) -> None:
        """Deliver *events* after the loop has gone round some times, as a server's do."""
        loop = asyncio.get_running_loop()
        if turns:
            loop.call_soon(lambda: self.emit_later(*events, turns=turns - 1))
        else:
            self.emit(*events)

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        given = dict(arguments or {})
        self.calls.append((command, given))
        await asyncio.sleep(0)
        if command in self.answers:
            answer = self.answers[command]
            if isinstance(answer, Exception):
                raise answer
            if not callable(answer):
                return answer
            result = answer(**{key.replace("-", "_"): value for key, value in given.items()})
            return await result if inspect.isawaitable(result) else result
        if command == "query-commands":
            named = [entry["name"] for entry in self.schema if entry["meta-type"] == "command"]
            return [{"name": name} for name in dict.fromkeys([*named, *self.answers])]
        if command == "query-qmp-schema" and self.schema:
            return list(self.schema)
        raise CommandError("CommandNotFound", f"The command {command} has not been found")

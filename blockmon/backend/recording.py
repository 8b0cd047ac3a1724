"""Recording what is done through a back end, whichever it is."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from blockmon.backend import Backend, CommandError, Event, EventCallback
from blockmon.options import CommonOptions, StartupError

if TYPE_CHECKING:
    from blockmon.backend.recorder import Recorder
    from engine.engine import Engine

STOPPED = "X_BLOCKMON_RECORDING_STOPPED"
"""An event of our own, to this front end only: recording has ended because of *reason*."""
_IN_THE_MIDDLE = "Begun in the middle of a session: what was there before is not in this file."


@runtime_checkable
class _Observable(Protocol):
    """A back end that knows of every command, whoever sends it."""

    def observe(self, recorder: Recorder) -> Callable[[], None]: ...


class RecordingBackend:
    """A Backend that can record what is done through *inner*; where *inner* is the engine itself, by anybody.

    path: file to record to from the start on, so that what the start-up options do is in it, too.
    """

    def __init__(self, inner: Backend, path: str | None = None, options: CommonOptions | None = None) -> None:
        self.inner = inner
        self._path = path
        self._options = options
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recorder: Recorder | None = None
        self._detach: Callable[[], None] = lambda: None
        self._wraps = False
        """Whether execute() has to tell the recorder."""
        self._callbacks: list[EventCallback] = []

    @property
    def title(self) -> str:
        """That of the back end."""
        return self.inner.title

    @title.setter
    def title(self, title: str) -> None:
        self.inner.title = title

    def __getattr__(self, name: str) -> Any:
        # What a kind of back end has beyond the protocol, such as the state of a connection. Many commands at a time
        # would get past execute().
        if name == "execute_many" and self._wraps:
            raise AttributeError(name)
        return getattr(self.inner, name)

    # -- recording -------------------------------------------------------------------------------------------

    @property
    def recording(self) -> str | None:
        """The file that is written; None when there is none."""
        return self._recorder.path if self._recorder is not None and self._recorder.active else None

    def record(self, path: str) -> None:
        """Record to *path*, which is replaced, from now on; what was recorded to before ends. Errors: OSError."""
        from blockmon.backend.recorder import Recorder

        places = self._options.places if self._options is not None else {}
        recorder = Recorder(path, self._notes(), self._recording_failed, places)
        self.stop_recording()
        self._recorder = recorder
        observable = self._observable()
        if observable is not None:
            self._detach = observable.observe(recorder)
        else:
            self._detach = self.inner.subscribe(recorder.events)
            self._wraps = True

    def stop_recording(self) -> str | None:
        """End the recording; returns the file that was written, None when there was none."""
        path, recorder = self.recording, self._recorder
        self._recorder, self._wraps = None, False
        self._detach()
        self._detach = lambda: None
        if recorder is not None:
            recorder.close()
        return path

    def _observable(self) -> _Observable | None:
        """The engine itself, if it is within reach behind other back ends."""
        inner: Any = self.inner
        while inner is not None and not isinstance(inner, _Observable):
            inner = getattr(inner, "inner", None)
        return inner

    def _notes(self) -> list[str]:
        notes = [f"Engine: {self.title}"]
        if self._options is not None and not self._started:
            notes += startup_notes(self._options)
        if self._started or self._observable() is None:
            notes.append(_IN_THE_MIDDLE)
        return notes

    def _recording_failed(self, text: str) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell, text)

    def _tell(self, text: str) -> None:
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        event: Event = {
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
            "event": STOPPED,
            "data": {"reason": text},
        }
        for callback in tuple(self._callbacks):
            callback([event])

    # -- the protocol ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._path is not None:
            try:
                self.record(self._path)
            except OSError as error:
                raise StartupError(f"--record {self._path}", error.strerror or str(error)) from None
        try:
            await self.inner.start()
        except BaseException:
            self.stop_recording()
            raise
        self._started = True

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if not self._wraps or self._recorder is None:
            return await self.inner.execute(command, arguments)
        ended = self._recorder.begin(command, arguments or {})
        try:
            result = await self.inner.execute(command, arguments)
        except CommandError as error:
            ended(None, error)
            raise
        except OSError as error:
            # It may have been carried out all the same; nobody knows.
            ended(None, CommandError("ConnectionLost", str(error)))
            raise
        ended(result, None)
        return result

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        end = self.inner.subscribe(callback)
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            end()
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    async def close(self) -> None:
        # Before the engine cancels its jobs: that is no part of what was done.
        self.stop_recording()
        await self.inner.close()


def start_recording(engine: Engine, options: CommonOptions, on_failure: Callable[[str], None]) -> Recorder:
    """Record what anybody has *engine* do to ``options.record``. Errors: StartupError.

    For an engine without a front end. on_failure: takes a sentence, on another thread, when recording has ended because
    nothing can be written.
    """
    from blockmon.backend.recorder import Recorder, attach

    assert options.record is not None
    try:
        recorder = Recorder(options.record, ["Engine: embedded", *startup_notes(options)], on_failure)
    except OSError as error:
        raise StartupError(f"--record {options.record}", error.strerror or str(error)) from None
    attach(recorder, engine)
    return recorder


def startup_notes(options: CommonOptions) -> list[str]:
    """What the head of a recording says of options that are no commands."""
    needed = [entry for entry in options.startup if entry[0] == "--drive" and not _is_bare_drive(entry[1])]
    given = [shlex.join(entry) for entry in needed]
    given += [f"--set {name}=FOLDER" for name in options.places]
    return [f"Replay with these options: {' '.join(given)}"] if given else []


def _is_bare_drive(text: str) -> bool:
    return "if=none" in text.split(",")

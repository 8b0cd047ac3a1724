"""What a front end sees of a block engine: QMP commands and events, wherever the engine runs.

The only package of blockmon that imports ``engine``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from blockmon.options import CommonOptions

Event = dict[str, Any]
"""A QMP event as on the wire: timestamp {seconds, microseconds}, event, data."""
EventCallback = Callable[[Sequence[Event]], None]


class CommandError(Exception):
    """A command failed. cls: QMP's error class. desc: its text."""

    def __init__(self, cls: str, desc: str) -> None:
        super().__init__(desc)
        self.cls = cls
        self.desc = desc

    def __str__(self) -> str:
        return self.desc


class Backend(Protocol):
    """An engine to talk to. Everything runs on the asyncio loop that start() was awaited on."""

    title: str
    """"embedded", or the address of the server."""

    async def start(self) -> None:
        """Open the engine or the connection. Errors: StartupError (an option or image at fault)."""

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and return its value. Errors: CommandError."""

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        """Call *callback* with batches of events, in order; returns what ends it."""

    async def close(self) -> None:
        """Close the engine (jobs are cancelled, images flushed and closed) or the connection. Idempotent."""


def open_backend(options: CommonOptions) -> Backend:
    """The back end that *options* ask for, not started yet. Errors: StartupError (an address that is none)."""
    backend: Backend
    if options.connect is not None:
        from blockmon.backend.remote import RemoteBackend

        backend = RemoteBackend(options.connect)
    else:
        from blockmon.backend.embedded import EmbeddedBackend

        backend = EmbeddedBackend(options)
    if options.read_only:
        from blockmon.backend.read_only import ReadOnlyBackend

        backend = ReadOnlyBackend(backend)
    from blockmon.backend.recording import RecordingBackend

    return RecordingBackend(backend, options.record, options)


def serve(options: CommonOptions) -> int:
    """Run a headless engine with its servers until quit or a signal; returns the exit status."""
    from blockmon.backend.serve import serve as run

    return run(options)


def option_help(option: str, text: str) -> str:
    """The help that an option such as ``--object TEXT`` asks for, '' when it asks for none. Errors: StartupError."""
    from blockmon.backend.startup import option_help as find

    return find(option, text)


__all__ = ["Backend", "CommandError", "Event", "EventCallback", "open_backend", "option_help", "serve"]

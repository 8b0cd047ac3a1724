"""What the prompt knows of the server it talks to: its schema, its HMP commands and the names of what lives in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockmon.backend import Backend
from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.model.schema import Schema
from blockmon.repl.hmp_help import HMPHelp
from blockmon.repl.live import LiveNames


@dataclass(slots=True)
class Knowledge:
    """Shared by completion, hints and the session; filled by the session as the server answers."""

    names: LiveNames
    schema: Schema = field(default_factory=lambda: Schema([]))
    hmp: HMPHelp = field(default_factory=HMPHelp)
    local_files: bool = True
    """Whether the server opens files of this machine, so that they are worth offering."""
    read_only: bool = False
    """Whether commands that change something are refused before they are sent."""


def refuses_changes(backend: Backend) -> bool:
    """Whether *backend*, or one that it is wrapped around (`inner`), lets only those commands through that look."""
    found: object = backend
    while found is not None:
        if isinstance(found, ReadOnlyBackend):
            return True
        found = getattr(found, "inner", None)
    return False

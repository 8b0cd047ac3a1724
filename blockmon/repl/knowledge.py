"""What the prompt knows of the server it talks to: its schema, its HMP commands and the names of what lives in it."""

from __future__ import annotations

from dataclasses import dataclass, field

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

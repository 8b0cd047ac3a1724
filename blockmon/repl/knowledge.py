"""What the prompt knows of the server it talks to: its schema, its HMP commands and the names of what lives in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockmon.backend import Backend, CommandError
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

    async def ask(self, backend: Backend) -> None:
        """Have everything asked for that a hint may need, now. Raises CommandError, OSError, EOFError, RuntimeError."""
        if not self.schema.commands:
            self.schema = await fetch_schema(backend)
            self.names.use_schema(self.schema)
        await self.names.ask()
        if self.schema.knows_hmp and not self.hmp.commands:
            self.hmp = await fetch_hmp_help(backend)


async def fetch_schema(backend: Backend) -> Schema:
    """The server's own description of its commands. Raises CommandError."""
    try:
        return Schema(await backend.execute("query-qmp-schema"))
    except CommandError:
        # A server without introspection still says which commands it has.
        names = await backend.execute("query-commands")
        return Schema([{"meta-type": "command", "name": n["name"], "arg-type": "", "ret-type": ""} for n in names])


async def fetch_hmp_help(backend: Backend) -> HMPHelp:
    """The HMP commands of a server that has a human monitor. Raises CommandError."""
    told = [
        str(await backend.execute("human-monitor-command", {"command-line": line})) for line in ("help", "help info")
    ]
    return HMPHelp.from_text(*told)


def refuses_changes(backend: Backend) -> bool:
    """Whether *backend*, or one that it is wrapped around (`inner`), lets only those commands through that look."""
    found: object = backend
    while found is not None:
        if isinstance(found, ReadOnlyBackend):
            return True
        found = getattr(found, "inner", None)
    return False

"""A back end that only looks: commands that change anything are refused here, before they are sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from blockmon.backend import Backend, CommandError, EventCallback

_QUERY = re.compile(r"(?:x-)?(?:debug-|blockmon-)?query-[a-z0-9-]+")
"""QAPI's rule for names: a command that only tells something is called query-…"""

_LOOKING = frozenset(
    {"qmp_capabilities", "qom-get", "qom-list", "qom-list-types", "qom-list-properties", "device-list-properties"}
)
"""Commands that only tell something although they are called otherwise."""

_NOT_ONLY_LOOKING = {
    # The event NIC_RX_FILTER_CHANGED is sent once, and again only after somebody has asked; that is the manager's.
    "query-rx-filter": "it takes an event away from the guest's manager",
}

_HMP_LOOKING = frozenset({"info", "help", "?", "print", "p"})
"""HMP commands that change nothing. `x` and `xp` are not among them: reading a device's registers can have effects."""


def why_refused(command: str, arguments: Mapping[str, Any] | None = None) -> str | None:
    """Why *command* is not for looking only, None when it is. What is not known to be harmless is refused."""
    if command in _NOT_ONLY_LOOKING:
        return f"'{command}' is refused: {_NOT_ONLY_LOOKING[command]}"
    if command in _LOOKING or _QUERY.fullmatch(command):
        return None
    if command == "human-monitor-command":
        line = str((arguments or {}).get("command-line", ""))
        first = line.split(maxsplit=1)[0] if line.strip() else ""
        # print/x and the like belong to their word. The line is checked as a whole; a second one has no first word.
        if first.partition("/")[0] in _HMP_LOOKING and not re.search(r"[\n\r]", line):
            return None
        return f"'{first}' may change something"
    return f"'{command}' may change something"


class ReadOnlyBackend:
    """*inner*, less everything that could change something there."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.title = f"{inner.title} (read-only)"

    async def start(self) -> None:
        await self.inner.start()

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        refused = why_refused(command, arguments)
        if refused is not None:
            text = f"read-only: {refused}, and was not sent; --rw, or no --read-only, allows it"
            raise CommandError("GenericError", text)
        return await self.inner.execute(command, arguments)

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        return self.inner.subscribe(callback)

    async def close(self) -> None:
        await self.inner.close()

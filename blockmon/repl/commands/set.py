"""`\\set`: the session's settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand
from blockmon.repl.host import PromptError
from blockmon.repl.printers import Fragments
from blockmon.repl.settings import SETTINGS, SettingError, did_you_mean

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

KEY, VALUE, HELP = "class:pygments.name.tag", "class:pygments.literal.string", "class:notice"


async def run(session: ReplSession, argument: str) -> bool:
    """List the settings, show one, or change one."""
    name, _, value = argument.partition(" ")
    if "=" in name:
        name, _, value = argument.partition("=")
    value = value.strip()
    if name and name not in SETTINGS:
        raise PromptError(f"there is no setting '{name}'{did_you_mean(name, SETTINGS)}")
    if value:
        if value[:1] in "\"'" and value[-1:] == value[:1] and len(value) > 1:
            value = value[1:-1]
        try:
            session.settings.set(name, value)
        except SettingError as error:
            raise PromptError(str(error)) from None
    session.emit([fragment for shown in ([name] if name else SETTINGS) for fragment in _line(session, shown)])
    return True


def _line(session: ReplSession, name: str) -> Fragments:
    setting = SETTINGS[name]
    value = session.settings[name]
    shown = value if setting.values else f'"{value}"'
    words = f" ({'|'.join(setting.values)})" if setting.values else ""
    return [(KEY, f"{name:8}"), (VALUE, f"{shown:8} "), (HELP, f"{setting.help}{words}"), ("", "\n")]


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """Names, then values."""
    name, blank, _ = argument.partition(" ")
    if not blank:
        return [(known + " ", setting.help) for known, setting in SETTINGS.items()]
    found = SETTINGS.get(name)
    return (
        [(value, "as it is now" if session.settings[name] == value else "") for value in found.values] if found else ()
    )


COMMAND = PromptCommand(
    "set",
    "[NAME [VALUE]]",
    "show or change settings of this session",
    run,
    complete,
    more="It lasts for this session; the configuration file says how one begins (blockmon --write-config).",
)

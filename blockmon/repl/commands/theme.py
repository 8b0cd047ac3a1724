"""`\\theme`: other colours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession


async def run(session: ReplSession, argument: str) -> bool:
    """Take a theme, or list them."""
    if argument:
        session.host.use_theme(argument)
        return True
    from blockmon.themes import load_themes

    themes, problems = load_themes()
    for name in sorted(themes):
        session.emit([("class:pygments.name.tag", name), ("", "\n")])
    for problem in problems:
        session.notice(problem)
    return True


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """The names of the themes there are."""
    from blockmon.themes import load_themes

    return [(name, "") for name in sorted(load_themes()[0])]


COMMAND = PromptCommand(
    "theme",
    "[NAME]",
    "change the colours, or list the themes",
    run,
    complete,
    more="Themes of your own lie beside the configuration file, in themes/NAME.toml.",
)

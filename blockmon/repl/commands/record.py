"""`\\record`: write what is done from now on to a command file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from blockmon.repl.commands import PromptCommand
from blockmon.repl.commands.save import complete_file, in_full
from blockmon.repl.host import PromptError

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession


async def run(session: ReplSession, argument: str) -> bool:
    """Begin or end a recording."""
    if not argument:
        raise PromptError("needs a FILE to write to, or off")
    if argument == "off":
        path = await _call(session, "stop_recording")
        if path is None:
            raise PromptError("nothing is being recorded")
        session.notice(f"recorded to {path}")
        return True
    before = getattr(session.backend, "recording", None)
    await _call(session, "record", in_full(argument))
    ended = f", no more to {before}" if before is not None else ""
    session.notice(f"recording to {argument}{ended}; \\record off ends it")
    return True


async def _call(session: ReplSession, name: str, *arguments: str) -> Any:
    method: Callable[..., Any] | None = getattr(session.backend, name, None)
    if method is None:
        raise PromptError("this back end cannot record")
    try:
        result = method(*arguments)
        return await result if inspect.isawaitable(result) else result
    except OSError as error:
        raise PromptError(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")) from None
    except (RuntimeError, ValueError) as error:
        raise PromptError(str(error)) from None


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """Files, and the word that ends it."""
    return [("off", "end the recording"), *complete_file(session, argument)]


COMMAND = PromptCommand(
    "record",
    "FILE|off",
    "write what is done to a command file",
    run,
    complete,
    more="The file is replaced, and replays with `blockmon run FILE`. \\record off ends it.",
    files=True,
)

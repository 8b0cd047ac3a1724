"""`\\save`: write the last answer, or everything that was typed and printed, to a file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockmon.repl.commands import PromptCommand
from blockmon.repl.files import files_matching
from blockmon.repl.host import PromptError

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

SESSION = "session "


async def run(session: ReplSession, argument: str) -> bool:
    """Write the file; one that is there already is kept."""
    whole = argument.startswith(SESSION)
    name = argument.removeprefix(SESSION).strip()
    if not name or argument == SESSION.strip():
        raise PromptError("needs a FILE to write to")
    if whole:
        text = "".join(session.printed)
    else:
        answer = session.runner.last()
        text = answer.replace("\r\n", "\n") if isinstance(answer, str) else json.dumps(answer, indent=2) + "\n"
    path = in_full(name)
    try:
        await asyncio.to_thread(_write, path, text)
    except FileExistsError:
        raise PromptError(f"{name} is there already") from None
    except OSError as error:
        raise PromptError(f"{name}: {error.strerror or error}") from None
    session.notice(f"wrote {'the session' if whole else 'the last answer'} to {name} ({len(text)} characters)")
    return True


def _write(path: str, text: str) -> None:
    # Answers may tell more of a machine than everybody on it should read.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def in_full(name: str) -> str:
    """A file name as the shell would read it."""
    return os.path.expanduser(name)


def complete_file(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """Names of files that begin with *argument*."""
    return [(file.path, "directory" if file.directory else file.format) for file in files_matching(argument)]


COMMAND = PromptCommand(
    "save",
    "[session] FILE",
    "write the last answer, or the whole session, to a file",
    run,
    complete_file,
    more="An answer of QMP is written as JSON, one of HMP as text. A file that is there already is not overwritten.",
    files=True,
)

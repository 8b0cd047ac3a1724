"""What an HMP command's answer tells. human-monitor-command itself succeeds whatever the command does."""

import re

# Errors as QEMU 7.2's monitor words them; most commands report by "Error: ", a few by their own sentence.
_FAILURE = re.compile(
    r"""
      Error:\ (?P<error>.*)
    | unknown\ command:\ .*
    | Device\ '.*'\ not\ found
    | 'commit'\ error\ for\ .*
    """,
    re.VERBOSE,
)
_TRY_HELP = re.compile(r'Try "help [^"]*" for more information')
_QEMU_IO_FAILURE = re.compile(
    r"""
      [\w-]+\ failed:\ .*
    | Pattern\ verification\ failed\ .*
    | Parsing\ error:\ .*
    | invalid\ option\ .*
    | non-numeric\ .*
    | bad\ argument\ count\ .*
    | command\ ".*"\ not\ found
    | Permission\ conflict\ on\ node\ .*
    | Block\ node\ is\ read-only
    """,
    re.VERBOSE,
)


def failure(line: str, answer: str) -> str | None:
    """Return what went wrong by *answer*, human-monitor-command's text for *line*; None when it succeeded."""
    said = [part.strip() for part in answer.splitlines() if part.strip()]
    if not said:
        return None
    if _TRY_HELP.fullmatch(said[-1]):
        return " ".join(said[:-1]) or said[-1]
    found = _FAILURE.fullmatch(said[0])
    if found is not None:
        return " ".join([found["error"] or said[0], *said[1:]])
    if line.split(maxsplit=1)[0] == "qemu-io":
        return next((part for part in said if _QEMU_IO_FAILURE.match(part)), None)
    return None

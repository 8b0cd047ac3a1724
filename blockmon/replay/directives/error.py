"""@error: the command in front must fail."""

import re
from typing import TYPE_CHECKING

from blockmon.lang.patterns import PatternError, compile_pattern
from blockmon.replay.directives import Action, Call, directive
from blockmon.replay.errors import StatementFailed

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

CLASSES = ("GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap")

_FORM = re.compile(r"(\S+)\s+/(.*)/\s*")


@directive("error", "CLASS /REGEX/")
def error(call: Call) -> Action:
    """The command in front failed with an error of CLASS whose text has a match of REGEX (`\\/` is a slash in it).

    An HMP command's error is a GenericError, but for an unknown command, which is CommandNotFound.
    """
    rest, begin = call.rest
    match = _FORM.fullmatch(rest)
    if match is None:
        raise call.usage()
    cls = match[1]
    if cls not in CLASSES:
        raise call.error(f"'{cls}' is no error class ({', '.join(CLASSES)})", begin)
    try:
        pattern = compile_pattern(match[2].replace("\\/", "/"))
    except PatternError as failed:
        raise call.error(str(failed), begin + match.start(2) + failed.offset) from None

    async def act(runner: "Runner") -> None:
        failure = runner.take_failure()
        if failure is None:
            runner.answer()
            raise StatementFailed("the command in front did not fail")
        if failure.cls != cls:
            raise StatementFailed(f"the error is of class {failure.cls}, expected {cls}: {failure.desc}")
        if not pattern.search(failure.desc):
            raise StatementFailed(f"the error is '{failure.desc}', expected /{match[2]}/")

    return act

"""A report in the XML that JUnit's readers know: one test case a script."""

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from blockmon.exitcodes import ExitStatus
from blockmon.replay.errors import ScriptError

_NOT_XML = "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


@dataclass(slots=True)
class Case:
    """How one script went; `skipped` says why it was left out."""

    name: str
    seconds: float = 0.0
    statements: int = 0
    status: ExitStatus = ExitStatus.OK
    failures: list[ScriptError] = field(default_factory=list)
    skipped: str = ""


def _text(text: str) -> str:
    return re.sub(_NOT_XML, "?", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attribute(text: str) -> str:
    escaped = _text(text).replace('"', "&quot;").replace("\n", "&#10;").replace("\t", "&#9;").replace("\r", "&#13;")
    return f'"{escaped}"'


def _kind(error: ScriptError) -> str:
    # JUnit tells what was found wrong from what kept a test from being one.
    return "error" if error.status in (ExitStatus.USAGE, ExitStatus.INTERRUPTED) else "failure"


def report(cases: Sequence[Case]) -> str:
    """The text of the report."""
    kinds = [{_kind(error) for error in case.failures} for case in cases]
    counts = (
        f'tests="{len(cases)}" failures="{sum("failure" in kind for kind in kinds)}"'
        f' errors="{sum(kind == {"error"} for kind in kinds)}" skipped="{sum(bool(case.skipped) for case in cases)}"'
        f' time="{sum(case.seconds for case in cases):.3f}"'
    )
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {counts}>",
        f'<testsuite name="blockmon" {counts}>',
    ]
    for case in cases:
        name, folder = os.path.basename(case.name), os.path.dirname(case.name) or "."
        lines.append(f'<testcase name={_attribute(name)} classname={_attribute(folder)} time="{case.seconds:.3f}">')
        if case.skipped:
            lines.append(f"<skipped message={_attribute(case.skipped)}/>")
        for error in case.failures:
            kind, first = _kind(error), error.message.split("\n", 1)[0]
            status = _attribute(error.status.name.lower())
            lines.append(f"<{kind} type={status} message={_attribute(first)}>{_text(str(error))}</{kind}>")
        lines.append("</testcase>")
    lines += ["</testsuite>", "</testsuites>"]
    return "\n".join(lines) + "\n"


def unwritable(path: str) -> str:
    """Why no report can be written to *path*, as far as that shows before; "" when nothing is in the way."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        return os.strerror(errno.EISDIR)
    if not os.path.isdir(folder):
        return os.strerror(errno.ENOENT)
    return "" if os.access(folder, os.W_OK) or os.path.exists(path) else os.strerror(errno.EACCES)


def write_report(path: str, cases: Sequence[Case]) -> None:
    """Write the report to *path*, the whole of it or nothing. Raises OSError."""
    if os.path.exists(path) and not os.path.isfile(path):
        # A pipe or a terminal.
        with open(path, "w", encoding="utf-8") as file:
            file.write(report(cases))
        return
    import tempfile

    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".junit.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(report(cases))
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

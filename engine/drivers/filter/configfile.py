"""QEMU's configuration files: ``[group]`` headers and ``name = "value"`` lines.

Rules of a line as in QEMU 7.2's qemu_config_foreach, odd ones included: a name without a value has the value "".
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import GenericError, os_error_text

_LINE_MAX = 1023
# A name ends at white space, whatever else is in it: 'a="b"' is a name, and a group's ']' may be missing.
_GROUP_WITH_ID = re.compile(r'\[\s*(\S{1,63}+)\s*"([^"]{1,63})"')
_GROUP = re.compile(r"\[([^\]]{1,63})")
_SETTING = re.compile(r'\s*(\S{1,63}+)\s*=\s*"([^"]{1,1023})"')
_NAME = re.compile(r"\s*(\S{1,63}+)")


@dataclass(slots=True)
class Group:
    """One group: its name, its id ('' for none) and its values as written."""

    name: str
    id: str = ""
    values: dict[str, str] = field(default_factory=dict)


def read_groups(filename: str, what: str) -> list[Group]:
    """The groups of the file, in order; a file that can't be opened is called a *what*. Errors: GenericError."""
    path = Path(filename)
    try:
        if path.is_dir():
            # QEMU's fopen() takes a directory; only reading it fails.
            raise GenericError("Cannot read config file: Is a directory")
        return parse_groups(path.read_bytes().decode("latin-1"))
    except OSError as exc:
        raise GenericError(f"Could not read {what}: {os_error_text(exc)}") from None


def parse_groups(text: str) -> list[Group]:
    """The groups in *text*, in order. Errors: GenericError."""
    groups: list[Group] = []
    for line in _pieces(text):
        if line.startswith(("\n", "#")):
            continue
        if match := _GROUP_WITH_ID.match(line):
            groups.append(Group(match[1], match[2]))
        elif match := _GROUP.match(line):
            groups.append(Group(match[1]))
        elif match := _SETTING.match(line) or _NAME.match(line):
            if not groups:
                raise GenericError("no group defined")
            groups[-1].values[match[1]] = match[2] if match.re is _SETTING else ""
        else:
            raise GenericError("parse error")
    return groups


def _pieces(text: str) -> Iterator[str]:
    """The lines with their ends, long ones in pieces."""
    for line in io.StringIO(text, newline="\n"):
        for at in range(0, len(line), _LINE_MAX):
            yield line[at : at + _LINE_MAX]

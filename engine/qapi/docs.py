"""What docstrings say about the members they document: lines ``name: text``, continued by deeper indentation."""

from __future__ import annotations

import re
from typing import Any, Final

_ENTRY: Final = re.compile(r"( *)@?([A-Za-z_][\w-]*): +(\S.*)\Z")


def member_docs(owner: Any) -> dict[str, str]:
    """Return the texts of the members that the docstring of *owner* (a class or function) describes."""
    docs: dict[str, str] = {}
    name = ""
    depth = 0
    for line in (owner.__doc__ or "").expandtabs().splitlines()[1:]:
        match = _ENTRY.match(line)
        if match is not None and (not name or len(match[1]) <= depth):
            depth, name = len(match[1]), match[2]
            docs[name] = match[3].rstrip()
        elif name and line.strip() and len(line) - len(line.lstrip()) > depth:
            docs[name] += " " + line.strip()
        else:
            name = ""
    return docs


def summary(owner: Any) -> str:
    """Return the docstring of *owner* without its member lines and indentation."""
    lines = (owner.__doc__ or "").expandtabs().strip().splitlines()
    kept: list[str] = []
    inside = False
    depth = 0
    for i, line in enumerate(lines):
        match = _ENTRY.match(line) if i else None
        indent = len(line) - len(line.lstrip())
        if match is not None:
            inside, depth = True, len(match[1])
        elif not (inside and line.strip() and indent > depth):
            inside = False
            kept.append(line.strip())
    return "\n".join(kept).strip()

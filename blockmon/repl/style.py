"""prompt_toolkit's styles from a theme's tables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style
from pygments.token import STANDARD_TYPES

# What a theme does not name. Attributes carry it where there is no colour.
_DEFAULTS = {
    "prompt": "bold",
    "completion-menu.completion.current": "reverse",
    "bottom-toolbar": "noreverse",
    "hint.current": "bold underline",
    "hint.command": "bold",
    "error": "ansired",
    "error.class": "bold ansired",
    "event.name": "bold",
    "notice": "italic",
    "validation-toolbar": "bold ansired",
}

_TOKENS = {short: ".".join(part.lower() for part in token) for token, short in STANDARD_TYPES.items() if short}


def _token(name: str) -> str:
    known = _TOKENS.get(name)
    if known is not None:
        return known
    name = name.lower()
    # Pygments' own shorthands: String stands for Literal.String.
    return f"literal.{name}" if name.split(".")[0] in ("string", "number") else name


def build_style(prompt: Mapping[str, str], syntax: Mapping[str, str]) -> Style:
    """The style of a theme's tables: *prompt* by class names, *syntax* by Pygments tokens, each by its short name
    (``kc``) or its dotted one (``keyword.constant``). Raises ValueError for a style string that is none."""
    rules = dict(_DEFAULTS)
    for name, style in syntax.items():
        rules["pygments." + _token(name)] = style
    rules.update(prompt)
    return Style.from_dict(rules)


def colour_depth(prompt: Mapping[str, str], syntax: Mapping[str, str]) -> ColorDepth | None:
    """How many colours a theme's tables want of the terminal: none where they name none, whatever the defaults of
    prompt_toolkit have; else (None) as many as it has. A theme that was asked for outweighs NO_COLOR."""
    words = {word.removeprefix("bg:") for table in (prompt, syntax) for text in table.values() for word in text.split()}
    if not any(word.startswith(("#", "ansi")) for word in words - {"ansidefault"}):
        return ColorDepth.DEPTH_1_BIT
    return ColorDepth.default() if os.environ.get("NO_COLOR") else None

"""Textual's names of keys as the byte sequences that prompt_toolkit reads from a terminal."""

from __future__ import annotations

from prompt_toolkit.input.ansi_escape_sequences import REVERSE_ANSI_SEQUENCES
from prompt_toolkit.keys import Keys

_NAMES = {
    "backspace": "\x7f",
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "shift+tab": REVERSE_ANSI_SEQUENCES[Keys.BackTab],
    # A new line within the input; few terminals tell it from Enter.
    "shift+enter": "\x1b\r",
    "ctrl+enter": "\r",
    "ctrl+@": "\x00",
    "ctrl+space": "\x00",
    "ctrl+underscore": "\x1f",
    "ctrl+slash": "\x1f",
    "ctrl+minus": "\x1f",
    "ctrl+backslash": "\x1c",
    "ctrl+right_square_bracket": "\x1d",
    "ctrl+circumflex_accent": "\x1e",
    "alt+backspace": "\x1b\x7f",
    "ctrl+backspace": "\x1b\x7f",
}

_PREFIXES = (("ctrl+shift+", "c-s-"), ("ctrl+", "c-"), ("shift+", "s-"), ("", ""))


def key_sequence(key: str, character: str | None) -> str | None:
    """What a terminal sends for the key that Textual calls *key*; None for keys that prompt_toolkit does not know."""
    if key in _NAMES:
        return _NAMES[key]
    if key.startswith("alt+"):
        rest = key.removeprefix("alt+")
        inner = rest if len(rest) == 1 else key_sequence(rest, None)
        if inner is None and character is not None and character.isprintable():
            inner = character
        return None if inner is None else "\x1b" + inner
    if character is not None and character.isprintable():
        return character
    if key.startswith("ctrl+") and len(key) == 6 and key[-1].isalpha():
        return chr(ord(key[-1].lower()) - ord("a") + 1)
    for prefix, short in _PREFIXES:
        if prefix and not key.startswith(prefix):
            continue
        try:
            return REVERSE_ANSI_SEQUENCES[Keys(short + key.removeprefix(prefix))]
        except (ValueError, KeyError):
            continue
    return None

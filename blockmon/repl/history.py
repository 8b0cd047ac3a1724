"""The history of the prompt, in the user's state directory, readable by the user alone."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

LONGEST_ENTRY = 16 * 1024
"""Characters; longer input is not remembered."""

LARGEST_FILE = 4 << 20
"""Bytes; a larger file is cut to its newer half when the program starts."""


_SECRET_OBJECT = re.compile(r"\bobject[-_]add\b")
_SECRET_DATA = re.compile(r"""\bdata["']?\s*[=:]""")
_PASSWORD = re.compile(r"""\b(?:password|passwd|passphrase)["']?\s*[=:]|\b(?:set_password|change-vnc-password)\b""")


def has_secret(text: str) -> bool:
    """Whether *text*, a command in any form, holds a secret in clear: the data of a secret object, or a password. Other
    commands name secrets by the ids of their objects, which tell nothing."""
    return bool(_SECRET_OBJECT.search(text) and _SECRET_DATA.search(text)) or bool(_PASSWORD.search(text))


class PrivateFileHistory(FileHistory):
    """prompt_toolkit's history file, mode 0600. A line that begins with a blank is not remembered, as in shells; so
    secrets can be kept out of it."""

    def append_string(self, string: str) -> None:
        """Remember *string*, unless it repeats the last entry."""
        if string[:1] in (" ", "") or len(string) > LONGEST_ENTRY:
            return
        if self._loaded_strings and self._loaded_strings[0] == string:
            return
        super().append_string(string)

    def load_history_strings(self) -> Iterable[str]:
        """The entries, newest first; none where the file cannot be read."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Append to the file, but no secrets; those are remembered until the session ends. A disk that is full or
        read-only costs the entry, not the session."""
        if has_secret(string):
            return
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        try:
            descriptor = os.open(self.filename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(f"\n# {datetime.datetime.now()}\n{lines}".encode())
        except OSError:
            pass


def open_history(path: Path | None = None) -> History:
    """The history at *path*, by default the user's; kept in memory only where that place cannot be written."""
    path = path if path is not None else user_state_path("blockmon") / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        _trim(path)
    except OSError:
        return InMemoryHistory()
    return PrivateFileHistory(str(path))


def _trim(path: Path) -> None:
    if path.stat().st_size <= LARGEST_FILE:
        return
    content = path.read_bytes()
    start = content.find(b"\n# ", len(content) - LARGEST_FILE // 2)
    beside = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content[start:] if start >= 0 else b"")
    os.replace(beside, path)

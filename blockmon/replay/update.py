"""Writing answers into the scripts that expect them (`--update`)."""

import contextlib
import os
from dataclasses import dataclass

from blockmon.replay.statements import ANSWER_MARK


@dataclass(frozen=True, slots=True)
class Edit:
    """A new expected answer: the `----` is at `line` (from 1), followed by `old` lines; see Expected.updated for
    `new`."""

    line: int
    old: int
    new: tuple[int | str, ...]


class Updates:
    """Collects new expected answers; `write` puts them into the files."""

    def __init__(self) -> None:
        self._edits: dict[str, dict[int, Edit]] = {}

    def add(self, path: str, edit: Edit) -> bool:
        """Note an edit; False when another round of a loop had another answer for the same place."""
        return self._edits.setdefault(path, {}).setdefault(edit.line, edit) == edit

    def known(self, path: str, line: int) -> Edit | None:
        """The edit noted for this place."""
        return self._edits.get(path, {}).get(line)

    def write(self) -> dict[str, str]:
        """Rewrite the files; returns what went wrong, by file."""
        wrong: dict[str, str] = {}
        for path, edits in self._edits.items():
            try:
                _rewrite(path, list(edits.values()))
            except OSError as error:
                wrong[path] = f"not updated: {error.strerror or error}"
            except ValueError as error:
                wrong[path] = f"not updated: {error}"
        self._edits.clear()
        return wrong


def _rewrite(path: str, edits: list[Edit]) -> None:
    """Replace the file as a whole, so that whoever looks sees the old one or the new one."""
    import tempfile

    path = os.path.realpath(path)
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
        mode = os.fstat(file.fileno()).st_mode
    for edit in sorted(edits, key=lambda edit: -edit.line):
        if edit.line > len(lines) or lines[edit.line - 1].strip() != ANSWER_MARK.encode():
            raise ValueError("the file has changed while it ran")
        old = lines[edit.line : edit.line + edit.old]
        end = b"\r" if lines[edit.line - 1].endswith(b"\r") else b""
        new = [old[line] if isinstance(line, int) else line.encode() + end for line in edit.new]
        if edit.line + edit.old >= len(lines):
            new.append(b"")  # the last line gets an end
        lines[edit.line : edit.line + edit.old] = new
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    try:
        with open(handle, "wb") as file:
            file.write(b"\n".join(lines))
            file.flush()
            os.fchmod(file.fileno(), mode & 0o7777)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise

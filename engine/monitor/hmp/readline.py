"""Editing of one line over a plain byte stream, as QEMU's monitor does it: it echoes, moves, recalls, completes.

Only the escape sequences that every terminal has are sent. The line is redrawn from its start after each change.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

LINE_LIMIT = 4095
"""Characters of a line; more are not taken."""
HISTORY_LIMIT = 64
_ECHO_EACH = 256
"""Length of a line up to which each key is echoed by itself; redrawing a longer one for every key costs too much."""
_COLUMNS = 80

Complete = Callable[[str], tuple[str, Sequence[str]]]
"""Gives, for what stands left of the cursor, the word to complete and all that it may become."""


class Readline:
    """The line being edited. write: takes text for the terminal, line ends as CR LF."""

    def __init__(self, prompt: str, write: Callable[[str], None], complete: Complete) -> None:
        self.history: list[str] = []
        self._prompt = prompt
        self._write = write
        self._complete = complete
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._escape = ""
        self._recalled: int | None = None
        self._text = ""
        self._cursor = 0
        self._shown = ""
        self._shown_cursor = 0

    def show_prompt(self) -> None:
        """Begin a new line."""
        self._write(self._prompt)
        self._text = self._shown = ""
        self._cursor = self._shown_cursor = 0
        self._recalled = None

    def feed(self, data: bytes) -> tuple[str | None, bytes]:
        """Take bytes up to the end of a line; return the line, if one is complete, and the bytes behind it."""
        for index in range(len(data)):
            byte = data[index : index + 1]
            if not self._escape and byte in (b"\r", b"\n"):
                self._update()
                return self._enter(), data[index + 1 :]
            for character in self._decoder.decode(byte):
                self._key(character)
                if len(self._text) <= _ECHO_EACH:
                    self._update()
        self._update()
        return None, b""

    def _enter(self) -> str:
        line = self._text
        self._remember(line)
        self._write("\r\n")
        return line

    def _remember(self, line: str) -> None:
        if line:
            if line in self.history:
                self.history.remove(line)
            self.history.append(line)
            del self.history[:-HISTORY_LIMIT]

    # -- keys ------------------------------------------------------------------------------------------------

    def _key(self, key: str) -> None:
        if self._escape:
            self._escape_key(key)
            return
        action = self._KEYS.get(key)
        if action is not None:
            action(self)
        elif key == "\x1b":
            self._escape = key
        elif key >= " ":
            self._insert(key)

    def _escape_key(self, key: str) -> None:
        self._escape += key
        if self._escape in ("\x1b[", "\x1bO") or (self._escape.startswith("\x1b[") and key.isdigit()):
            return
        sequence, self._escape = self._escape[1:], ""
        action = self._SEQUENCES.get(sequence.replace("O", "[", 1))
        if action is not None:
            action(self)

    def _insert(self, text: str) -> None:
        if len(self._text) + len(text) <= LINE_LIMIT:
            self._text = self._text[: self._cursor] + text + self._text[self._cursor :]
            self._cursor += len(text)

    def _home(self) -> None:
        self._cursor = 0

    def _end(self) -> None:
        self._cursor = len(self._text)

    def _left(self) -> None:
        self._cursor = max(self._cursor - 1, 0)

    def _right(self) -> None:
        self._cursor = min(self._cursor + 1, len(self._text))

    def _delete(self) -> None:
        self._text = self._text[: self._cursor] + self._text[self._cursor + 1 :]

    def _backspace(self) -> None:
        if self._cursor:
            self._left()
            self._delete()

    def _backword(self) -> None:
        start = len(self._text[: self._cursor].rstrip(" "))
        while start and self._text[start - 1] != " ":
            start -= 1
        self._text = self._text[:start] + self._text[self._cursor :]
        self._cursor = start

    def _kill_before(self) -> None:
        self._text = self._text[self._cursor :]
        self._cursor = 0

    def _kill_behind(self) -> None:
        self._text = self._text[: self._cursor]

    def _up(self) -> None:
        at = len(self.history) if self._recalled is None else self._recalled
        if at:
            self._recall(at - 1)

    def _down(self) -> None:
        if self._recalled is None:
            return
        if self._recalled + 1 < len(self.history):
            self._recall(self._recalled + 1)
        else:
            self._recalled = None
            self._text = ""
            self._cursor = 0

    def _recall(self, index: int) -> None:
        self._recalled = index
        self._text = self.history[index]
        self._cursor = len(self._text)

    def _tab(self) -> None:
        word, found = self._complete(self._text[: self._cursor])
        if not found:
            return
        if len(found) == 1:
            self._insert(found[0][len(word) :] + ("" if found[0].endswith("/") else " "))
            return
        first, last = min(found), max(found)
        common = 0
        while common < min(len(first), len(last)) and first[common] == last[common]:
            common += 1
        self._insert(first[len(word) : common])
        self._list(sorted(set(found)))

    def _list(self, found: Sequence[str]) -> None:
        width = min(max(max(map(len, found)) + 2, 10), _COLUMNS)
        per_line = max(_COLUMNS // width, 1)
        lines = [found[at : at + per_line] for at in range(0, len(found), per_line)]
        self._write("\r\n" + "".join("".join(f"{word:<{width}}" for word in line) + "\r\n" for line in lines))
        self._write(self._prompt)
        self._shown = ""
        self._shown_cursor = 0

    # -- the terminal ----------------------------------------------------------------------------------------

    def _update(self) -> None:
        if self._text != self._shown:
            self._write("\x1b[D" * self._shown_cursor + self._text + "\x1b[K")
            self._shown = self._text
            self._shown_cursor = len(self._text)
        if self._cursor != self._shown_cursor:
            steps = self._cursor - self._shown_cursor
            self._write("\x1b[C" * steps if steps > 0 else "\x1b[D" * -steps)
            self._shown_cursor = self._cursor

    _KEYS = {  # noqa: RUF012
        "\x01": _home,
        "\x02": _left,
        "\x04": _delete,
        "\x05": _end,
        "\x06": _right,
        "\x08": _backspace,
        "\t": _tab,
        "\x0b": _kill_behind,
        "\x0e": _down,
        "\x10": _up,
        "\x15": _kill_before,
        "\x17": _backword,
        "\x7f": _backspace,
    }
    _SEQUENCES = {  # noqa: RUF012
        "[A": _up,
        "[B": _down,
        "[C": _right,
        "[D": _left,
        "[F": _end,
        "[H": _home,
        "[1~": _home,
        "[3~": _delete,
        "[4~": _end,
    }

"""The user's configuration: a TOML file in the platform's configuration directory.

What is wrong in it costs that one setting: it keeps its default, and a line names the file, the line and the setting.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from blockmon.options import StartupError

PANES = ("graph", "jobs", "inspector", "events")
FILE_NAME = "config.toml"

DEFAULT = """\
# blockmon's configuration. Every setting is here with its default; take the # away in front of what you change.

# Colours: a theme of blockmon's, or NAME for themes/NAME.toml beside this file. Without it the terminal decides.
#theme = "dark"

[prompt]
# The text in front of the input.
#text = "(qmp) "
# The keys of the line editor: emacs or vi.
#keys = "emacs"
# Lists of objects as a table, or every answer as json.
#answers = "table"
# Answers longer than the terminal go to $PAGER, or less -R (blockmon repl).
#pager = true
# How long a command took: auto (when it was slow), on or off.
#timing = "auto"
# Events between the answers (blockmon repl; the screen has a pane for them).
#events = true
# Remember what was typed from one session to the next.
#history = true

[screen]
# The panes there are, the prompt aside.
#panes = ["graph", "jobs", "inspector", "events"]
# Columns and rows of the terminal from which on the panes stand side by side.
#wide = 110
#tall = 22
# Rows of the prompt with its title; 0 lets the terminal's size decide.
#prompt-rows = 0
# Updates of the screen in a second at most, while something moves.
#updates = 10

[keys]
# Other keys for the screen, by what they do; F1 lists what there is. Several keys are separated by commas.
#"help" = "f1"
#"pane.graph" = "f2"
#"pane.jobs" = "f3"
#"pane.events" = "f4"
#"pane.repl" = "f5"
#"pane.inspector" = "f6"
#"theme.next" = "f7"
#"zoom.anywhere" = "f8"
#"actions" = "a"
#"zoom" = "z"
#"back" = "escape"
#"quit" = "ctrl+q"
"""


@dataclass(slots=True)
class PromptConfig:
    """Table [prompt]."""

    text: str = "(qmp) "
    keys: str = "emacs"
    answers: str = "table"
    pager: bool = True
    timing: str = "auto"
    events: bool = True
    history: bool = True


@dataclass(slots=True)
class ScreenConfig:
    """Table [screen]. Sizes in columns and rows of the terminal."""

    panes: tuple[str, ...] = PANES
    wide: int = 110
    tall: int = 22
    prompt_rows: int = 0
    updates: float = 10.0


@dataclass(slots=True)
class Config:
    """What the file says, with the defaults for what it does not."""

    path: Path
    theme: str | None = None
    prompt: PromptConfig = field(default_factory=PromptConfig)
    screen: ScreenConfig = field(default_factory=ScreenConfig)
    keys: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What in the file is wrong, one line each: FILE:LINE: SETTING: why."""
    text: str = field(default="", repr=False)
    """The file's."""

    def problem(self, name: str, why: str, table: str = "") -> None:
        """Note something wrong with the setting *name* in *table*, which perhaps only its user can tell."""
        line = _line_of(self.text.split("\n"), table, name)
        place = f"{self.path}:{line}" if line else str(self.path)
        self.problems.append(f"{place}: {f'{table}.{name}' if table else name}: {why}")

    def settings(self) -> list[tuple[str, str]]:
        """The prompt's settings, by the names that the prompt has for them."""
        prompt = self.prompt
        return [
            ("prompt", prompt.text),
            ("keys", prompt.keys),
            ("json", "on" if prompt.answers == "json" else "off"),
            ("pager", "on" if prompt.pager else "off"),
            ("timing", prompt.timing),
            ("events", "on" if prompt.events else "off"),
        ]


def config_directory() -> Path:
    """Where the configuration file and the user's themes lie."""
    # A test, or a user with several of them, says it as everywhere else.
    home = os.environ.get("XDG_CONFIG_HOME")
    if home:
        return Path(home) / "blockmon"
    from platformdirs import user_config_path

    return user_config_path("blockmon")


def config_path() -> Path:
    """The configuration file, which need not be there."""
    return config_directory() / FILE_NAME


def write_default(path: Path | None = None) -> Path:
    """Write the commented default to *path*, by default the user's; returns where. Raises StartupError: it is there
    already, or cannot be written."""
    path = path if path is not None else config_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(DEFAULT)
    except FileExistsError:
        raise StartupError(str(path), "is there already; it is not overwritten") from None
    except OSError as error:
        raise StartupError(str(path), error.strerror or str(error)) from None
    return path


def load_config(path: Path | None = None) -> Config:
    """Read the user's configuration. Never fails: what is wrong is told in `Config.problems`."""
    path = path if path is not None else config_path()
    config = Config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return config
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        config.problems.append(f"{path}: {reason}; the defaults are used")
        return config
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        config.problems.append(f"{path}: {error}; the defaults are used")
        return config
    config.text = text
    _Reader(config).read(content)
    return config


Check = Callable[[Any], Any]


class _Bad(Exception):
    """A value that cannot be; the text says what can."""


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Bad("true or false is expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _Bad("a text is expected")
    return value


def _one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise _Bad(f"{' or '.join(words)} is expected")
        return value

    return check


def _number(least: float, most: float, *, whole: bool = True) -> Check:
    def check(value: Any) -> float:
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise _Bad(f"a {'whole ' if whole else ''}number from {least:g} to {most:g} is expected")
        return value

    return check


def _panes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or any(name not in PANES for name in value):
        raise _Bad(f"a list of some of {', '.join(PANES)} is expected")
    return tuple(name for name in PANES if name in value)


_PROMPT: Mapping[str, Check] = {
    "text": _text,
    "keys": _one_of("emacs", "vi"),
    "answers": _one_of("table", "json"),
    "pager": _switch,
    "timing": _one_of("auto", "on", "off"),
    "events": _switch,
    "history": _switch,
}
_SCREEN: Mapping[str, Check] = {
    "panes": _panes,
    "wide": _number(40, 1000),
    "tall": _number(10, 1000),
    "prompt-rows": _number(0, 200),
    "updates": _number(0.2, 30, whole=False),
}
_TABLES = ("prompt", "screen", "keys")


class _Reader:
    """Takes what a file says into a `Config`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def read(self, content: Mapping[str, Any]) -> None:
        """Take everything that is right, and note the rest."""
        config = self._config
        for name, value in content.items():
            if name == "theme":
                self._take("", name, value, _text, partial(setattr, config, "theme"))
            elif name not in _TABLES:
                self._note("", name, f"there is no such {'table' if isinstance(value, dict) else 'setting'}", _TABLES)
            elif not isinstance(value, dict):
                self._note("", name, f"a table is expected: [{name}]")
        self._table(content, "prompt", _PROMPT, config.prompt)
        self._table(content, "screen", _SCREEN, config.screen)
        keys = content.get("keys")
        for name, value in keys.items() if isinstance(keys, dict) else ():
            self._take("keys", name, value, _text, partial(config.keys.__setitem__, name))

    def _table(self, content: Mapping[str, Any], table: str, checks: Mapping[str, Check], target: object) -> None:
        found = content.get(table)
        for name, value in found.items() if isinstance(found, dict) else ():
            if name not in checks:
                self._note(table, name, "there is no such setting", tuple(checks))
                continue
            self._take(table, name, value, checks[name], partial(setattr, target, name.replace("-", "_")))

    def _take(self, table: str, name: str, value: Any, check: Check, take: Callable[[Any], None]) -> None:
        try:
            take(check(value))
        except _Bad as bad:
            self._note(table, name, f"{bad}, not {value!r}; the default is used")

    def _note(self, table: str, name: str, why: str, known: tuple[str, ...] = ()) -> None:
        near = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        self._config.problem(name, f"{why}{hint}", table)


def _line_of(lines: Sequence[str], table: str, name: str) -> int:
    """The line that *name* in *table* stands in; 0 when it cannot be told."""
    current = ""
    key = re.compile(rf"""\s*(?:\[\s*)?["']?{re.escape(name)}["']?\s*(?:[=\].])""")
    for number, line in enumerate(lines, 1):
        heading = re.match(r"""\s*\[\s*["']?([\w.-]+)["']?\s*\]""", line)
        if heading is not None:
            if not table and heading[1] == name:
                return number
            current = heading[1]
        elif current == table and key.match(line):
            return number
    return 0

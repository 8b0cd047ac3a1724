"""What a user can set for a session: by name, at run time (`\\set`) and in the configuration file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blockmon.config import Config

DEFAULT_PROMPT = "(qmp) "


class SettingError(ValueError):
    """A setting that there is not, or a value that it cannot have."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `values` are the words it can be, none for free text."""

    name: str
    default: str
    values: tuple[str, ...]
    help: str


_SWITCH = ("on", "off")

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("json", "off", _SWITCH, "answers that are lists of objects as JSON instead of a table"),
        Setting("pager", "on", _SWITCH, "answers longer than the terminal go to $PAGER, or less -R"),
        Setting("timing", "auto", ("auto", "on", "off"), "how long a command took: always, or when it was slow (auto)"),
        Setting("events", "on", _SWITCH, "events between the answers"),
        Setting("keys", "emacs", ("emacs", "vi"), "the keys of the line editor"),
        Setting("prompt", DEFAULT_PROMPT, (), "the text in front of the input"),
    )
}

_ON, _OFF = ("on", "true", "yes", "1"), ("off", "false", "no", "0")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name in *known* that *word* was most likely meant to be, if one is near."""
    names = sorted(known)
    found = difflib.get_close_matches(word, names, 1, 0.6)
    if found:
        return found[0]
    begins = [name for name in names if word and name.startswith(word)]
    return begins[0] if len(begins) == 1 else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'NAME'?`, or nothing where no name is near."""
    found = nearest(word, known)
    return f"; did you mean '{found}'?" if found is not None else ""


def parse_setting(name: str, value: str) -> str:
    """The value as it is kept. Raises SettingError."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise SettingError(f"there is no setting '{name}'{did_you_mean(name, SETTINGS)}")
    if not setting.values:
        return value
    word = value.lower()
    if setting.values[-2:] == _SWITCH:
        word = "on" if word in _ON else "off" if word in _OFF else word
    if word not in setting.values:
        near = did_you_mean(word, setting.values)
        raise SettingError(f"{name} can be {' or '.join(setting.values)}, not '{value}'{near}")
    return word


def settings_of(config: Config) -> Settings:
    """The settings that a session begins with."""
    settings = Settings()
    for name, value in config.settings():
        settings.set(name, value)
    return settings


class Settings:
    """The settings of one session. *listeners* are called with the name of whatever has changed."""

    def __init__(self) -> None:
        self._values = {name: setting.default for name, setting in SETTINGS.items()}
        self.listeners: list[Callable[[str], None]] = []

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def on(self, name: str) -> bool:
        """Whether a switch is on."""
        return self._values[name] == "on"

    def set(self, name: str, value: str) -> None:
        """Change a setting. Raises SettingError."""
        parsed = parse_setting(name, value)
        if parsed != self._values[name]:
            self._values[name] = parsed
            for listener in self.listeners:
                listener(name)

"""What of the user's configuration is about the screen: its keys and its panes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from textual.binding import Binding, BindingType
from textual.keys import KEY_NAME_REPLACEMENTS, Keys

from blockmon.config import Config
from blockmon.repl.settings import did_you_mean
from blockmon.tui.bars import Tab
from blockmon.tui.events_pane import EventsPane
from blockmon.tui.graph_pane import GraphPane
from blockmon.tui.inspector import InspectorPane
from blockmon.tui.jobs_pane import JobsPane
from blockmon.tui.prompt_pane import APP_KEYS
from blockmon.tui.rows import RowsPane

_MODIFIERS = ("ctrl", "alt", "shift", "super", "meta", "hyper")
_NAMES = {key.value for key in Keys} | set(KEY_NAME_REPLACEMENTS) | {"backspace", "space", "slash", "colon"}


def is_key(key: str) -> bool:
    """Whether *key* is one that Textual can tell: `f2`, `ctrl+g`, `slash`, `a`."""
    *modifiers, name = key.split("+") if key != "+" else [key]
    if any(modifier not in _MODIFIERS for modifier in modifiers):
        return False
    return (len(name) == 1 and name.isprintable()) or name in _NAMES or _is_name_of_character(name)


def _is_name_of_character(name: str) -> bool:
    import unicodedata

    try:
        unicodedata.lookup(name.replace("_", " ").upper())
    except KeyError:
        return False
    return True


def pane_bindings() -> list[BindingType]:
    """The bindings of all panes."""
    return [binding for pane in (GraphPane, JobsPane, EventsPane, InspectorPane, RowsPane) for binding in pane.BINDINGS]


def keymap(config: Config, bindings: Iterable[BindingType]) -> dict[str, str]:
    """The keys that *config* gives to some of *bindings*, by their ids; what is wrong becomes a problem of it."""
    known = {binding.id: binding for binding in bindings if isinstance(binding, Binding) and binding.id}
    chosen: dict[str, str] = {}
    for name, keys in config.keys.items():
        wrong = [key for key in keys.split(",") if not is_key(key.strip())]
        if name not in known:
            config.problem(name, f"nothing on the screen is called so{did_you_mean(name, known)}", "keys")
        elif wrong:
            config.problem(name, f"'{wrong[0]}' is no key; write f2, ctrl+g, slash or a", "keys")
        else:
            chosen[name] = ",".join(key.strip() for key in keys.split(","))
    return chosen


def keys_of_application(chosen: Mapping[str, str], bindings: Iterable[BindingType]) -> frozenset[str]:
    """The keys that the prompt leaves to the application: those that work everywhere, as they are now."""
    found = set(APP_KEYS)
    for binding in bindings:
        if isinstance(binding, Binding) and binding.priority and binding.id is not None and binding.id in chosen:
            # A single character is for typing, whatever it means elsewhere.
            found |= {key for key in chosen[binding.id].split(",") if len(key) > 1}
    return frozenset(found)


def remapped(bindings: Iterable[BindingType], chosen: Mapping[str, str]) -> list[BindingType]:
    """*bindings* as they are with the keys that were chosen."""
    return [
        dataclasses.replace(binding, key=chosen[binding.id], key_display=None)
        if isinstance(binding, Binding) and binding.id is not None and binding.id in chosen
        else binding
        for binding in bindings
    ]


def tabs(all_tabs: Sequence[Tab], config: Config, chosen: Mapping[str, str]) -> tuple[Tab, ...]:
    """The tabs of the panes that there are, with their keys."""
    kept = (tab for tab in all_tabs if tab.id in config.screen.panes)
    return tuple(dataclasses.replace(tab, key=shown_key(chosen.get(f"pane.{tab.id}"), tab.key)) for tab in kept)


def shown_key(keys: str | None, usual: str) -> str:
    """The first of the *keys* that were chosen, as a tab has it; *usual* where none were."""
    if keys is None:
        return usual
    key = keys.split(",")[0]
    return key.upper() if len(key) <= 3 else key.replace("ctrl+", "^")

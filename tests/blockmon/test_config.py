"""The configuration file: what it sets, what is told of one that is wrong, writing the default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from blockmon.config import DEFAULT, PANES, Config, config_path, load_config, write_default
from blockmon.options import StartupError
from blockmon.repl.settings import settings_of


def config(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(path)


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    found = load_config(tmp_path / "none.toml")
    assert (found.problems, found.theme, found.screen.panes, found.keys) == ([], None, PANES, {})


def test_every_setting_is_taken(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        'theme = "light"\n[prompt]\ntext = "> "\nkeys = "vi"\nanswers = "json"\npager = false\ntiming = "on"\n'
        'events = false\nhistory = false\n[screen]\npanes = ["events", "graph"]\nwide = 100\ntall = 30\n'
        'prompt-rows = 9\nupdates = 2.5\n[keys]\n"pane.graph" = "ctrl+g"\n',
    )
    assert found.problems == []
    assert found.theme == "light"
    assert found.keys == {"pane.graph": "ctrl+g"}
    assert not found.prompt.history
    screen = found.screen
    assert (screen.panes, screen.wide, screen.tall) == (("graph", "events"), 100, 30)
    assert (screen.prompt_rows, screen.updates) == (9, 2.5)
    settings = settings_of(found)
    assert [settings[name] for name in ("prompt", "keys", "json", "pager", "timing", "events")] == [
        "> ", "vi", "on", "off", "on", "off",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[prompt]\nkeys = "vim"', ":2: prompt.keys: emacs or vi is expected, not 'vim'; the default is used"),
        ('\n\n[prompt]\nkey = "vi"', ":4: prompt.key: there is no such setting; did you mean 'keys'?"),
        ("[screen]\nwide = true", ":2: screen.wide: a whole number from 40 to 1000 is expected, not True; the"),
        ("[screen]\nwide = 3", ":2: screen.wide: a whole number from 40"),
        ('[screen]\npanes = ["grap"]', ":2: screen.panes: a list of some of graph, jobs, inspector, events is"),
        ("[promt]\nx = 1", ":1: promt: there is no such table; did you mean 'prompt'?"),
        ("screen = 1", ":1: screen: a table is expected: [screen]"),
        ("theme = 1", ":1: theme: a text is expected, not 1"),
        ("[keys]\nhelp = 1", ":2: keys.help: a text is expected"),
        ("[prompt\n", "(at line 1, column 8); the defaults are used"),
    ],
)
def test_what_is_wrong_is_told_and_costs_one_setting(tmp_path: Path, text: str, problem: str) -> None:
    found = config(tmp_path, text)
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{tmp_path}/config.toml:")
    assert problem in found.problems[0]
    assert found.prompt.keys == "emacs"
    assert found.screen.wide == 110


def test_a_wrong_setting_does_not_cost_its_neighbours(tmp_path: Path) -> None:
    found = config(tmp_path, '[prompt]\nkeys = "vim"\ntiming = "on"\n')
    assert found.prompt.timing == "on"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    assert load_config(path).problems == [f"{path}: not UTF-8; the defaults are used"]


def test_the_default_file_changes_nothing_and_has_every_setting(tmp_path: Path) -> None:
    found = config(tmp_path, DEFAULT)
    assert found.problems == []
    uncommented = re.sub(r'(?m)^#(?=["\w-]+"? = )', "", DEFAULT)
    told = config(tmp_path, uncommented)
    assert told.problems == []
    plain = load_config(tmp_path / "none")
    assert (told.prompt, told.screen) == (plain.prompt, plain.screen)
    content = tomllib.loads(uncommented)
    assert set(content["prompt"]) == {name.replace("_", "-") for name in type(found.prompt).__slots__}
    assert set(content["screen"]) == {name.replace("_", "-") for name in type(found.screen).__slots__}


def test_the_keys_of_the_default_file_are_those_of_the_screen(tmp_path: Path) -> None:
    from blockmon.tui.app import BlockmonApp
    from blockmon.tui.configured import keymap

    found = config(tmp_path, re.sub(r'(?m)^#(?=["\w-]+"? = )', "", DEFAULT))
    chosen = keymap(found, BlockmonApp.BINDINGS)
    assert found.problems == []
    usual = {binding.id: binding.key for binding in BlockmonApp.BINDINGS}  # type: ignore[union-attr]
    assert chosen == {name: usual[name] for name in chosen}


def test_the_default_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = write_default()
    assert path == config_path() == tmp_path / "config" / "blockmon" / "config.toml"
    assert path.read_text() == DEFAULT
    with pytest.raises(StartupError, match="is there already"):
        write_default()
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"config\.toml: "):
        write_default(tmp_path / "file" / "config.toml")

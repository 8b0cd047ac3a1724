"""Write blockmon/repl/docs.json: what the engine's docstrings say about arguments and their values.

The introspection that servers give holds no text; the prompt explains arguments by this table, with every server.
``scripts/make_docs.py`` writes the file, ``--check`` only tells (status 1) whether it is out of date.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "blockmon" / "repl" / "docs.json"
LONGEST = 110
"""Characters of a text; longer ones end with their last whole clause that fits."""


class Collector:
    """Walks through the types of all commands' arguments."""

    def __init__(self) -> None:
        self.scopes: list[list[str]] = []
        self.enums: dict[str, dict[str, str]] = {}
        self._commands: dict[tuple[str, int, str], list[str]] = {}
        self._command = ""
        self._seen: set[int] = set()

    @property
    def members(self) -> dict[str, list[list[Any]]]:
        """For each name of a member the scopes it is in, what it is for there, and the commands that have it so."""
        found: dict[str, list[list[Any]]] = {}
        for (name, scope, text), commands in sorted(self._commands.items()):
            found.setdefault(name, []).append([scope, text, commands])
        return found

    def command(self, command: Any) -> None:
        """Take the arguments of a command of the engine's registry."""
        self._command, self._seen = command.name, set()
        boxed = command.argument_type
        if boxed is None:
            self._members(command.arguments)
        else:
            self._type(boxed)

    def _type(self, tp: Any) -> None:
        from engine.qapi.types import Alternate, Array, Enum, Struct, Union

        if id(tp) in self._seen:
            return
        self._seen.add(id(tp))
        if isinstance(tp, Array):
            self._type(tp.element)
        elif isinstance(tp, Alternate):
            for branch in tp.branches.values():
                self._type(branch)
        elif isinstance(tp, type) and issubclass(tp, Enum):
            texts = texts_of(tp, [member.value for member in tp])
            if texts:
                self.enums[tp.__name__] = {member.value: texts.get(member.value, "") for member in tp}
        elif isinstance(tp, type) and issubclass(tp, Struct):
            self._members(tp.qapi_members())
            if issubclass(tp, Union):
                tag = tp.qapi_tag_type()
                for value in tag:
                    self._type(tp.qapi_branch_type(getattr(value, "value", value)))

    def _members(self, members: Any) -> None:
        owners: dict[int, tuple[Any, list[str]]] = {}
        for member in members:
            owners.setdefault(id(member.owner), (member.owner, []))[1].append(member.name)
            self._type(member.type)
        for declared_by, names in owners.values():
            texts = texts_of(declared_by, names)
            if texts and sorted(names) not in self.scopes:
                self.scopes.append(sorted(names))
            for name, text in texts.items():
                commands = self._commands.setdefault((name, self.scopes.index(sorted(names)), text), [])
                if self._command not in commands:
                    commands.append(self._command)


def texts_of(owner: Any, names: list[str]) -> dict[str, str]:
    """What the docstring of *owner* says about *names*: ``name: text``, on lines of their own or in its sentences."""
    doc = re.sub(r"\s+", " ", owner.__doc__ or "").replace("``", "")
    spelled = {name.replace("-", "_"): name for name in names} | {name: name for name in names}
    one = "|".join(sorted(map(re.escape, spelled), key=len, reverse=True))
    label = re.compile(rf"(?:(?<=^)|(?<=\s))(?P<names>(?:{one})(?:, (?:{one}))*): ")
    found: dict[str, str] = {}
    matches = list(label.finditer(doc))
    for match, following in itertools.zip_longest(matches, matches[1:]):
        text = shortened(doc[match.end() : following.start() if following is not None else len(doc)])
        for name in re.split(r", ", match["names"]):
            found.setdefault(spelled[name], text)
    return found


def shortened(text: str) -> str:
    """*text* as a phrase: without the full stop, and of sentences only the first."""
    text = re.sub(r"\.(?= [A-Z]| [a-z][\w, -]*: ).*", "", text.strip()).rstrip(".;, ")
    if len(text) > LONGEST:
        text = re.split(r"[;(]", text)[0].strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0] + "…"


def table() -> dict[str, Any]:
    """The whole table, in a stable order."""
    from engine.engine import Engine
    from engine.qapi.registry import registry
    from engine.qapi.tags import load_all

    engine = Engine()  # makes all commands known
    load_all()
    collector = Collector()
    for command in registry.commands.values():
        collector.command(command)
    engine.close()
    return {
        "scopes": collector.scopes,
        "members": collector.members,
        "enums": dict(sorted(collector.enums.items())),
    }


def written(found: dict[str, Any]) -> str:
    """The table as JSON with an entry a line, so that a change of one shows as such."""
    parts = []
    for name, part in found.items():
        if isinstance(part, dict):
            items = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in part.items()]
            parts.append(f'"{name}": {{\n' + ",\n".join(items) + "\n}")
        else:
            items = [json.dumps(value) for value in part]
            parts.append(f'"{name}": [\n' + ",\n".join(items) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="tell whether the file is up to date")
    check = parser.parse_args().check
    text = written(table())
    if check:
        fresh = TARGET.exists() and TARGET.read_text() == text
        print(f"{TARGET.relative_to(ROOT)} is {'up to date' if fresh else 'out of date: run scripts/make_docs.py'}")
        return 0 if fresh else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())

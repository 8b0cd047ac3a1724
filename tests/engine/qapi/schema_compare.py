"""Compare the schema of one QMP server with another's: ``python tests/engine/qapi/schema_compare.py`` (engine, daemon).

Type names in query-qmp-schema are numbers without meaning, so types are compared by what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.qemu import storage_daemon

Info = dict[str, Any]


def daemon_schema() -> list[Info]:
    """Return what qemu-storage-daemon answers to query-qmp-schema."""
    with storage_daemon("qemu-storage-daemon") as daemon:
        schema: list[Info] = daemon.ask("query-qmp-schema")["return"]
    return schema


class Comparison:
    """Two schemas, and which pairs of types are being compared already."""

    def __init__(self, ours: list[Info], theirs: list[Info]) -> None:
        self.ours = {info["name"]: info for info in ours}
        self.theirs = {info["name"]: info for info in theirs}
        self._seen: set[tuple[str, str]] = set()

    def entity(self, name: str) -> Iterator[str]:
        """Yield the differences of the command or event *name*, each a line."""
        ours, theirs = self.ours[name], self.theirs[name]
        if ours["meta-type"] != theirs["meta-type"]:
            yield f"{name}: {ours['meta-type']}, not {theirs['meta-type']}"
            return
        yield from self._features(name, ours, theirs)
        if ours.get("allow-oob", False) != theirs.get("allow-oob", False):
            yield f"{name}: allow-oob"
        yield from self._types(name, ours["arg-type"], theirs["arg-type"])
        if "ret-type" in theirs:
            yield from self._types(f"{name}->", ours["ret-type"], theirs["ret-type"])

    def _features(self, path: str, ours: Info, theirs: Info) -> Iterator[str]:
        have, want = set(ours.get("features", ())), set(theirs.get("features", ()))
        if have != want:
            yield f"{path}: features {sorted(have)}, not {sorted(want)}"

    def _types(self, path: str, ours_name: str, theirs_name: str) -> Iterator[str]:
        if (ours_name, theirs_name) in self._seen:
            return
        self._seen.add((ours_name, theirs_name))
        ours, theirs = self.ours[ours_name], self.theirs[theirs_name]
        kind = theirs["meta-type"]
        if ours["meta-type"] != kind:
            yield f"{path}: {ours['meta-type']}, not {kind}"
            return
        yield from self._features(path, ours, theirs)
        if kind == "builtin":
            if ours["json-type"] != theirs["json-type"]:
                yield f"{path}: {ours['json-type']}, not {theirs['json-type']}"
        elif kind == "array":
            yield from self._types(f"{path}[]", ours["element-type"], theirs["element-type"])
        elif kind == "enum":
            yield from self._members(path, ours["members"], theirs["members"], "name")
        elif kind == "alternate":
            yield from self._alternate(path, ours, theirs)
        else:
            yield from self._members(path, ours["members"], theirs["members"], "name")
            if ours.get("tag") != theirs.get("tag"):
                yield f"{path}: tag {ours.get('tag')}, not {theirs.get('tag')}"
            elif "tag" in theirs:
                yield from self._members(path, ours["variants"], theirs["variants"], "case")

    def _members(self, path: str, ours: list[Info], theirs: list[Info], key: str) -> Iterator[str]:
        have = {member[key]: member for member in ours}
        want = {member[key]: member for member in theirs}
        if missing := [name for name in want if name not in have]:
            yield f"{path}: lacks {', '.join(missing)}"
        if extra := [name for name in have if name not in want]:
            yield f"{path}: has besides {', '.join(extra)}"
        for name in want:
            if name not in have:
                continue
            inner = f"{path}.{name}"
            yield from self._features(inner, have[name], want[name])
            if ("default" in have[name]) != ("default" in want[name]):
                yield f"{inner}: {'optional' if 'default' in have[name] else 'required'}"
            if "type" in want[name]:
                yield from self._types(inner, have[name]["type"], want[name]["type"])

    def _alternate(self, path: str, ours: Info, theirs: Info) -> Iterator[str]:
        def by_kind(infos: dict[str, Info], info: Info) -> dict[str, str]:
            types = (infos[member["type"]] for member in info["members"])
            return {
                t.get("json-type", "string" if t["meta-type"] == "enum" else t["meta-type"]): t["name"] for t in types
            }

        have, want = by_kind(self.ours, ours), by_kind(self.theirs, theirs)
        if have.keys() != want.keys():
            yield f"{path}: alternate of {sorted(have)}, not {sorted(want)}"
        for kind in have.keys() & want.keys():
            yield from self._types(f"{path}<{kind}>", have[kind], want[kind])


def differences(ours: list[Info], theirs: list[Info]) -> dict[str, list[str]]:
    """Return the differences of every command and event that both schemas have, by name."""
    comparison = Comparison(ours, theirs)
    names = [
        info["name"] for info in ours if info["meta-type"] in ("command", "event") and info["name"] in comparison.theirs
    ]
    return {name: lines for name in names if (lines := list(comparison.entity(name)))}


if __name__ == "__main__":
    import importlib
    import sys

    for module in sys.argv[1:] or ["engine.engine"]:
        importlib.import_module(module)
    from engine.qapi import introspect

    mine, real = introspect(), daemon_schema()
    for lines in differences(mine, real).values():
        print("\n".join(lines))
    known = {info["name"] for info in mine}
    entities = [info for info in real if info["meta-type"] in ("command", "event")]
    print("lacking:", ", ".join(info["name"] for info in entities if info["name"] not in known))

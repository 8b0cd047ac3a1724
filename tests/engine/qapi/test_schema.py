"""Introspection: the list that query-qmp-schema returns."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from engine.qapi import Enum, Feature, Registry, Struct, introspect
from tests.engine.qapi import sample
from tests.engine.qapi.schema_compare import differences

Infos = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def infos() -> Infos:
    found = introspect(sample.registry)
    by_name = {info["name"]: info for info in found}
    assert len(by_name) == len(found)
    return by_name


def test_commands_come_first_and_types_are_numbers() -> None:
    found = introspect(sample.registry)
    kinds = [info["meta-type"] for info in found]
    entities = len(sample.registry.commands) + len(sample.registry.events)
    assert set(kinds[:entities]) == {"command", "event"}
    assert not {"command", "event"} & set(kinds[entities:])
    for info in found[entities:]:
        bare = info["name"].strip("[]")
        assert bare.isdigit() or bare in ("int", "str", "bool", "any", "null", "number")


def test_every_type_in_use_is_described(infos: Infos) -> None:
    used: set[str] = set()
    for info in infos.values():
        used.update(info[key] for key in ("arg-type", "ret-type", "element-type") if key in info)
        if info["meta-type"] in ("object", "alternate"):
            used.update(member["type"] for member in info["members"])
        used.update(variant["type"] for variant in info.get("variants", ()))
    assert used <= infos.keys()


def test_a_command(infos: Infos) -> None:
    info = infos["blockdev-snapshot"]
    assert info["meta-type"] == "command"
    assert info["features"] == ["allow-write-only-overlay"]
    arguments = infos[info["arg-type"]]
    assert arguments["members"] == [{"name": "node", "type": "str"}, {"name": "overlay", "type": "str"}]
    empty = infos[info["ret-type"]]
    assert empty == {"name": info["ret-type"], "meta-type": "object", "members": []}
    assert infos["query-version"]["arg-type"] == info["ret-type"]


def test_members_that_may_be_absent_have_a_default(infos: Infos) -> None:
    members = infos[infos["block_resize"]["arg-type"]]["members"]
    assert members == [
        {"name": "device", "type": "str", "default": None},
        {"name": "node-name", "type": "str", "default": None},
        {"name": "size", "type": "int"},
    ]


def test_a_union(infos: Infos) -> None:
    info = infos[infos["blockdev-add"]["arg-type"]]
    assert info["tag"] == "driver"
    assert info["members"][0]["name"] == "driver"
    assert [variant["case"] for variant in info["variants"]][:2] == ["raw", "qcow2"]
    enum = infos[info["members"][0]["type"]]
    assert enum["meta-type"] == "enum"
    assert enum["values"] == [member["name"] for member in enum["members"]]
    create = infos[infos[infos["blockdev-create"]["arg-type"]]["members"][1]["type"]]
    assert create["members"][0]["type"] == info["members"][0]["type"], "the two share their tag"
    nothing = infos["query-version"]["arg-type"]
    assert {v["case"]: v["type"] for v in create["variants"]}["quorum"] == nothing


def test_arrays_and_alternates(infos: Infos) -> None:
    options = infos[infos["blockdev-add"]["arg-type"]]
    quorum = infos[{v["case"]: v["type"] for v in options["variants"]}["quorum"]]
    children = infos[quorum["members"][1]["type"]]
    assert children["name"] == f"[{children['element-type']}]"
    ref = infos[children["element-type"]]
    assert ref["meta-type"] == "alternate"
    assert {member["type"] for member in ref["members"]} == {"str", options["name"]}


def test_integers_are_all_int(infos: Infos) -> None:
    assert infos["int"] == {"name": "int", "meta-type": "builtin", "json-type": "int"}
    address = infos[infos[infos["nbd-server-start"]["arg-type"]]["members"][3]["type"]]
    assert address["name"] == "int"


def test_features() -> None:
    registry = Registry()

    class Mode(Enum):
        OLD = "old"
        NEW = "new"
        __features__ = {"old": ["deprecated"]}  # noqa: RUF012

    class Arg(Struct, features=["fancy"]):
        mode: Annotated[Mode | None, Feature("unstable")] = None

    globals().update(Mode=Mode, Arg=Arg)
    try:

        @registry.command(boxed=True, allow_oob=True)
        def go(context: Any, arg: Arg) -> None:
            """Go."""

        infos = {info["name"]: info for info in introspect(registry)}
    finally:
        del globals()["Mode"], globals()["Arg"]
    arg = infos[infos["go"]["arg-type"]]
    assert infos["go"]["allow-oob"] is True
    assert arg["features"] == ["fancy"]
    assert arg["members"][0]["features"] == ["unstable"]
    assert infos[arg["members"][0]["type"]]["members"] == [{"name": "old", "features": ["deprecated"]}, {"name": "new"}]


def test_a_schema_does_not_differ_from_itself() -> None:
    schema = introspect(sample.registry)
    assert differences(schema, schema) == {}


def test_differences_are_found() -> None:
    registry = Registry()

    @registry.command(name="block_resize")
    def block_resize(context: Any, *, device: str, node_name: int | None = None, sise: int) -> None:
        """Resize, wrongly declared."""

    found = differences(introspect(registry), introspect(sample.registry))
    assert found == {
        "block_resize": [
            "block_resize: lacks size",
            "block_resize: has besides sise",
            "block_resize.device: required",
            "block_resize.node-name: int, not string",
        ]
    }

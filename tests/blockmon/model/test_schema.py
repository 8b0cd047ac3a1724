"""The schema as completion asks about it, on the introspection of a real qemu-storage-daemon 7.2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockmon.model.schema import ArgInfo, Schema, alternatives, in_order, type_word

DATA = Path(__file__).resolve().parents[2] / "data" / "schema-7.2.json"


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema(json.loads(DATA.read_text()))


def names(infos: list[ArgInfo]) -> list[str]:
    return [info.name for info in infos]


def test_required_first_and_deprecated_last(schema: Schema) -> None:
    found = names(schema.members_at("block-commit", (), {}))
    assert found[0] == "device"
    assert found[-2:] == ["base", "top"]
    assert found.index("base-node") < found.index("base")


def test_the_tag_comes_before_what_is_required(schema: Schema) -> None:
    assert names(schema.members_at("blockdev-add", (), {"driver": "qcow2"}))[:2] == ["driver", "file"]


def test_before_the_branch_is_known_only_common_members(schema: Schema) -> None:
    found = names(schema.members_at("blockdev-add", (), {}))
    assert found[0] == "driver"
    assert "node-name" in found
    assert "l2-cache-size" not in found


def test_the_tag_picks_the_branch_at_any_depth(schema: Schema) -> None:
    given = {"driver": "qcow2", "file": {"driver": "throttle", "file": {"driver": "file"}}}
    assert "throttle-group" in names(schema.members_at("blockdev-add", ("file",), given))
    assert "filename" in names(schema.members_at("blockdev-add", ("file", "file"), given))
    assert "throttle-group" not in names(schema.members_at("blockdev-add", (), given))


def test_list_elements_by_index_and_by_dotted_key(schema: Schema) -> None:
    as_json = {"actions": [{"type": "abort"}, {"type": "blockdev-snapshot"}]}
    dotted = {"actions": {"0": {"type": "abort"}, "1": {"type": "blockdev-snapshot"}}}
    for path, given in ((("actions", 1, "data"), as_json), (("actions", "1", "data"), dotted)):
        assert names(schema.members_at("transaction", path, given)) == ["node", "overlay"]


def test_alternates_are_taken_apart(schema: Schema) -> None:
    kinds = {info.kind for info in schema.infos_at("blockdev-add", ("backing",), {"driver": "qcow2"})}
    assert kinds == {"object", "str", "null"}


def test_enum_values(schema: Schema) -> None:
    (info,) = schema.infos_at("block-stream", ("on-error",), {})
    assert info.values == ("report", "ignore", "enospc", "stop", "auto")


@pytest.mark.parametrize("path", [("nope",), ("device", "deeper"), ("on-error", 0)])
def test_a_path_that_leads_nowhere_gives_nothing(schema: Schema, path: tuple[str | int, ...]) -> None:
    assert schema.infos_at("block-stream", path, {}) == []
    assert schema.members_at("block-stream", path, {}) == []


def test_features_of_commands(schema: Schema) -> None:
    assert schema.features("drive-backup") == {"deprecated"}
    assert schema.features("x-blockdev-change") == {"unstable"}
    assert schema.features("no-such-command") == frozenset()


def test_a_storage_daemon_has_no_human_monitor(schema: Schema) -> None:
    assert not schema.knows_hmp


def test_type_words(schema: Schema) -> None:
    members = {info.name: info for info in schema.members_at("blockdev-add", (), {"driver": "qcow2"})}
    assert type_word(members["l2-cache-size"]) == "integer"
    assert type_word(members["discard"]) == "ignore|unmap"
    assert type_word(members["backing"]) == "{…} or string or null"
    assert type_word(members["driver"], 12) == "blkdebug|bl…"
    assert len(alternatives(members["backing"])) == 3


def test_order_is_stable_within_a_rank() -> None:
    infos = [ArgInfo("b", "int"), ArgInfo("o", "int", optional=True), ArgInfo("a", "int")]
    assert names(in_order(infos)) == ["b", "a", "o"]

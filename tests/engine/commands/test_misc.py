"""Version, commands, schema and quit; and what is refused beside the schema."""

from __future__ import annotations

import pytest

from engine.engine import Engine
from engine.errors import CommandNotFound, GenericError
from engine.graph.permissions import Perm


def test_version_has_the_shape_of_the_real_one(engine: Engine) -> None:
    version = engine.execute("query-version")
    assert version["qemu"] == {"major": 7, "minor": 2, "micro": 22}
    assert "blockmon" in version["package"]


def test_commands_and_schema_tell_the_same_commands(engine: Engine) -> None:
    names = {item["name"] for item in engine.execute("query-commands")}
    schema = engine.execute("query-qmp-schema")
    assert names == {info["name"] for info in schema if info["meta-type"] == "command"}
    assert {"blockdev-add", "query-qmp-schema", "quit", "x-blockmon-query-graph"} <= names
    unstable = {info["name"] for info in schema if "unstable" in info.get("features", ())}
    assert {"x-blockmon-query-graph", "x-blockmon-open", "X_BLOCKMON_GRAPH_CHANGE"} <= unstable
    # What tells a client that a member is optional must survive.
    assert any(
        member.get("default", "") is None
        for info in schema
        if info["meta-type"] == "object"
        for member in info["members"]
    )


def test_quit_calls_whoever_runs_the_engine(engine: Engine) -> None:
    with pytest.raises(GenericError, match="does not end at 'quit'"):
        engine.execute("quit")
    called: list[bool] = []
    engine.on_quit = lambda: called.append(True)
    assert engine.execute("quit") == {}
    assert called == [True]


def test_unknown_commands(engine: Engine) -> None:
    with pytest.raises(CommandNotFound, match="The command nope has not been found"):
        engine.execute("nope")


def test_a_node_with_a_device_is_in_use(engine: Engine) -> None:
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
    graph = engine.graph
    backend = engine.control.call(lambda: graph.add_backend("device", "vda", graph.node("n"), Perm.NONE, Perm.ALL))
    with pytest.raises(GenericError, match="Node n is in use"):
        engine.execute("blockdev-del", {"node-name": "n"})
    with pytest.raises(GenericError, match="node-name=vda is conflicting with a device id"):
        engine.execute("blockdev-add", {"driver": "null-co", "node-name": "vda"})
    engine.control.call(lambda: graph.remove_backend(backend))
    engine.execute("blockdev-del", {"node-name": "n"})
    assert graph.nodes == {}


def test_corruption_is_told(engine: Engine) -> None:
    events: list[dict[str, object]] = []
    engine.subscribe(lambda event: events.append(event) if not event["event"].startswith("X_") else None)
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
    engine.graph.node("n").report_corruption("table gone", 512, None, True)
    engine.execute("query-version")
    (event,) = events
    assert event["event"] == "BLOCK_IMAGE_CORRUPTED"
    assert event["data"] == {"device": "", "node-name": "n", "msg": "table gone", "offset": 512, "fatal": True}
    (node,) = engine.execute("x-blockmon-query-graph")["nodes"]
    assert node["error"] == "table gone"

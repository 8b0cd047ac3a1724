"""How often QEMU's own queries are asked, and what is done where one of them is refused."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from blockmon.backend import CommandError
from blockmon.model.graph import diff
from blockmon.model.source import DUTY, OFTEN, SELDOM, QueryGraphSource, StandardGraphSource, choose_source
from tests.blockmon.tui.fake import busy_graph

COMMANDS = (
    *("query-named-block-nodes", "x-debug-query-block-graph", "query-block", "query-block-exports"),
    *("query-block-jobs", "query-blockstats", "qom-get"),
)


class Server:
    """A server with one node and a disk on it; the test moves its clock."""

    title = "server"

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[str] = []
        self.read = 0
        self.slow = 0.0
        self.flat = True
        self.refuse_nodes = False
        self.nodes = ["disk"]

    def clock(self) -> float:
        return self.now

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self.asked.append(command)
        if command == "query-named-block-nodes":
            self.now += self.slow
            if self.refuse_nodes:
                raise CommandError("GenericError", "not now")
            if arguments and not self.flat:
                raise CommandError("GenericError", "Parameter 'flat' is unexpected")
            image = {"virtual-size": 1 << 20}
            return [
                {"node-name": name, "drv": "file", "file": "/d", "ro": False, "image": image} for name in self.nodes
            ]
        if command == "x-debug-query-block-graph":
            nodes = [{"id": i, "type": "block-driver", "name": name} for i, name in enumerate(self.nodes)]
            return {"nodes": nodes, "edges": []}
        if command == "query-block":
            return [{"device": "", "qdev": "/machine/peripheral/vda/virtio-backend", "inserted": {}}]
        if command == "query-blockstats":
            stats = {"rd_bytes": self.read, "rd_operations": 0, "wr_bytes": 0, "wr_operations": 0}
            return [{"node-name": "disk", "stats": stats}]
        if command == "qom-get":
            return f"model of {(arguments or {})['path']}"
        return []

    def questions(self) -> list[str]:
        """What was asked since the last call."""
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def source(server: Server) -> StandardGraphSource:
    return StandardGraphSource(COMMANDS, server.clock)


def test_the_best_source_is_chosen() -> None:
    assert isinstance(choose_source([*COMMANDS, "x-blockmon-query-graph"]), QueryGraphSource)
    assert isinstance(choose_source(COMMANDS), StandardGraphSource)
    assert choose_source(["query-version"]) is None


async def test_between_two_graphs_only_the_counters_are_asked_for(server: Server, source: StandardGraphSource) -> None:
    first = await source.fetch(server)  # type: ignore[arg-type]
    assert "query-named-block-nodes" in server.questions()
    server.now += 0.5
    server.read = 4096
    second = await source.fetch(server)  # type: ignore[arg-type]
    assert server.questions() == ["query-blockstats"]
    assert second.counters["disk"].rd_bytes == 4096
    assert second.nodes == first.nodes


async def test_a_quiet_server_is_asked_ever_more_seldom(server: Server, source: StandardGraphSource) -> None:
    moments = []
    for _ in range(1200):
        server.now += 0.1
        await source.fetch(server)  # type: ignore[arg-type]
        if "query-named-block-nodes" in server.questions():
            moments.append(server.now)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert gaps[0] == pytest.approx(1.5 * OFTEN, abs=0.2) or gaps[0] == pytest.approx(OFTEN, abs=0.2)
    assert gaps[-1] == pytest.approx(SELDOM, abs=0.2)
    # A change, whoever made it, makes it lively again.
    server.nodes.append("new")
    server.now += SELDOM
    assert "new" in (await source.fetch(server)).nodes  # type: ignore[arg-type]
    server.questions()
    server.now += OFTEN
    await source.fetch(server)  # type: ignore[arg-type]
    assert "query-named-block-nodes" in server.questions()


async def test_what_may_have_changed_is_asked_for_at_once(server: Server, source: StandardGraphSource) -> None:
    before = await source.fetch(server)  # type: ignore[arg-type]
    server.nodes.append("new")
    server.now += 0.2
    source.touch()
    after = await source.fetch(server)  # type: ignore[arg-type]
    assert "new" in after.nodes
    assert after.generation == before.generation + 1


@pytest.mark.parametrize(
    ("event", "stale"),
    [
        ("BLOCK_JOB_COMPLETED", True),
        ("JOB_STATUS_CHANGE", True),
        ("BLOCK_EXPORT_DELETED", True),
        ("DEVICE_DELETED", True),
        ("DEVICE_TRAY_MOVED", True),
        ("BLOCK_JOB_ERROR", False),
        ("RTC_CHANGE", False),
    ],
)
def test_events_that_tell_of_a_change(source: StandardGraphSource, event: str, stale: bool) -> None:
    assert source.is_stale_after({"event": event}) is stale


async def test_a_flood_of_events_does_not_eat_the_server(server: Server, source: StandardGraphSource) -> None:
    server.slow = 0.5
    await source.fetch(server)  # type: ignore[arg-type]
    server.questions()
    server.now += DUTY * server.slow - 0.1
    source.touch()
    await source.fetch(server)  # type: ignore[arg-type]
    assert "query-named-block-nodes" not in server.questions()
    server.now += 0.2
    await source.fetch(server)  # type: ignore[arg-type]
    assert "query-named-block-nodes" in server.questions()


async def test_servers_that_cannot_leave_the_backing_images_out(server: Server, source: StandardGraphSource) -> None:
    server.flat = False
    assert "disk" in (await source.fetch(server)).nodes  # type: ignore[arg-type]
    server.questions()
    source.touch()
    await source.fetch(server)  # type: ignore[arg-type]
    assert server.questions().count("query-named-block-nodes") == 1


async def test_what_is_refused_for_a_while_is_still_shown(server: Server, source: StandardGraphSource) -> None:
    await source.fetch(server)  # type: ignore[arg-type]
    server.refuse_nodes = True
    source.touch()
    assert (await source.fetch(server)).nodes["disk"].filename == "/d"  # type: ignore[arg-type]
    assert source.problem == "old node details: not now"
    server.refuse_nodes = False
    source.touch()
    await source.fetch(server)  # type: ignore[arg-type]
    assert source.problem is None


async def test_a_server_that_tells_no_nodes_at_all(server: Server) -> None:
    server.refuse_nodes = True
    source = StandardGraphSource(["query-named-block-nodes"], server.clock)
    with pytest.raises(CommandError, match="not now"):
        await source.fetch(server)  # type: ignore[arg-type]


async def test_device_models_are_asked_for_once(server: Server, source: StandardGraphSource) -> None:
    graph = await source.fetch(server)  # type: ignore[arg-type]
    parent = graph.parents["device:/machine/peripheral/vda/virtio-backend"]
    assert parent.model == "model of /machine/peripheral/vda"
    server.questions()
    source.touch()
    await source.fetch(server)  # type: ignore[arg-type]
    assert "qom-get" not in server.questions()


class Engine:
    """Our own engine's two queries, on a graph of which only one node moves."""

    def __init__(self) -> None:
        self.graph = busy_graph()
        self.graph["mark"] = 5
        self.asked: list[str] = []
        self.moved: list[dict[str, Any]] = []

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append(command)
        if command == "x-blockmon-query-graph":
            return copy.deepcopy(self.graph)
        assert arguments is not None
        moved, self.moved = self.moved, []
        return {"generation": self.graph["generation"], "mark": arguments["since"] + 1, "nodes": moved}


async def test_between_two_changes_only_what_moved_is_asked_for() -> None:
    engine = Engine()
    source = QueryGraphSource(["x-blockmon-query-graph", "x-blockmon-query-io"])
    first = await source.fetch(engine)  # type: ignore[arg-type]
    assert await source.fetch(engine) is first  # type: ignore[arg-type]
    engine.moved = [{**engine.graph["nodes"][0], "wr-bytes": 4096, "allocated": 77}]
    second = await source.fetch(engine)  # type: ignore[arg-type]
    assert engine.asked == ["x-blockmon-query-graph", "x-blockmon-query-io", "x-blockmon-query-io"]
    changed = diff(first, second)
    assert changed.nodes_changed == changed.io_nodes == ("overlay2",)
    assert not changed.shape
    assert second.nodes["overlay2"].allocated == 77
    assert second.edges is first.edges
    # Another generation is asked for as a whole, and shares the rest.
    engine.graph["generation"] += 1
    engine.graph["nodes"].pop()
    third = await source.fetch(engine)  # type: ignore[arg-type]
    assert engine.asked[-2:] == ["x-blockmon-query-io", "x-blockmon-query-graph"]
    assert "scratch" not in third.nodes
    assert third.nodes["base"] is first.nodes["base"]


async def test_an_older_engine_is_asked_for_the_graph_each_time() -> None:
    engine = Engine()
    source = QueryGraphSource(["x-blockmon-query-graph"])
    for _ in range(2):
        await source.fetch(engine)  # type: ignore[arg-type]
    assert engine.asked == ["x-blockmon-query-graph"] * 2

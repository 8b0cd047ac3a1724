"""The cache of names: refreshed in the background, from whatever the server can be asked."""

from __future__ import annotations

import pytest

from blockmon.backend import CommandError
from blockmon.model.graph import GraphModel, NodeInfo
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.live import LiveNames
from tests.blockmon.repl.fakes import Server, event, graph_reply, knowledge_of


@pytest.fixture
async def server() -> Server:
    return Server()


async def names_of(server: Server) -> LiveNames:
    knowledge: Knowledge = await knowledge_of(server)
    server.calls.clear()
    return knowledge.names


async def test_job_events_count_at_once(server: Server) -> None:
    names = await names_of(server)
    names.on_events([event("JOB_STATUS_CHANGE", id="stream0", status="paused")])
    assert names.jobs["stream0"].status == "paused"
    assert names.jobs["stream0"].type == "stream"
    names.on_events([event("JOB_STATUS_CHANGE", id="stream0", status="null")])
    assert "stream0" not in names.jobs
    assert server.calls == []


async def test_a_batch_of_events_is_one_change(server: Server) -> None:
    names = await names_of(server)
    told: list[dict[str, str]] = []
    names._on_change = lambda: told.append({job.id: job.status for job in names.jobs.values()})
    names.on_events(
        [event("JOB_STATUS_CHANGE", id=f"j{number % 5}", status=("running", "paused")[number % 2])
         for number in range(1000)]
        + [event("JOB_STATUS_CHANGE", id="j3", status="null")]
    )  # fmt: skip
    assert len(told) == 1
    assert "j3" not in told[0]
    assert told[0]["j4"] == "paused"
    # Nothing new is no change.
    names.on_events([event("JOB_STATUS_CHANGE", id="j4", status="paused")])
    assert len(told) == 1
    await names.close()


async def test_the_type_of_a_new_job_is_asked_for(server: Server) -> None:
    names = await names_of(server)
    server.answers["query-jobs"] = [{"id": "new", "type": "mirror", "status": "running"}]
    names.on_events([event("JOB_STATUS_CHANGE", id="new", status="created")])
    assert names.jobs["new"].block_job
    await names.refresh()
    assert (names.jobs["new"].type, names.jobs["new"].status) == ("mirror", "running")
    await names.close()


async def test_a_graph_change_is_asked_for_once_for_many_events(server: Server) -> None:
    names = await names_of(server)
    server.answers["x-blockmon-query-graph"] = graph_reply([("other", "raw", "/x")])
    for generation in range(50):
        names.on_events([event("X_BLOCKMON_GRAPH_CHANGE", generation=generation)])
    await names.refresh()
    assert names.node_names == ["other"]
    assert server.commands == ["x-blockmon-query-graph"]
    await names.close()


async def test_only_commands_that_change_something_cause_questions(server: Server) -> None:
    names = await names_of(server)
    names.after_command("query-jobs")
    await names.refresh()
    assert server.calls == []
    names.after_command("blockdev-add")
    await names.refresh()
    assert "x-blockmon-query-graph" in server.commands
    await names.close()


async def test_a_graph_from_elsewhere_is_not_asked_for_any_more(server: Server) -> None:
    names = await names_of(server)
    names.feed(GraphModel(nodes={"fed": NodeInfo("fed")}))
    names.touch()
    await names.refresh()
    assert names.node_names == ["fed"]
    assert "x-blockmon-query-graph" not in server.commands
    await names.close()


async def test_a_server_without_our_command_is_asked_for_its_named_nodes() -> None:
    server = Server(graph=False)
    names = await names_of(server)
    assert names.node_names == ["base", "overlay2"]
    assert names.graph.nodes["base"].size == 1024
    names.touch("graph")
    await names.refresh()
    assert ("query-named-block-nodes", {"flat": True}) in server.calls
    await names.close()


@pytest.mark.parametrize("job", [{"status": "concluded"}, {"status": "running", "auto-dismiss": False}])
async def test_qemu_is_not_asked_for_nodes_when_that_would_crash_it(job: dict[str, object]) -> None:
    server = Server(graph=False)
    names = await names_of(server)
    server.answers["query-block-jobs"] = [{"type": "stream", "device": "s", "auto-dismiss": True, **job}]
    names.touch("graph")
    await names.refresh()
    assert "query-named-block-nodes" not in server.commands
    assert names.node_names == ["base", "overlay2"]
    await names.close()


async def test_a_refused_question_leaves_the_rest(server: Server) -> None:
    server.answers["x-blockmon-query-graph"] = CommandError("GenericError", "no")
    names = await names_of(server)
    assert names.node_names == []
    assert "stream0" in names.jobs
    assert names.exports == {"exp0": "nbd overlay2"}


async def test_refreshing_goes_on_in_the_background(server: Server) -> None:
    import asyncio

    changed = asyncio.Event()
    names = LiveNames(server, (await knowledge_of(server)).schema, changed.set)
    names.touch("graph")
    await asyncio.wait_for(changed.wait(), 5)
    assert names.index.starting("over", 10) == ["overlay1", "overlay2"]
    await names.close()

"""The back end over a connection: wrong addresses, commands side by side, connections that are lost and come back."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from blockmon.backend import CommandError, remote
from blockmon.backend.connection import ConnectionLost, ConnectionState, connection_of
from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.backend.remote import RemoteBackend
from blockmon.options import StartupError
from tests.blockmon.backend.wire_server import Fail, WireServer, until

LIMIT = 10


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[WireServer]:
    server = WireServer(tmp_path / "q")
    await server.listen()
    yield server
    await server.stop()


@pytest.fixture
async def backend(server: WireServer) -> AsyncIterator[RemoteBackend]:
    backend = RemoteBackend(server.address)
    await backend.start()
    yield backend
    await backend.close()


class States:
    """What is told of a connection."""

    def __init__(self, backend: RemoteBackend) -> None:
        self.seen: list[ConnectionState] = []
        self._new = asyncio.Event()
        backend.connection.watch(self._take)

    def _take(self, state: ConnectionState) -> None:
        self.seen.append(state)
        self._new.set()

    async def until(self, connected: bool) -> ConnectionState:
        async with asyncio.timeout(LIMIT):
            while not self.seen or self.seen[-1].connected is not connected:
                self._new.clear()
                await self._new.wait()
        return self.seen[-1]


async def complaint(address: str) -> str:
    with pytest.raises(StartupError) as caught:
        await RemoteBackend(address).start()
    return str(caught.value)


async def test_where_nobody_listens(tmp_path: Path) -> None:
    assert await complaint(f"unix:{tmp_path}/x") == f"connect unix:{tmp_path}/x: No such file or directory"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"tcp:127.0.0.1:{bound.getsockname()[1]}"
        assert await complaint(address) == f"connect {address}: Connection refused"
    (tmp_path / "file").touch()
    assert "Connection refused" in await complaint(f"unix:{tmp_path}/file")


async def test_what_is_no_address_is_said_before_anything_is_tried() -> None:
    with pytest.raises(StartupError, match="connect /tmp/x: expected unix:PATH, tcp:HOST:PORT"):
        RemoteBackend("/tmp/x")


async def test_what_is_no_qmp_server(server: WireServer) -> None:
    server.greeting = b"QEMU 7.2.0 monitor - type 'help' for more information\r\n(qemu) "
    assert "this is no QMP server" in await complaint(server.address)
    server.greeting = b'{"hello": "world"}\r\n'
    assert "this is no QMP server" in await complaint(server.address)


async def test_a_server_that_is_busy_with_another_client(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GREETING_TIMEOUT", 0.1)
    server.greeting = None
    text = await complaint(server.address)
    assert "no QMP greeting within" in text
    assert "one client at a time" in text


async def test_failures_have_qmps_class_and_text(server: WireServer, backend: RemoteBackend) -> None:
    def fail(arguments: dict[str, Any]) -> Any:
        raise Fail(f"no node {arguments['node-name']}")

    server.answers["blockdev-del"] = fail
    with pytest.raises(CommandError) as caught:
        await backend.execute("blockdev-del", {"node-name": "n"})
    assert (caught.value.cls, caught.value.desc) == ("GenericError", "no node n")


async def test_commands_run_side_by_side(server: WireServer, backend: RemoteBackend) -> None:
    server.answers["query-x"] = lambda arguments: arguments["n"]
    assert await asyncio.gather(*(backend.execute("query-x", {"n": n}) for n in range(50))) == list(range(50))


async def test_an_event_before_the_answer_is_told_before_the_answer(server: WireServer, backend: RemoteBackend) -> None:
    told: list[str] = []
    backend.subscribe(lambda events: told.extend(event["event"] for event in events))

    def answer(arguments: dict[str, Any]) -> Any:
        server.send(server.event("FIRST"), server.event("SECOND"))
        return {}

    server.answers["job-cancel"] = answer
    for _ in range(20):
        told.clear()
        await backend.execute("job-cancel", {"id": "j"})
        assert told == ["FIRST", "SECOND"]


async def test_events_that_come_together_are_handed_on_together(server: WireServer, backend: RemoteBackend) -> None:
    batches: list[list[dict[str, Any]]] = []
    came = asyncio.Event()

    def take(events: Any) -> None:
        batches.append(list(events))
        if sum(map(len, batches)) == 1000:
            came.set()

    backend.subscribe(take)
    server.send(*(server.event("E", number=n) for n in range(1000)))
    await asyncio.wait_for(came.wait(), LIMIT)
    assert [event["data"]["number"] for batch in batches for event in batch] == list(range(1000))
    assert len(batches) < 500
    assert type(batches[0][0]) is dict


async def test_whoever_hangs_up_is_told_to_those_who_wait(server: WireServer, backend: RemoteBackend) -> None:
    server.held.add("job-cancel")
    waiting = asyncio.create_task(backend.execute("job-cancel", {"id": "j"}))
    await until(lambda: "job-cancel" in server.commands)
    await server.stop()
    with pytest.raises(ConnectionLost, match="before 'job-cancel' was answered") as caught:
        await asyncio.wait_for(waiting, LIMIT)
    assert isinstance(caught.value, OSError)
    assert not caught.value.retrying  # nobody watches, so nothing is tried again
    assert not backend.connection.state.connected
    await asyncio.wait_for(asyncio.gather(*backend._tasks), LIMIT)
    assert backend.connection.state.retry_at is None
    with pytest.raises(ConnectionLost, match="not connected"):
        await backend.execute("query-version")


async def test_a_lost_connection_comes_back(
    server: WireServer, backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_RETRY", 0.02)
    states = States(backend)
    told: list[str] = []
    backend.subscribe(lambda events: told.extend(event["event"] for event in events))
    server.send(server.event("LAST_WORDS"))
    await server.stop()
    lost = await states.until(False)
    assert lost.reason == "the server has closed the connection"
    assert lost.retry_at is not None
    assert told == ["LAST_WORDS"]
    with pytest.raises(ConnectionLost) as caught:
        await backend.execute("query-version")
    assert caught.value.retrying
    await until(lambda: sum(state.retry_at is not None for state in states.seen) == 3)
    assert states.seen[-1].reason == "No such file or directory"
    await server.listen()
    await states.until(True)
    assert await backend.execute("query-version") == {}
    server.send(server.event("AGAIN"))
    await until(lambda: told == ["LAST_WORDS", "AGAIN"])


async def test_waits_between_attempts_grow_and_stay_bounded(
    server: WireServer, backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(remote, "LAST_RETRY", 0.04)
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    def take(state: ConnectionState) -> None:
        if state.retry_at is not None:
            waits.append(round(state.retry_at - loop.time(), 2))

    backend.connection.watch(take)
    await server.stop()
    await until(lambda: len(waits) >= 5)
    assert waits[:5] == [0.01, 0.02, 0.04, 0.04, 0.04]


async def test_a_server_that_says_nothing_any_more_counts_as_lost(
    server: WireServer, backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "QUERY_SILENCE", 0.05)
    server.held.add("query-block")
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(backend.execute("query-block"), LIMIT)
    await until(lambda: not backend.connection.state.connected)
    assert backend.connection.state.reason == "the server does not answer"


async def test_a_server_that_hangs_is_told_of_while_it_does(
    server: WireServer, backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.05)
    states = States(backend)
    server.held |= {"query-block", "query-jobs"}
    before = time.time()
    asked = [asyncio.create_task(backend.execute(name)) for name in ("query-block", "query-jobs")]
    await asyncio.wait_for(states.until(True), LIMIT)
    since = states.seen[-1].unanswered
    assert since is not None
    assert before - 0.1 < since < time.time()
    server.held.clear()
    server.release()
    await asyncio.wait_for(asyncio.gather(*asked), LIMIT)
    assert [state.unanswered for state in states.seen] == [since, None]
    # One that answers in time is not talked of, however many questions there are.
    for _ in range(50):
        await backend.execute("query-version")
        await asyncio.sleep(0.002)
    assert len(states.seen) == 2


async def test_a_query_waits_for_a_command_that_takes_its_time(
    server: WireServer, backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "QUERY_SILENCE", 0.02)
    server.held |= {"human-monitor-command", "query-block"}
    query = asyncio.create_task(backend.execute("query-block"))
    long = asyncio.create_task(backend.execute("human-monitor-command", {"command-line": "commit all"}))
    done, _ = await asyncio.wait([long, query], timeout=0.2)
    assert not done
    long.cancel()  # then the query is not given the long one's time any more
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(query, LIMIT)


async def test_who_commands_is_told_of_it(backend: RemoteBackend) -> None:
    commands: list[str] = []
    connection = connection_of(ReadOnlyBackend(backend))
    assert connection is backend.connection
    end = connection.on_command(commands.append)
    await backend.execute("query-block")
    await backend.execute("blockdev-add", {})
    end()
    await backend.execute("blockdev-del", {})
    assert commands == ["blockdev-add"]


async def test_a_loss_between_two_questions_is_a_loss(server: WireServer, tmp_path: Path) -> None:
    assert server.greeting is not None
    server.greeting = server.greeting.replace(b'"major": 8', b'"major": 7')
    server.answers["query-block-jobs"] = lambda arguments: []
    backend = RemoteBackend(server.address)
    await backend.start()
    ask = backend.execute

    async def execute(command: str, arguments: Any = None) -> Any:
        # The answer to the first question comes with the end of the connection behind it.
        answer = await ask(command, arguments)
        if command == "query-block-jobs":
            await server.stop()
            await asyncio.wait_for(asyncio.gather(*backend._tasks), LIMIT)
        return answer

    backend.execute = execute  # type: ignore[method-assign]
    with pytest.raises(ConnectionLost, match="not connected: the server has closed the connection"):
        await backend.execute("query-named-block-nodes")
    await backend.close()


async def test_closing_ends_it_for_good(server: WireServer) -> None:
    backend = RemoteBackend(server.address)
    await backend.start()
    states = States(backend)
    await backend.close()
    await backend.close()
    assert states.seen == []
    with pytest.raises(ConnectionLost):
        await backend.execute("query-version")
    assert server.commands == ["qmp_capabilities"]


async def test_an_old_qemu_is_not_asked_what_would_crash_it(server: WireServer, tmp_path: Path) -> None:
    assert server.greeting is not None
    server.greeting = server.greeting.replace(b'"major": 8', b'"major": 7')
    job = {"device": "s", "type": "stream", "status": "concluded", "auto-dismiss": False}
    server.answers["query-block-jobs"] = lambda arguments: [job]
    backend = RemoteBackend(server.address)
    await backend.start()
    with pytest.raises(CommandError, match="stream job 's' has to be dismissed first"):
        await backend.execute("query-named-block-nodes", {"flat": True})
    for line in ("info block -n", "info  block -v -n", "info block -nv vda"):
        with pytest.raises(CommandError, match="stream job 's' has to be dismissed first"):
            await backend.execute("human-monitor-command", {"command-line": line})
    assert not {"query-named-block-nodes", "human-monitor-command"} & set(server.commands)
    await backend.execute("human-monitor-command", {"command-line": "info block -v no-n"})
    job["type"] = "backup"
    await backend.execute("query-named-block-nodes", {"flat": True})
    assert "query-named-block-nodes" in server.commands
    await backend.close()


async def test_a_server_that_drops_every_connection_is_asked_ever_more_seldom(
    server: WireServer, backend: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(remote, "LAST_RETRY", 5.0)
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    def take(state: ConnectionState) -> None:
        if state.connected:
            server.hang_up()
        elif state.retry_at is not None:
            waits.append(round(state.retry_at - loop.time(), 2))

    backend.connection.watch(take)
    server.hang_up()
    await until(lambda: len(waits) >= 4)
    assert waits[:4] == [0.01, 0.02, 0.04, 0.08]


async def test_a_message_that_breaks_off_is_a_loss_in_plain_words(server: WireServer, backend: RemoteBackend) -> None:
    states = States(backend)
    server.send(raw=b'{"return": [1, 2')
    await asyncio.sleep(0)
    server.hang_up()
    lost = await states.until(False)
    assert lost.reason == "the server broke off, or sent what is no QMP message"

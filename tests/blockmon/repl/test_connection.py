"""The prompt on a server elsewhere: the connection is lost and comes back, and the session goes on."""

from collections.abc import Mapping
from typing import Any

from blockmon.backend.connection import Connection, ConnectionLost, ConnectionState
from blockmon.repl.printers import Fragments, plain
from blockmon.repl.session import ReplSession
from tests.blockmon.fakes import FakeBackend, event


class Wired(FakeBackend):
    """A backend with a connection that the test breaks and mends."""

    def __init__(self) -> None:
        super().__init__({"query-version": {"major": 7}, "query-qmp-schema": []})
        self.connection = Connection()
        self.connection.change(ConnectionState(True))

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if not self.connection.state.connected:
            raise ConnectionLost("not connected: gone", self.connection.watched)
        return await super().execute(command, arguments)


def server() -> tuple[Wired, ReplSession, list[str]]:
    backend, printed = Wired(), list[str]()

    def sink(fragments: Fragments) -> None:
        printed.append(plain(fragments))

    return backend, ReplSession(backend, sink), printed


def has(name: str) -> list[dict[str, Any]]:
    return [
        {"meta-type": "command", "name": name, "arg-type": "0", "ret-type": "0"},
        {"meta-type": "object", "name": "0", "members": []},
    ]


async def test_it_goes_on_when_the_connection_is_back() -> None:
    backend, session, printed = server()
    backend.answers["query-qmp-schema"] = has("query-version")
    await session.start()
    await session.learned()
    backend.connection.change(ConnectionState(False, "gone", 1.0))
    backend.connection.change(ConnectionState(False, "still gone", 2.0))
    assert not await session.submit("query-version ")
    assert not session.ended
    backend.answers["query-qmp-schema"] = has("query-block")
    backend.connection.change(ConnectionState(True))
    await session.learned()
    assert list(session.knowledge.schema.commands) == ["query-block"]  # it may be another server
    text = "".join(printed)
    assert text.count("connection lost: gone; trying to get it back") == 1
    assert "Disconnected: not connected: gone" in text
    assert text.count("connected again") == 1
    await session.close()
    assert not backend.connection.watched


async def test_where_it_is_not_tried_again_the_session_ends() -> None:
    backend, session, _ = server()
    session.listen()
    await session.learn_commands()
    backend.connection.change(ConnectionState(False, "gone"))
    assert not await session.submit('{"execute": "query-version"}')
    assert session.ended
    assert session.lost
    await session.close()


async def test_a_machine_that_somebody_else_ends_does_not_end_the_prompt() -> None:
    backend, session, _ = server()
    await session.start()
    backend.emit(event("SHUTDOWN", guest=False, reason="host-qmp-quit"))
    assert not session.ended
    await session.close()


async def test_files_of_this_machine_are_not_offered_for_another() -> None:
    _, session, _ = server()
    assert not session.knowledge.local_files
    assert ReplSession(FakeBackend()).knowledge.local_files

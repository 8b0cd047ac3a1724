"""QMP over a real connection: negotiation, order, faults, several clients, slow ones."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.commands.blockmon import XBlockmonGraphChange
from engine.devices.events import Resume
from engine.engine import Engine
from engine.monitor import outlet as outlet_module
from engine.monitor.qmp.session import QMPSession
from engine.qapi import registry
from tests.engine.monitor.wire import Client, Server

VERSION = {"execute": "query-version"}


def emit(engine: Engine, number: int) -> None:
    engine.emit(XBlockmonGraphChange(generation=number))


def test_greeting_and_negotiation(server: Server) -> None:
    client = server.qmp()
    greeting = client.read()["QMP"]
    assert greeting["capabilities"] == ["oob"]
    assert greeting["version"]["qemu"] == {"major": 7, "minor": 2, "micro": 22}
    expecting = {
        "error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}
    }
    assert client.ask("query-version") == expecting
    assert client.ask("no-such-command") == expecting
    bad = client.ask("qmp_capabilities", enable=["foo"])
    assert bad["error"]["desc"] == "Parameter 'null' does not accept value 'foo'"
    assert client.ask("qmp_capabilities", enable=["oob"]) == {"return": {}}
    again = client.ask("qmp_capabilities")["error"]
    assert again == {
        "class": "CommandNotFound",
        "desc": "Capabilities negotiation is already complete, command ignored",
    }
    assert client.ask("no-such-command")["error"] == {
        "class": "CommandNotFound",
        "desc": "The command no-such-command has not been found",
    }


def test_messages_end_in_cr_lf_and_are_ascii(server: Server) -> None:
    client = server.qmp()
    assert client.line().endswith(b"}\r\n")
    client.send('{"execute": "qmp_capabilities", "id": "\u20ac\U0001f600"}\n')
    assert client.line() == b'{"return": {}, "id": "\\u20AC\\uD83D\\uDE00"}\r\n'


def resume(engine: Engine) -> None:
    """An event that QEMU has too."""
    engine.control.call(lambda: engine.emit(Resume()))


def test_pretty(server: Server) -> None:
    client = server.qmp(pretty=True)
    while client.line() != b"}\r\n":
        pass
    client.send({"execute": "qmp_capabilities", "id": None})
    lines = [client.line() for _ in range(5)]
    assert lines == [b"{\r\n", b'    "return": {\r\n', b"    },\r\n", b'    "id": null\r\n', b"}\r\n"]
    resume(server.engine)
    assert client.line() == b"{\r\n"
    assert client.line() == b'    "timestamp": {\r\n'


def test_id_is_echoed_with_results_and_errors(server: Server) -> None:
    client = server.qmp().negotiate()
    for given_id in (None, 0, [1, {"a": None}], "x", 1.5):
        client.send(VERSION | {"id": given_id})
        assert client.read()["id"] == given_id
    client.send({"execute": 5, "id": 7})
    assert client.read() == {
        "id": 7,
        "error": {"class": "GenericError", "desc": "QMP input member 'execute' must be a string"},
    }
    client.send(VERSION)
    assert "id" not in client.read()


def test_answers_come_in_order(server: Server) -> None:
    client = server.qmp().negotiate()
    sender = threading.Thread(
        target=lambda: client.send(b"".join(b'{"execute": "query-version", "id": %d}' % n for n in range(3000)))
    )
    sender.start()
    assert [client.reply()["id"] for _ in range(3000)] == list(range(3000))
    sender.join()


class Held:
    """A command that does not end before it is released, and one that may run out of band."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._released: asyncio.Event = engine.control.call(asyncio.Event)

    async def wait(self) -> None:
        await self._released.wait()

    def release(self) -> None:
        self._engine.control.post(self._released.set)


@pytest.fixture
def held(server: Server) -> Iterator[Held]:
    """The commands x-test-held and x-test-oob."""
    made = Held(server.engine)

    async def wait(engine: Engine) -> None:
        """End when the test says so."""
        await made.wait()

    def oob(engine: Engine) -> None:
        """Do nothing."""

    registry.command("x-test-held")(wait)
    registry.command("x-test-oob", allow_oob=True)(oob)
    yield made
    made.release()
    for name in ("x-test-held", "x-test-oob"):
        registry._commands.pop(name)


def test_a_slow_command_holds_up_its_own_client_only(server: Server, held: Held) -> None:
    client, other = server.qmp().negotiate(), server.qmp().negotiate()
    client.send({"execute": "x-test-held", "id": "slow"})
    client.send(VERSION | {"id": "behind"})
    assert "return" in other.ask("query-version")
    resume(server.engine)
    assert "event" in client.read()  # events do not wait for the command
    held.release()
    assert [client.reply()["id"], client.reply()["id"]] == ["slow", "behind"]


def test_out_of_band_overtakes(server: Server, held: Held) -> None:
    client = server.qmp().negotiate(enable=["oob"])
    client.send({"execute": "x-test-held", "id": "slow"})
    client.send(VERSION | {"id": "queued"})
    client.send({"exec-oob": "x-test-oob", "id": "oob"})
    assert client.reply()["id"] == "oob"
    held.release()
    assert [client.reply()["id"], client.reply()["id"]] == ["slow", "queued"]


def until(condition: Callable[[], bool], engine: Engine) -> None:
    """Wait for something that comes about on the control plane."""
    deadline = time.monotonic() + 20
    while not engine.control.call(condition):
        assert time.monotonic() < deadline


def test_reading_stops_when_too_much_is_queued(server: Server, held: Held) -> None:
    client = server.qmp().negotiate(enable=["oob"])
    session = server.sessions[-1]
    assert isinstance(session, QMPSession)
    transport = session._transport
    assert transport is not None
    client.send({"execute": "x-test-held"})
    client.send(b'{"execute": "query-version"}' * 4)
    until(lambda: len(session._queue) == 4, server.engine)
    assert transport.is_reading()
    client.send(b'{"execute": "query-version"}' * 4)
    until(lambda: not transport.is_reading(), server.engine)
    held.release()
    for _ in range(9):
        assert "return" in client.reply()
    until(transport.is_reading, server.engine)


def test_commands_wait_for_a_client_that_does_not_read(server: Server) -> None:
    client, other = server.qmp().negotiate(), server.qmp().negotiate()
    session = server.sessions[0]
    assert isinstance(session, QMPSession)
    transport = session._transport
    assert transport is not None
    client.send(b'{"execute": "query-qmp-schema"}' * 200)
    until(lambda: session._outlet.paused, server.engine)
    size = len(json.dumps(other.ask("query-qmp-schema")))
    for _ in range(200):
        assert "return" in other.ask("query-version")
    assert transport.get_write_buffer_size() < 20 * size
    assert len(session._queue) > 150
    assert len([client.reply() for _ in range(200)]) == 200


def test_out_of_band_faults(server: Server, held: Held) -> None:
    client = server.qmp().negotiate()
    client.send({"exec-oob": "x-test-oob"})
    assert client.reply()["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"
    client = server.qmp().negotiate(enable=["oob"])
    client.send({"exec-oob": "query-version"})
    assert client.reply()["error"]["desc"] == "The command query-version does not support OOB"
    client.send({"exec-oob": "nope"})
    assert client.reply()["error"]["class"] == "CommandNotFound"


def test_bad_json_is_answered_and_survived(server: Server) -> None:
    client = server.qmp().negotiate()
    client.send('@\n{"execute": "query-version", "id": 15}}\n{"a": 1, "a": 2}\n')
    assert client.reply()["error"] == {"class": "GenericError", "desc": "JSON parse error, stray '@'"}
    assert client.reply()["id"] == 15
    assert client.reply()["error"]["desc"] == "JSON parse error, expecting value"
    assert client.reply()["error"]["desc"] == "JSON parse error, duplicate key"
    client.send(VERSION | {"id": "after"})
    assert client.reply()["id"] == "after"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([b'{"execute":', b"[[", b'"\\', b"\xff", b"}"])))
)
def test_any_bytes_are_survived(server: Server, noise: list[bytes]) -> None:
    client = server.qmp().negotiate()
    for piece in noise:
        client.send(piece)
    # What clients do to start afresh: 0xFF ends whatever token, the newline ends the recovery.
    client.send(b"\xff\n" + json.dumps(VERSION | {"id": "after"}).encode() + b"\n")
    while client.reply().get("id") != "after":
        pass
    client.close()


def test_events_go_to_every_negotiated_client(server: Server) -> None:
    negotiated = [server.qmp().watch(), server.qmp().watch()]
    fresh = server.qmp()
    emit(server.engine, 41)
    emit(server.engine, 42)
    for client in negotiated:
        assert client.event("X_BLOCKMON_GRAPH_CHANGE")["data"] == {"generation": 41}
        event = client.event("X_BLOCKMON_GRAPH_CHANGE")
        assert event["data"] == {"generation": 42}
        assert event["timestamp"].keys() == {"seconds", "microseconds"}
    assert "QMP" in fresh.read()
    assert fresh.ask("qmp_capabilities") == {"return": {}}


def test_a_client_of_qemu_gets_no_events_that_qemu_has_not(server: Server) -> None:
    plain, ours = server.qmp().negotiate(), server.qmp().watch()
    emit(server.engine, 1)
    resume(server.engine)
    assert ours.event("X_BLOCKMON_GRAPH_CHANGE")["data"] == {"generation": 1}
    assert plain.read()["event"] == "RESUME"


def test_a_client_that_does_not_read_stalls_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet_module, "EVENT_LIMIT", 100)
    sleeper, reader = server.qmp().watch(), server.qmp().watch()
    sleeper.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(20_000):
        emit(server.engine, number)
    while reader.event("X_BLOCKMON_GRAPH_CHANGE")["data"]["generation"] != 19_999:
        pass
    assert "return" in reader.ask("query-version")
    # It wakes up: what it missed is told, in its place, and what came after that is complete.
    received, lost = [], 0
    while not received or received[-1] != 19_999:
        message = sleeper.read()
        if message["event"] == "X_BLOCKMON_EVENTS_LOST":
            lost += message["data"]["count"]
        else:
            received.append(message["data"]["generation"])
    assert lost > 0
    assert lost + len(received) == 20_000
    assert received == sorted(received)


def test_what_was_sent_before_the_end_is_answered(server: Server) -> None:
    client = server.qmp()
    client.send({"execute": "qmp_capabilities"})
    client.send(VERSION | {"id": 1})
    client.send(b'{"execute": "query-version", "id": 2')
    client.sock.shutdown(socket.SHUT_WR)
    client.read()
    assert client.reply() == {"return": {}}
    assert client.reply()["id"] == 1
    assert client.reply()["error"]["desc"] == "JSON parse error, premature EOI"
    assert client.line() == b""


def test_a_client_may_vanish_at_any_time(server: Server) -> None:
    for request in (b"", b'{"execute": "qmp_capabilities"}' * 50):
        client = server.qmp()
        client.send(request)
        client.close()
    witness = server.qmp().watch()
    emit(server.engine, 7)
    assert witness.event("X_BLOCKMON_GRAPH_CHANGE")["data"] == {"generation": 7}
    assert "return" in witness.ask("query-version")


def test_nothing_behind_quit_is_executed(server: Server) -> None:
    told = threading.Event()
    server.engine.on_quit = told.set
    client = server.qmp().negotiate()
    client.send(b'{"execute": "quit", "id": 1}{"execute": "query-version", "id": 2}')
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply() == {"return": {}, "id": 1}
    assert told.wait(20)
    assert client.line() == b""


def test_commands_of_the_monitor(server: Server) -> None:
    client: Client = server.qmp().negotiate()
    assert client.ask("human-monitor-command", command_line="help quit") == {
        "return": "quit|q  -- quit the emulator\r\n"
    }
    refused = client.ask("human-monitor-command", command_line="help", cpu_index=0)
    assert refused["error"]["desc"] == "Parameter 'cpu-index' expects a CPU number"
    assert client.ask("query-chardev") == {"return": []}
    assert client.ask("query-chardev-backends") == {"return": [{"name": "socket"}, {"name": "stdio"}]}
    with pytest.raises(Exception, match="already complete"):
        server.engine.execute("qmp_capabilities")

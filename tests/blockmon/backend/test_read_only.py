"""What may be asked of a server that is only looked at."""

from typing import Any

import pytest

from blockmon.backend import CommandError
from blockmon.backend.read_only import ReadOnlyBackend, why_refused
from tests.blockmon.fakes import FakeBackend


@pytest.mark.parametrize(
    "command",
    [
        *("query-block", "query-named-block-nodes", "x-debug-query-block-graph", "x-blockmon-query-graph"),
        *("x-query-virtio", "query-qmp-schema", "qmp_capabilities", "qom-get", "qom-list", "device-list-properties"),
        "query-something-of-the-future",
    ],
)
def test_looking(command: str) -> None:
    assert why_refused(command) is None


@pytest.mark.parametrize(
    "command",
    [
        *("quit", "stop", "cont", "blockdev-add", "block-stream", "job-pause", "transaction", "qom-set", "eject"),
        *("x-blockmon-open", "migrate", "object-add", "add-fd", "x-debug-block-dirty-bitmap-sha256", "trace-event-x"),
        *(
            "something-of-the-future",
            "query",
            "query-",
            "",
            "Query-Block",
            "xquery-block",
            "requery-block",
            "query-block_x",
        ),
        "query-rx-filter",  # it takes an event away from the manager
    ],
)
def test_what_could_change_something(command: str) -> None:
    assert why_refused(command) is not None


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        *(("info block", True), ("  info jobs", True), ("help", True), ("?", True), ("print $eip", True)),
        *(("print/x 1", True), ("p 1", True), ("info", True)),
        *(("commit all", False), ("qemu-io d 'read 0 1'", False), ("quit", False), ("q", False), ("", False)),
        *(("informal", False), ("xp /1 0", False), ("info block\nquit", False), ("infoblock", False)),
    ],
)
def test_hmp_lines(line: str, allowed: bool) -> None:
    assert (why_refused("human-monitor-command", {"command-line": line}) is None) is allowed


async def test_nothing_of_it_is_sent_and_the_way_out_is_told() -> None:
    inner = FakeBackend({"query-block": [], "stop": {}})
    backend = ReadOnlyBackend(inner)
    with pytest.raises(
        CommandError, match=r"'stop' may change something, and was not sent; --rw, or no --read-only, all"
    ):
        await backend.execute("stop")
    assert inner.calls == []
    assert await backend.execute("query-block") == []
    assert inner.calls == [("query-block", {})]


async def test_events_come_through() -> None:
    inner = FakeBackend()
    backend = ReadOnlyBackend(inner)
    seen: list[Any] = []
    end = backend.subscribe(seen.extend)
    inner.emit({"event": "STOP"})
    end()
    inner.emit({"event": "RESUME"})
    assert [event["event"] for event in seen] == ["STOP"]
    assert "read-only" in backend.title

"""Where the NBD server listens: what a name or no name at all stands for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import QMPError

BOTH = ("127.0.0.1", "::1")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def start(engine: Engine, type: str, **where: Any) -> None:
    engine.execute("nbd-server-start", {"addr": {"type": type, "data": where}})


def free_port() -> int:
    """A port that is free for both kinds of addresses."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as found:
        port: int = found.getsockname()[1]
        return port


def served(port: int, host: str) -> bool:
    """Whether an NBD server answers there."""
    try:
        with socket.create_connection((host, port), 10) as client:
            return client.recv(8, socket.MSG_WAITALL) == b"NBDMAGIC"
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    ("host", "options", "families"),
    [
        ("", {}, BOTH),
        ("", {"ipv4": True, "ipv6": True}, BOTH),
        ("", {"ipv4": True}, BOTH[:1]),
        ("", {"ipv6": False}, BOTH[:1]),
        ("", {"ipv6": True}, BOTH[1:]),
        ("", {"ipv4": False}, BOTH[1:]),
        ("::", {}, BOTH),
        ("::", {"ipv6": True}, BOTH[1:]),
        ("0.0.0.0", {}, BOTH[:1]),
        ("::1", {}, BOTH[1:]),
    ],
)
def test_every_address_of_a_host_is_served(
    engine: Engine, host: str, options: dict[str, bool], families: tuple[str, ...]
) -> None:
    port = free_port()
    start(engine, "inet", host=host, port=str(port), **options)
    assert tuple(each for each in BOTH if served(port, each)) == families


def test_an_address_of_several_may_be_taken(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        start(engine, "inet", host="", port=str(port))
        assert served(port, "::1")


@pytest.mark.parametrize("tight", [True, False])
def test_names_that_are_no_paths(engine: Engine, tight: bool) -> None:
    name = "blockmon-test-".ljust(107, "x")
    start(engine, "unix", path=name, abstract=True, tight=tight)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name)
        assert client.recv(8, socket.MSG_WAITALL) == b"NBDMAGIC"
    engine.execute("nbd-server-stop", {})
    with pytest.raises(QMPError, match=f"UNIX socket path '{name}x' is too long"):
        start(engine, "unix", path=name + "x", abstract=True, tight=tight)

"""Clients of a monitor, over one end of a socket pair."""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from engine.engine import Engine
from engine.monitor.hmp.session import HMPSession
from engine.monitor.qmp.events import EventHub
from engine.monitor.qmp.session import QMPSession
from engine.monitor.session import Session


class Client:
    """A QMP client that reads whole lines. `greeting` is taken on connecting."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(20)
        self._file = sock.makefile("rb")

    def send(self, data: bytes | str | dict[str, Any]) -> None:
        if isinstance(data, dict):
            data = json.dumps(data) + "\n"
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def line(self) -> bytes:
        """The next line; b"" at the end of the connection."""
        return self._file.readline()

    def read(self) -> dict[str, Any]:
        line = self.line()
        assert line, "the server closed the connection"
        message: dict[str, Any] = json.loads(line)
        return message

    def reply(self) -> dict[str, Any]:
        """The next message that is no event."""
        while "event" in (message := self.read()):
            pass
        return message

    def event(self, name: str) -> dict[str, Any]:
        """The next event called *name*."""
        while (message := self.read()).get("event") != name:
            pass
        return message

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.send({"execute": command, "arguments": {key.replace("_", "-"): v for key, v in arguments.items()}})
        return self.reply()

    def negotiate(self, **arguments: Any) -> "Client":
        assert "QMP" in self.read()
        assert self.ask("qmp_capabilities", **arguments) == {"return": {}}
        return self

    def watch(self) -> "Client":
        """Negotiate, and show that events that QEMU does not have are welcome."""
        self.negotiate()
        assert "return" in self.ask("x-blockmon-query-graph")
        return self

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class Server:
    """Sessions on an engine, each on a socket pair."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.hub: EventHub = engine.control.call(lambda: EventHub(engine))
        self.sessions: list[Session] = []
        self._clients: list[Client] = []

    def qmp(self, *, pretty: bool = False, keep_open: bool = False) -> Client:
        return self._connect(lambda: QMPSession(self.engine, self.hub, pretty=pretty, keep_open=keep_open))

    def hmp(self) -> Client:
        return self._connect(lambda: HMPSession(self.engine))

    def _connect(self, make: Callable[[], Session]) -> Client:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        async def connect() -> None:
            session = make()
            self.sessions.append(session)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: session, theirs)

        asyncio.run_coroutine_threadsafe(connect(), self.engine.control.loop).result(20)
        client = Client(ours)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()

        async def close() -> None:
            for session in self.sessions:
                session.abort()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(close(), self.engine.control.loop).result(20)

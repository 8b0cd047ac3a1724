"""A QMP server in the test's own loop that does as the test says."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 8, "minor": 1, "micro": 0}, "package": ""}, "capabilities": ["oob"]}}


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop go round until something holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  (it is looked at from outside)
            await asyncio.sleep(0)


class Fail(Exception):
    """What an answer raises to be an error of QMP."""


class WireServer:
    """Listens at a Unix socket. `answers[command]` is a function of the arguments; others are answered with {}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = f"unix:{path}"
        self.greeting: bytes | None = json.dumps(GREETING).encode() + b"\r\n"
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.commands: list[str] = []
        self.connections = 0
        self.held: set[str] = set()
        """Commands that are not answered."""
        self._kept: list[tuple[dict[str, Any], asyncio.StreamWriter]] = []
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Break all connections, and take no more."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
        self.hang_up()

    def hang_up(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def release(self) -> None:
        """Answer what was held."""
        kept, self._kept = self._kept, []
        for message, writer in kept:
            self._take(message, writer)

    def send(self, *messages: dict[str, Any], raw: bytes = b"") -> None:
        for writer in self._writers:
            writer.write(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages) + raw)

    def event(self, name: str, **data: Any) -> dict[str, Any]:
        return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        if self.greeting is not None:
            writer.write(self.greeting)
        text = ""
        while piece := await reader.read(65536):
            text += piece.decode()
            while text.strip():
                try:
                    message, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break  # the rest is on its way
                text = text[end:].lstrip()
                self._take(message, writer)

    def _take(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        command = message["execute"]
        self.commands.append(command)
        if command in self.held:
            self._kept.append((message, writer))
            return
        try:
            answer = self.answers.get(command, lambda arguments: {})(message.get("arguments", {}))
            reply: dict[str, Any] = {"return": answer}
        except Fail as error:
            reply = {"error": {"class": "GenericError", "desc": str(error)}}
        writer.write(json.dumps({**reply, "id": message["id"]} if "id" in message else reply).encode() + b"\r\n")

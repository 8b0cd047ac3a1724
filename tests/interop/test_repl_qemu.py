"""The prompt's session with the real programs as its server: what it learns of them, and that asking does no harm."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from blockmon.backend import CommandError, Event
from blockmon.repl.hmp_help import HMPHelp
from blockmon.repl.printers import Fragments, plain
from blockmon.repl.session import ReplSession
from tests.qemu import QemuImages, StorageDaemon


class DaemonBackend:
    """A qemu-storage-daemon as a backend; events come with the answers."""

    title = "qemu-storage-daemon"

    def __init__(self, daemon: StorageDaemon) -> None:
        self._daemon = daemon
        self._callbacks: list[Callable[[Sequence[Event]], None]] = []
        self._told = 0

    async def start(self) -> None:
        """It runs."""

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        reply = await asyncio.to_thread(self._daemon.ask, command, dict(arguments or {}))
        self.tell()
        if "error" in reply:
            raise CommandError(reply["error"]["class"], reply["error"]["desc"])
        return reply["return"]

    def tell(self) -> None:
        """Pass on the events that have come."""
        events = self._daemon.events[self._told :]
        self._told = len(self._daemon.events)
        for callback in self._callbacks:
            callback(events)

    def subscribe(self, callback: Callable[[Sequence[Event]], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    async def close(self) -> None:
        """The fixture ends it."""


class Prompt:
    """A session and what it printed."""

    def __init__(self, daemon: StorageDaemon) -> None:
        self.backend = DaemonBackend(daemon)
        self.printed: list[Fragments] = []
        self.session = ReplSession(self.backend, self.printed.append)

    def offers(self, text: str) -> list[tuple[str, str]]:
        found = self.session.completer.get_completions(Document(text, len(text)), CompleteEvent())
        return [(c.display_text, c.display_meta_text) for c in found]

    def text(self) -> str:
        text = "".join(plain(piece) for piece in self.printed)
        self.printed.clear()
        return text


@asynccontextmanager
async def prompt_on(daemon: StorageDaemon) -> AsyncIterator[Prompt]:
    prompt = Prompt(daemon)
    await prompt.session.start()
    await prompt.session.learned()
    yield prompt
    await prompt.session.close()


async def test_a_chain_is_opened_and_completed_from(
    images: QemuImages, start_qsd: Callable[..., StorageDaemon], tmp_path: Path
) -> None:
    base = images.create(tmp_path / "base.qcow2", "1M")
    top = images.create(tmp_path / "top.qcow2", backing=base)
    async with prompt_on(start_qsd()) as prompt:
        session = prompt.session
        offered = prompt.offers(f"blockdev-add driver=qcow2 node-name=top file.driver=file file.filename={tmp_path}/")
        assert [name for name, _ in offered] == ["base.qcow2", "top.qcow2"]
        assert all(meta.startswith("qcow2 ") for _, meta in offered)
        assert await session.submit(f"blockdev-add driver=qcow2 node-name=top file.driver=file file.filename={top}"), (
            prompt.text()
        )
        await session.knowledge.names.refresh()
        nodes = dict(prompt.offers("block-stream device="))
        assert nodes["top"] == "qcow2 1M rw top.qcow2"
        assert len(nodes) == 4
        prompt.text()
        assert not await session.submit("blockdev-del node-name=nope")
        assert prompt.text() == "GenericError: Failed to find node with node-name='nope'\n"
        assert not await session.submit("info block")
        assert "no human monitor" in prompt.text()


async def test_asking_for_names_does_not_crash_qemu_while_a_stream_job_waits_to_be_dismissed(
    images: QemuImages, start_qsd: Callable[..., StorageDaemon], tmp_path: Path
) -> None:
    base = images.create(tmp_path / "base.qcow2", "1M")
    top = images.create(tmp_path / "top.qcow2", backing=base)
    daemon = start_qsd("--blockdev", f"qcow2,node-name=top,file.driver=file,file.filename={top}")
    async with prompt_on(daemon) as prompt:
        session = prompt.session
        assert await session.submit("block-stream job-id=s device=top auto-dismiss=off"), prompt.text()
        await asyncio.to_thread(daemon.wait_event, "JOB_STATUS_CHANGE", id="s", status="concluded")
        prompt.backend.tell()
        for _ in range(3):
            session.knowledge.names.touch()
            await session.knowledge.names.refresh()
        assert prompt.offers("job-dismiss id=") == [("s", "stream concluded")]
        assert await session.submit("job-dismiss id=s")
        await session.knowledge.names.refresh()
        assert prompt.offers("job-dismiss id=") == []


def test_the_help_of_a_real_emulator_is_understood(qemu_system: str) -> None:
    lines = [
        {"execute": "qmp_capabilities"},
        {"execute": "human-monitor-command", "arguments": {"command-line": "help"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "help info"}},
        {"execute": "quit"},
    ]
    done = subprocess.run(
        [qemu_system, "-M", "none", "-display", "none", "-S", "-qmp", "stdio"],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answers = [message["return"] for message in map(json.loads, done.stdout.splitlines()) if "return" in message]
    text, info = (answer for answer in answers if isinstance(answer, str))
    found = HMPHelp.from_text(text, info)
    # Every line that begins with a name and has the dashes is one command.
    named = [line.split()[0].split("|")[0] for line in text.splitlines() if " -- " in line and line[0].isalpha()]
    assert set(named) <= set(found.commands)
    assert len(found.commands) > 90
    assert [a.name for a in found.commands["block_stream"].arguments] == ["device", "speed", "base"]
    assert [a.name for a in found.commands["nbd_server_add"].positional] == ["device", "name"]
    assert [a.name for a in found.info["block"].arguments] == ["-n", "-v", "device"]
    assert {"blockstats", "block-jobs", "snapshots"} <= set(found.info)

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
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """It runs."""

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        async with self._turn:
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
        assert prompt.text().startswith("GenericError: Failed to find node with node-name='nope'\n")
        assert not await session.submit("info block")
        assert "no human monitor" in prompt.text()


async def test_what_is_legal_on_a_real_daemon_is_offered(
    images: QemuImages, start_qsd: Callable[..., StorageDaemon], tmp_path: Path
) -> None:
    base = images.create(tmp_path / "base.qcow2", "1M")
    top = images.create(tmp_path / "top.qcow2", backing=base)
    await asyncio.to_thread(subprocess.run, ["qemu-img", "snapshot", "-c", "before", str(base)], check=True, timeout=30)
    daemon = start_qsd(
        *("--object", "throttle-group,id=tg"),
        *("--object", "iothread,id=io"),
        *("--blockdev", f"qcow2,node-name=base,file.driver=file,file.filename={base},read-only=on"),
        *(
            "--blockdev",
            f"qcow2,node-name=top,backing=base,file.driver=file,file.filename={top},file.node-name=top-file",
        ),
        *("--blockdev", "null-co,node-name=free,size=1048576"),
    )
    async with prompt_on(daemon) as prompt:
        session = prompt.session
        for command in (
            "block-dirty-bitmap-add node=top name=b0",
            "block-dirty-bitmap-add node=top name=b1 disabled=on",
            "block-dirty-bitmap-add node=free name=elsewhere",
            "blockdev-mirror job-id=copy device=free target=top sync=none",
            "blockdev-create job-id=made options={'driver':'file','filename':'%s','size':512}" % (tmp_path / "new"),
        ):
            await session.submit(command)
        await asyncio.to_thread(daemon.wait_event, "JOB_STATUS_CHANGE", id="made", status="concluded")
        prompt.backend.tell()
        prompt.offers("block-dirty-bitmap-clear node=top name=")  # what is in images is asked for when it is wanted
        session.knowledge.names.touch()
        await session.knowledge.names.refresh()

        def names(text: str) -> list[str]:
            return [name for name, _ in prompt.offers(text)]

        assert sorted(names("block-dirty-bitmap-clear node=top name=")) == ["b0", "b1"]
        assert names("block-dirty-bitmap-enable node=top name=") == ["b1"]
        assert names("block-dirty-bitmap-disable node=top name=") == ["b0"]
        assert names("block-dirty-bitmap-merge node=top target=b0 bitmaps.0.node=free bitmaps.0.name=") == ["elsewhere"]
        assert names("blockdev-snapshot-delete-internal-sync device=base name=") == ["before"]
        assert names("block-commit device=top base-node=") == ["base"]
        assert names("x-blockdev-change parent=top child=") == ["file", "backing"]
        reopen = "blockdev-reopen options.0.node-name=top options.0.driver="
        assert names(reopen) == ["qcow2"]
        backing = prompt.offers(reopen + "qcow2 options.0.backing=")
        assert backing[0][0] == "base"
        assert backing[0][1].startswith("now backing (cow) qcow2 1M")
        assert names("blockdev-add driver=throttle throttle-group=") == ["tg"]
        assert names("block-export-add type=nbd id=x node-name=top iothread=") == ["io"]
        assert names("job-dismiss id=") == ["made"]
        assert dict(prompt.offers("blockdev-backup on-source-error="))["stop"] == "pause the job, until it is resumed"


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

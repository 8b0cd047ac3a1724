"""The front end's back end and model on the real programs: what is shown of them, and that looking changes nothing."""

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from blockmon.backend import CommandError
from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.backend.remote import RemoteBackend
from blockmon.lang import Members, ParsedQMP, parse_input
from blockmon.model.graph import GraphModel
from blockmon.model.refresher import Changes, Refresher, ScreenState
from blockmon.tui.parent_actions import parent_choices
from tests.interop.remote_servers import NODES, Server, make_images, pc, storage_daemon
from tests.qemu import QemuImages

LIMIT = 20
MIRROR = {"job-id": "m0", "device": "top", "target": "target", "sync": "full", "speed": 65536}


@pytest.fixture
def where(tmp_path: Path, images: QemuImages) -> Path:
    make_images(images, tmp_path)
    return tmp_path


@pytest.fixture
def running() -> Iterator[list[Server]]:
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def daemon(qsd: str, where: Path, running: list[Server]) -> Server:
    running.append(storage_daemon(qsd, where))
    return running[-1]


@pytest.fixture
def machine(qemu_system: str, where: Path, running: list[Server]) -> Server:
    running.append(pc(qemu_system, where))
    return running[-1]


class Screen:
    """What a screen would show, and the wait until it shows something."""

    def __init__(self, server: Server, *, rw: bool = False) -> None:
        self.remote = RemoteBackend(server.address)
        self.backend = self.remote if rw else ReadOnlyBackend(self.remote)
        self.state = ScreenState()
        self.refresher = Refresher(self.backend, self.state, self._take)
        self._changed = asyncio.Event()

    def _take(self, changes: Changes) -> None:
        self._changed.set()

    @property
    def graph(self) -> GraphModel:
        return self.state.graph

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def screen_on(server: Server, *, rw: bool = False) -> AsyncIterator[Screen]:
    screen = Screen(server, rw=rw)
    screen.refresher.listen()
    await screen.backend.start()
    task = asyncio.create_task(screen.refresher.run())
    try:
        await screen.until(lambda: screen.state.graph.nodes)
        yield screen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await screen.backend.close()


async def test_a_storage_daemon_with_an_export(daemon: Server) -> None:
    async with screen_on(daemon) as screen:
        graph = screen.graph
        assert {"top", "top-file", "target", "target-file"} < set(graph.nodes)
        assert {parent.key for parent in graph.parents.values()} == {"export:e0"}
        exported = graph.child("export:e0", "root")
        assert exported is not None
        assert exported.child == "top"
        assert "write" in exported.perm
        backing = graph.child("top", "backing")
        assert backing is not None
        assert graph.nodes[str(backing.child)].filename.endswith("base.qcow2")
        assert graph.nodes["target"].monitor_owned


async def test_a_mirror_that_somebody_else_starts_and_ends(machine: Server) -> None:
    async with screen_on(machine) as screen:
        state = screen.state
        names = {parent.name: parent.model for parent in screen.graph.parents.values()}
        assert names == {"vda": "virtio-blk-pci", "hd0": "ide-hd", "cd0": "ide-cd"}
        machine.ask("blockdev-mirror", MIRROR)
        await screen.until(lambda: "job:m0" in screen.graph.parents and state.jobs.active)
        (job,) = state.jobs.listed()
        assert (job.id, job.type, job.status, job.speed) == ("m0", "mirror", "running", 65536)
        (disk,) = screen.graph.children("device:/machine/peripheral/vda/virtio-backend")
        assert screen.graph.nodes[str(disk.child)].driver == "mirror_top"
        assert {edge.child for edge in screen.graph.children("job:m0")} == {"top", "target", disk.child}
        machine.ask("block-job-cancel", {"device": "m0", "force": True})
        await screen.until(lambda: "job:m0" not in screen.graph.parents and not state.jobs.active)
        assert job.word == "cancelled"
        told = [state.events[number].name for number in range(len(state.events))]
        assert "BLOCK_JOB_CANCELLED" in told


async def test_what_a_command_of_ones_own_changed_is_seen_at_once(daemon: Server) -> None:
    async with screen_on(daemon, rw=True) as screen:
        await screen.backend.execute("blockdev-add", {"driver": "null-co", "node-name": "mine"})
        await screen.until(lambda: "mine" in screen.graph.nodes)


async def test_what_others_did_without_an_event_is_found_out(daemon: Server) -> None:
    async with screen_on(daemon) as screen:
        daemon.ask("blockdev-add", {"driver": "null-co", "node-name": "theirs"})
        await screen.until(lambda: "theirs" in screen.graph.nodes)


async def test_a_server_that_starts_again_is_shown_again(daemon: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmon.backend.remote.FIRST_RETRY", 0.1)
    async with screen_on(daemon) as screen:
        daemon.ask("blockdev-mirror", MIRROR)
        await screen.until(lambda: screen.state.jobs.active)
        daemon.stop()
        await screen.until(lambda: screen.state.lost)
        assert "top" in screen.graph.nodes  # what was last known stays to be seen
        await screen.until(lambda: screen.state.retry_in is not None)
        daemon.start()
        await screen.until(lambda: screen.state.lost is None and not screen.state.jobs.active)
        (job,) = screen.state.jobs.listed()
        assert job.word == "gone"  # nobody heard how it ended
        told = [screen.state.events[number].name for number in range(len(screen.state.events))]
        assert told.index("CONNECTION_LOST") < told.index("CONNECTION_RESTORED")
        assert "JOB_STATUS_CHANGE" in told


async def test_a_screen_of_read_only_leaves_the_server_as_it_is(daemon: Server) -> None:
    before = daemon.ask("x-debug-query-block-graph"), daemon.ask("query-jobs"), daemon.ask("query-block-exports")
    async with screen_on(daemon) as screen:
        for command, arguments in (
            ("blockdev-add", {"driver": "null-co", "node-name": "n"}),
            ("block-export-del", {"id": "e0"}),
            ("blockdev-mirror", MIRROR),
            ("quit", {}),
        ):
            with pytest.raises(CommandError, match="was not sent; --rw, or no --read-only, allows it"):
                await screen.backend.execute(command, arguments)
        with pytest.raises(CommandError, match="has not been found"):
            await screen.backend.execute("human-monitor-command", {"command-line": "info block"})
    assert (
        daemon.ask("x-debug-query-block-graph"),
        daemon.ask("query-jobs"),
        daemon.ask("query-block-exports"),
    ) == before


async def test_hmp_goes_through_the_machines_own_monitor(machine: Server) -> None:
    backend = ReadOnlyBackend(RemoteBackend(machine.address))
    await backend.start()
    try:
        assert "hd0" in await backend.execute("human-monitor-command", {"command-line": "info block"})
        with pytest.raises(CommandError, match="'commit' may change something"):
            await backend.execute("human-monitor-command", {"command-line": "commit all"})
    finally:
        await backend.close()


async def test_looking_does_not_crash_a_daemon_with_a_concluded_stream(daemon: Server) -> None:
    async with screen_on(daemon) as screen:
        daemon.ask("block-stream", {"job-id": "s", "device": "top", "auto-dismiss": False})
        await screen.until(lambda: (job := screen.state.jobs.live("s")) is not None and job.status == "concluded")
        with pytest.raises(CommandError, match="stream job 's' has to be dismissed first"):
            await screen.backend.execute("query-named-block-nodes")
        graph = await screen.refresher._source.fetch(screen.backend)  # type: ignore[union-attr]
        assert graph.nodes["top"].filename.endswith("top.qcow2")
        assert graph.child("top", "backing") is None
        daemon.ask("job-dismiss", {"id": "s"})
        assert daemon.process.poll() is None


async def test_looking_by_hmp_does_not_crash_a_machine_with_a_concluded_stream(machine: Server) -> None:
    async with screen_on(machine) as screen:
        machine.ask("block-stream", {"job-id": "s", "device": "top", "auto-dismiss": False})
        await screen.until(lambda: (job := screen.state.jobs.live("s")) is not None and job.status == "concluded")
        with pytest.raises(CommandError, match="stream job 's' has to be dismissed first"):
            await screen.backend.execute("human-monitor-command", {"command-line": "info block -n"})
        assert "hd0" in await screen.backend.execute("human-monitor-command", {"command-line": "info block"})
        screen.refresher.kick()
        await screen.until(lambda: "has to be dismissed first" in (screen.state.graph_error or ""))
        machine.ask("job-dismiss", {"id": "s"})
        await screen.until(lambda: screen.state.graph_error is None)
        assert machine.process.poll() is None


async def test_devices_are_found_by_what_the_menus_call_them(machine: Server) -> None:
    async with screen_on(machine, rw=True) as screen:
        await screen.until(lambda: len(screen.state.devices) >= 3)
        done: list[str] = []
        for name in ("vda", "hd0", "cd0"):
            key = next(key for key, parent in screen.graph.parents.items() if parent.name == name)
            for choice in parent_choices(screen.state, key):
                if choice.word in ("block-latency-histogram-set", "block_set_io_throttle", "blockdev-open-tray"):
                    schema = screen.state.commands
                    parsed = parse_input(choice.command, schema, lambda command: Members())
                    assert isinstance(parsed, ParsedQMP)
                    arguments = {"id": parsed.arguments["id"]}
                    if choice.word == "block-latency-histogram-set":
                        arguments["boundaries"] = [10, 100]
                    elif choice.word == "block_set_io_throttle":
                        arguments |= dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
                    await screen.backend.execute(choice.word, arguments)
                    done.append(f"{name} {choice.word}")
        assert {"vda block-latency-histogram-set", "hd0 block_set_io_throttle", "cd0 blockdev-open-tray"} <= set(done)


async def test_a_job_that_could_not_begin_has_not_completed(daemon: Server) -> None:
    async with screen_on(daemon, rw=True) as screen:
        # An export writes to this one.
        with pytest.raises(CommandError):
            await screen.backend.execute("blockdev-mirror", {**MIRROR, "device": "target", "target": "top"})
        await screen.until(lambda: screen.state.jobs.listed())
        await screen.until(lambda: screen.state.jobs.listed()[0].gone)
        assert screen.state.jobs.listed()[0].word == "failed"


async def test_blockmon_serve(where: Path, running: list[Server]) -> None:
    command = [sys.executable, "-m", "blockmon", "serve"]
    for node in NODES:
        command += ["--blockdev", node]
    running.append(Server([*command, "--qmp", "unix:{q}", "--qmp", "unix:{side}"], where))
    server = running[-1]
    async with screen_on(server) as screen:
        assert {"top", "target"} < set(screen.graph.nodes)
        server.ask("blockdev-mirror", MIRROR)
        await screen.until(lambda: "job:m0" in screen.graph.parents)


SCRIPT = """\
blockdev-mirror job-id=m0 device=top target=target sync=full
@wait-job m0 ready
block-job-complete device=m0
@wait-job m0 null
query-jobs
"""


def run(address: str, script: str, where: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "blockmon", "run", "--connect", address, "-"],
        input=script, capture_output=True, text=True, check=False, timeout=60, cwd=where,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["daemon", "machine"])
def test_a_command_file_runs_there(kind: str, where: Path, request: pytest.FixtureRequest, images: QemuImages) -> None:
    server: Server = request.getfixturevalue(kind)
    done = run(server.address, SCRIPT, where)
    assert (done.returncode, done.stderr) == (0, "")
    server.stop()
    images.check(where / "target.qcow2")
    images.assert_identical(where / "target.qcow2", where / "top.qcow2")


async def test_a_run_ends_when_its_server_does(daemon: Server, where: Path) -> None:
    command = [sys.executable, "-m", "blockmon", "run", "--trace", "--connect", daemon.address, "-"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"query-version\n@wait-event BLOCK_JOB_READY timeout=60s\nquery-version\n")
    process.stdin.close()
    async with asyncio.timeout(LIMIT):
        await process.stdout.readline()  # the answer: from here on it only waits
        daemon.stop()
        _, complaint = await process.communicate()
    assert process.returncode == 1
    assert b"-:2:1: " in complaint or b"<stdin>:2:1: " in complaint
    told = complaint.decode()
    assert re.search(r"the connection (is lost: the server has closed|was lost before 'query-qmp-schema')", told), told
    assert "Traceback" not in told

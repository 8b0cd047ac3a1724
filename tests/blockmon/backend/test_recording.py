"""Sessions that are recorded, and recordings that are replayed: the graph is the same afterwards."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blockmon import cli, demo
from blockmon.backend import Backend, CommandError, Event, open_backend
from blockmon.options import CommonOptions
from blockmon.replay.output import TextOutput
from blockmon.replay.runner import Runner

MIB = 1 << 20


class Session:
    """What somebody does at a prompt."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._statuses: dict[str, list[str]] = {}
        self._news = asyncio.Event()
        backend.subscribe(self._take)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if event["event"] == "JOB_STATUS_CHANGE":
                self._statuses.setdefault(event["data"]["id"], []).append(event["data"]["status"])
        self._news.set()

    async def qmp(self, command: str, /, **arguments: Any) -> Any:
        return await self.backend.execute(command, {name.replace("_", "-"): v for name, v in arguments.items()})

    async def hmp(self, line: str) -> str:
        return str(await self.qmp("human-monitor-command", command_line=line))

    async def fails(self, command: str, /, **arguments: Any) -> None:
        with pytest.raises(CommandError):
            await self.qmp(command, **arguments)

    async def job(self, job: str, status: str) -> None:
        async with asyncio.timeout(20):
            while status not in self._statuses.get(job, []):
                self._news.clear()
                await self._news.wait()
        self._statuses[job].clear()

    async def image(self, folder: Path, name: str, **options: Any) -> None:
        path = str(folder / f"{name}.qcow2")
        for image in (
            {"driver": "file", "filename": path, "size": 0},
            {"driver": "qcow2", "file": f"{name}-file", "size": 4 * MIB},
        ):
            if image["driver"] == "qcow2":
                await self.qmp("blockdev-add", driver="file", node_name=f"{name}-file", filename=path)
            await self.qmp("blockdev-create", job_id="create", options=image)
            await self.job("create", "concluded")
            await self.qmp("job-dismiss", id="create")
        await self.qmp("blockdev-add", driver="qcow2", node_name=name, file=f"{name}-file", **options)


async def graph_of(backend: Backend) -> Any:
    nodes = await backend.execute("query-named-block-nodes", {"flat": True})
    edges = await backend.execute("x-debug-query-block-graph")
    exports = await backend.execute("query-block-exports")
    text = json.dumps([sorted(nodes, key=lambda node: str(node["node-name"])), edges, exports], sort_keys=True)
    # Names that the engine makes up differ each time.
    made_up: dict[str, str] = {}
    return json.loads(re.sub(r"#block\d+", lambda name: made_up.setdefault(name[0], f"#block-{len(made_up)}"), text))


async def record(path: Path, do: Callable[[Session], Awaitable[None]], options: CommonOptions | None = None) -> Any:
    """The graph behind a session that was recorded to *path*."""
    options = options or CommonOptions()
    options.record = str(path)
    backend = open_backend(options)
    session = Session(backend)
    await backend.start()
    try:
        await do(session)
        return await graph_of(backend)
    finally:
        await backend.close()


async def replay(path: Path, options: CommonOptions | None = None) -> Any:
    """The graph behind a run of *path* on a fresh engine."""
    options = options or CommonOptions()
    backend = open_backend(options)
    await backend.start()
    try:
        runner = Runner(backend, TextOutput(open(os.devnull, "w")), options.run)  # noqa: ASYNC230, SIM115
        status = await runner.run(str(path))
        assert [str(failure) for failure in runner.failures] == []
        assert status == 0
        runner.close()
        return await graph_of(backend)
    finally:
        await backend.close()


async def test_snapshot_stream_mirror_bitmaps_exports_and_failures(tmp_path: Path) -> None:
    async def do(session: Session) -> None:
        qmp, hmp = session.qmp, session.hmp
        await session.image(tmp_path, "base")
        await hmp('qemu-io base "write -P 1 0 1M"')
        await qmp("object-add", qom_type="throttle-group", id="slow", limits={"bps-total": 64 * MIB})
        await qmp("blockdev-add", driver="throttle", node_name="disk", throttle_group="slow", file="base")
        await session.image(tmp_path, "overlay", backing=None)
        await session.fails("blockdev-snapshot", node="base", overlay="nothing")
        await qmp("blockdev-snapshot", node="base", overlay="overlay")
        await hmp('qemu-io disk "write -P 2 1M 64k"')
        await hmp('qemu-io disk "read -P 3 0 64k"')
        await qmp("block-stream", job_id="flatten", device="overlay", auto_dismiss=False)
        await session.job("flatten", "concluded")
        await session.fails("job-cancel", id="flatten")
        await qmp("job-dismiss", id="flatten")
        await qmp("block-dirty-bitmap-add", node="overlay", name="b0", persistent=True)
        await qmp(
            "transaction",
            actions=[
                {"type": "block-dirty-bitmap-add", "data": {"node": "overlay", "name": "b1", "granularity": 65536}},
                {"type": "block-dirty-bitmap-disable", "data": {"node": "overlay", "name": "b0"}},
            ],
        )
        await hmp('qemu-io disk "write -P 4 0 64k"')
        await session.image(tmp_path, "copy")
        await qmp("blockdev-mirror", job_id="move", device="disk", replaces="overlay", target="copy", sync="full")
        await session.job("move", "ready")
        await qmp("job-complete", id="move")
        await session.job("move", "null")
        await qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd")}})
        await session.fails("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd")}})
        await qmp("block-export-add", type="nbd", id="e0", node_name="copy", bitmaps=[])
        await qmp("block-export-add", type="nbd", id="e1", node_name="overlay")
        await qmp("block-export-del", id="e1")
        await qmp("blockdev-del", node_name="base")
        await hmp("block_resize nosuch 1M")
        await session.fails("nonsense")
        await session.fails("blockdev-del", node_name="copy", nonsense=1)

    path = tmp_path / "session.bmon"
    before = await record(path, do)
    (tmp_path / "nbd").unlink(missing_ok=True)
    assert {node["node-name"] for node in before[0]} >= {"disk", "copy", "overlay"}
    assert await replay(path) == before


async def test_jobs_that_fail_are_cancelled_or_are_paused_by_an_error(tmp_path: Path) -> None:
    async def do(session: Session) -> None:
        qmp = session.qmp
        await qmp("blockdev-add", driver="null-co", node_name="zeroes", size=MIB, read_zeroes=True)
        for event, name in (("write_aio", "once"), ("none", "always")):
            await qmp("blockdev-add", driver="null-co", node_name=f"{name}-below", size=MIB)
            rule = {"event": event, "once": name == "once"}
            await qmp("blockdev-add", driver="blkdebug", node_name=name, image=f"{name}-below", inject_error=[rule])
        await qmp("blockdev-backup", job_id="lost", device="zeroes", target="always", sync="full")
        await session.job("lost", "null")
        await qmp("blockdev-backup", job_id="bad", device="zeroes", target="always", sync="full", auto_dismiss=False)
        await session.job("bad", "concluded")
        await qmp("job-dismiss", id="bad")
        await qmp("blockdev-create", job_id="nofile", options={"driver": "file", "filename": "/nowhere/a", "size": 1})
        await session.job("nofile", "concluded")
        await qmp("blockdev-mirror", job_id="m", device="zeroes", target="once-below", sync="full", auto_dismiss=False)
        await session.job("m", "ready")
        await qmp("job-pause", id="m")
        await session.job("m", "standby")
        await qmp("job-resume", id="m")
        await qmp("block-job-cancel", device="m", force=True)
        await session.job("m", "concluded")
        await qmp("blockdev-del", node_name="once")

    path = tmp_path / "session.bmon"
    assert await record(path, do) == await replay(path)
    text = path.read_text()
    assert "@wait-job lost null\n" in text
    assert "$[?id==bad].error" in text
    assert "@wait-job m standby" not in text
    assert "@wait-job m paused|standby\n" in text


async def test_start_up_options_are_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "an image.raw"
    image.write_bytes(bytes(MIB))
    monkeypatch.setenv("BLOCKMON_SECRET_SEC0", "letmein")

    def options() -> CommonOptions:
        result = CommonOptions(images=[str(image)], rw=True)
        result.startup = [
            ("--object", "secret,id=sec0,data=letmein"),
            ("--blockdev", f"raw,node-name=r,file.driver=null-co,file.size={MIB}"),
            ("--device", "virtio-blk,id=vd0,drive=r"),
            ("--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd,max-connections=3"),
            ("--drive", "if=none,id=d0,driver=null-co,read-zeroes=on"),
            ("--blockdev", '{"driver": "null-co", "node-name": "n0"}'),
            ("--export", "nbd,id=e0,node-name=n0,name=x"),
            ("--drive", "if=virtio,driver=null-co,id=d1"),
        ]
        return result

    async def nothing(session: Session) -> None: ...

    path = tmp_path / "session.bmon"
    before = await record(path, nothing, options())
    text = path.read_text()
    assert "letmein" not in text
    assert "# Replay with these options: --drive if=virtio,driver=null-co,id=d1\n" in text
    with_drive = CommonOptions(startup=[("--drive", "if=virtio,driver=null-co,id=d1")])
    after = await replay(path, with_drive)
    # The drive comes first now.
    assert sorted(node["node-name"][:6] for node in after[0]) == sorted(node["node-name"][:6] for node in before[0])
    assert after[2] == before[2]


async def test_the_demo(tmp_path: Path) -> None:
    first, second = tmp_path / "the demo", tmp_path / "again"
    first.mkdir()
    second.mkdir()

    async def build(session: Session) -> None:
        await demo.build(first, session.backend)
        # The guests and the slow job go on; what is compared stands still.
        for device in ("vda", "vdb"):
            await session.qmp("x-blockmon-guest-del", id=device)
        await session.qmp("job-cancel", id="flatten")
        await session.job("flatten", "null")
        await session.job("merge", "ready")
        await session.qmp("block-job-cancel", device="merge")
        await session.job("merge", "null")

    path = tmp_path / "demo.bmon"
    before = await record(path, build, CommonOptions(places={"DIR": str(first)}))
    text = path.read_text()
    assert "# Replay with these options: --set DIR=FOLDER\n" in text
    assert str(first) not in text
    options = CommonOptions()
    options.run.variables["DIR"] = str(second)
    after = await replay(path, options)
    assert json.loads(json.dumps(same_but_sizes(after)).replace(str(second), str(first))) == same_but_sizes(before)


def same_but_sizes(graph: Any) -> Any:
    """Without what depends on how far guests and jobs got."""
    for node in graph[0]:
        for image in (node["image"], node["image"].get("backing-image", {})):
            image.pop("actual-size", None)
        node.pop("image")
    return graph


async def test_what_clients_of_monitors_do_is_recorded(tmp_path: Path) -> None:
    path, qmp, hmp = tmp_path / "served.bmon", tmp_path / "qmp", tmp_path / "hmp"
    pidfile = tmp_path / "pid"
    args = ["serve", "--record", str(path), "--qmp", f"unix:{qmp}", "--hmp", f"unix:{hmp}", "--pidfile", str(pidfile)]
    args += ["--blockdev", "null-co,node-name=n0,size=1048576"]
    server = subprocess.Popen([sys.executable, "-m", "blockmon", *args])  # noqa: ASYNC220
    try:
        async with asyncio.timeout(20):
            while not pidfile.exists():
                assert server.poll() is None
                await asyncio.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(hmp))
            file = client.makefile("rwb")
            file.write(b'info block\nblock_resize n0 2M\nqemu-io n0 "write 0 64k"\nfrobnicate\n')
            file.flush()
            client.shutdown(socket.SHUT_WR)
            file.read()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(qmp))
            file = client.makefile("rwb")
            for command in (
                {"execute": "qmp_capabilities"},
                {"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "r0", "file": "n0"}},
                {"execute": "query-block"},
                {"execute": "blockdev-del", "arguments": {"node-name": "n0"}},
                {"execute": "quit"},
            ):
                file.write(json.dumps(command).encode() + b"\n")
            file.flush()
            file.read()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
    statements = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert statements[:1] == ["blockdev-add driver=null-co node-name=n0 size=1048576"]
    assert statements[1:3] == [
        "block_resize n0 2M",
        "@error GenericError /Image format driver does not support resize/",
    ]
    assert statements[3:-1] == [
        'qemu-io n0 "write 0 64k"',
        "blockdev-add driver=raw node-name=r0 file=n0",
        "blockdev-del node-name=n0",
    ]
    assert statements[-1] == "@error GenericError /Block device n0 is in use/"


async def test_commands_within_commands_are_recorded_once(tmp_path: Path) -> None:
    async def do(session: Session) -> None:
        await session.qmp("blockdev-add", driver="null-co", node_name="n0", size=MIB)
        await session.hmp("object_add throttle-group,id=g0")
        await session.qmp("blockdev-add", driver="raw", node_name="r0", file="n0")

    path = tmp_path / "session.bmon"
    await record(path, do)
    statements = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert statements == [
        "blockdev-add driver=null-co node-name=n0 size=1048576",
        "object_add throttle-group,id=g0",
        "blockdev-add driver=raw node-name=r0 file=n0",
    ]


def test_a_run_says_that_its_recording_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.bmon"
    script.write_text("blockdev-add driver=null-co node-name=a0\nblockdev-del node-name=a0\n")
    assert cli.main(["run", "--record", "/dev/full", str(script)]) == 0
    assert capsys.readouterr() == ("{}\n{}\n", "--record /dev/full: No space left on device; recording has stopped\n")


async def test_names_that_the_engine_made_up_are_pointed_out(tmp_path: Path) -> None:
    async def do(session: Session) -> None:
        await session.qmp("blockdev-add", driver="raw", node_name="r0", file={"driver": "null-co"})
        graph = await session.qmp("query-named-block-nodes", flat=True)
        [name] = [node["node-name"] for node in graph if node["node-name"] != "r0"]
        await session.qmp("block-set-write-threshold", node_name=name, write_threshold=5)

    path = tmp_path / "session.bmon"
    await record(path, do)
    assert re.search(r"# #block\d+ is a name that the engine made up; .*\nblock-set-write-threshold ", path.read_text())

"""The model and the screen on QEMUs of other ages: nothing is asked that they do not have, nothing breaks."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from blockmon.backend import remote
from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.backend.remote import RemoteBackend
from blockmon.options import CommonOptions
from blockmon.repl.session import ReplSession
from blockmon.tui.actions import job_choices
from blockmon.tui.app import BlockmonApp
from blockmon.tui.subject import NodeSubject
from tests.blockmon.backend.fake_qemu import AGES, FakeQemu
from tests.blockmon.tui.screens import line_with, lines, text, until


@pytest.fixture
async def server(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[FakeQemu]:
    server = FakeQemu(tmp_path / "q", request.param)
    await server.listen()
    yield server
    await server.stop()


def app_on(server: FakeQemu) -> BlockmonApp:
    backend = ReadOnlyBackend(RemoteBackend(server.address))
    session = ReplSession(backend, show_events=False, local_files=False)
    return BlockmonApp(backend, session, CommonOptions(connect=server.address, read_only=True))


@pytest.mark.parametrize("server", AGES, indirect=True)
async def test_every_age_has_the_same_picture(server: FakeQemu) -> None:
    app = app_on(server)
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        shown = text(app)
        for words in ("vda  virtio-blk-pci", "mirror_top", "backing → top  qcow2", "file → "):
            assert words in shown, shown
        assert app.state.graph_error is None
        assert app.state.jobs.listed()[0].type == "mirror"
        # Every page of a node and of a device can be shown.
        await pilot.press("f2", "down", "down", "f6")
        for key in "123456":
            await pilot.press(key)
            await pilot.pause()
            await until(pilot, lambda: "asking" not in text(app))
            assert "unexpected" not in text(app)
        await pilot.press("f3", "f6", "1")
        await pilot.pause()
    await app.session.close()
    await app.backend.close()
    assert not {name for name, _ in server.asked} - set(server.commands_known)
    assert ("query-jobs" in {name for name, _ in server.asked}) is ("query-jobs" in server.commands_known)


@pytest.mark.parametrize("server", ["2.12", "9.2"], indirect=True)
async def test_permissions_that_nobody_tells_are_not_made_up(server: FakeQemu) -> None:
    app = app_on(server)
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        await pilot.press("f2", "f6", "2")
        await until(pilot, lambda: line_with(app, "x-debug-query-block-graph"))
        assert "lets others have it" not in text(app)
        await pilot.press("1")
        await until(pilot, lambda: line_with(app, "access"))
        assert "takes" not in line_with(app, "access")
        await pilot.press("f2", "down", "f6", "1")
        await until(pilot, lambda: line_with(app, "parents"))
        assert "shares" not in line_with(app, "parents")
        assert any("(root)" in line for line in lines(app))
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["7.2"], indirect=True)
async def test_permissions_that_are_told_are_shown(server: FakeQemu) -> None:
    app = app_on(server)
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        await pilot.press("f2", "f6", "2")
        await until(pilot, lambda: "lets others have it" in text(app))
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["7.2"], indirect=True)
async def test_a_graph_that_is_not_fresh_says_so(server: FakeQemu) -> None:
    app = app_on(server)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        concluded = [{"device": "s", "type": "stream", "status": "concluded", "auto-dismiss": False}]
        mirror: Any = server.answers["query-block-jobs"]({})
        server.answers["query-block-jobs"] = lambda arguments: concluded
        server.send(server.event("JOB_STATUS_CHANGE", id="s", status="concluded"))
        await until(pilot, lambda: "old node details: stream job 's' has to be dismissed first" in text(app))
        server.answers["query-block-jobs"] = lambda arguments: mirror
        server.send(server.event("JOB_STATUS_CHANGE", id="s", status="null"))
        await until(pilot, lambda: "old node details" not in text(app))
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["7.2"], indirect=True)
async def test_a_server_that_hangs_is_seen_to(server: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.05)
    app = app_on(server)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        server.held |= set(server.commands_known)
        app.refresher.kick()
        await until(pilot, lambda: "no answer since" in lines(app)[0])
        server.held.clear()
        server.release()
        await until(pilot, lambda: "no answer since" not in lines(app)[0])
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["7.2"], indirect=True)
async def test_what_is_not_told_yet_is_not_taken_for_nothing(server: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    server.held.add("query-named-block-nodes")
    app = app_on(server)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "asking for the graph" in text(app))
        assert "No block nodes yet" not in text(app)
        assert "? nodes" in lines(app)[0]
        server.held.clear()
        server.release()
        await until(pilot, lambda: "vda  virtio-blk-pci" in text(app))
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["7.2"], indirect=True)
async def test_what_is_not_counted_is_no_zero(server: FakeQemu) -> None:
    server.answers["query-blockstats"] = lambda arguments: []
    app = app_on(server)
    async with app.run_test(size=(120, 30)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        await until(pilot, lambda: lines(app)[0].split()[-4:] == ["read", "-", "write", "-"])
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["2.12"], indirect=True)
async def test_jobs_of_a_server_that_knows_block_jobs_only(server: FakeQemu) -> None:
    app = app_on(server)
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        job = app.state.jobs.listed()[0]
        name = job.id
        assert {choice.name: choice.command for choice in job_choices(app.state, job.serial)} == {
            "pause": f"block-job-pause device={name}",
            "set speed": f"block-job-set-speed device={name} speed={job.speed}",
            "cancel": f"block-job-cancel device={name}",
        }
        job.status, job.paused = "standby", True
        assert {choice.name: choice.command for choice in job_choices(app.state, job.serial)} == {
            "resume": f"block-job-resume device={name}",
            "set speed": f"block-job-set-speed device={name} speed={job.speed}",
            "complete": f"block-job-complete device={name}",
            "cancel by force": f"block-job-cancel device={name} force=on",
        }
    await app.session.close()
    await app.backend.close()


@pytest.mark.parametrize("server", ["2.12"], indirect=True)
async def test_bitmaps_that_only_devices_tell_of(server: FakeQemu) -> None:
    app = app_on(server)
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: app.graph.rows and app.state.jobs.active)
        name = next(name for name, node in app.state.graph.nodes.items() if node.bitmaps)
        assert "1 bitmap" in text(app)
        app.graph.reveal(NodeSubject(name))
        app.inspector.inspect(NodeSubject(name))
        await pilot.press("f6", "3")
        await until(pilot, lambda: "daily" in text(app))
        assert "recording" in text(app)
    await app.session.close()
    await app.backend.close()

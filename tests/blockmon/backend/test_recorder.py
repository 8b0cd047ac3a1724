"""What a recorder writes: the head, the order, the waits, and what happens when it can't."""

import asyncio
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from blockmon.backend import CommandError, Event, EventCallback
from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.backend.recorder import Recorder
from blockmon.backend.recording import STOPPED, RecordingBackend
from blockmon.options import StartupError


class Server:
    """A Backend elsewhere: answers what `answers` has, and says `events` when told to."""

    title = "unix:/somewhere"

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.callbacks: list[EventCallback] = []
        self.closed = False

    async def start(self) -> None: ...

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        answer = self.answers.get(command, {})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def subscribe(self, callback: EventCallback) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    async def close(self) -> None:
        self.closed = True


class Scene:
    """A recorder that is told what happens, and the statements it wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recorder = Recorder(str(path))

    def event(self, name: str, **data: Any) -> None:
        self.recorder.event({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def job(self, job: str, *statuses: str) -> None:
        for status in statuses:
            self.event("JOB_STATUS_CHANGE", id=job, status=status)

    def do(
        self, command: str, /, *, fails: CommandError | None = None, meanwhile: Any = None, **arguments: Any
    ) -> None:
        end = self.recorder.begin(command, {name.replace("_", "-"): value for name, value in arguments.items()})
        if meanwhile is not None:
            meanwhile()
        end({}, fails)

    def statements(self) -> list[str]:
        self.recorder.close()
        return [line for line in self.path.read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "session.bmon")


def test_queries_and_what_jobs_refuse_are_left_out(scene: Scene) -> None:
    scene.do("query-jobs")
    scene.do("human-monitor-command", command_line="info block")
    scene.do("job-cancel", id="a", fails=CommandError("GenericError", "Job not found"))
    scene.do("blockdev-del", node_name="a", fails=CommandError("GenericError", "Node a is (not) there"))
    scene.do("quit")
    assert scene.statements() == ["blockdev-del node-name=a", r"@error GenericError /Node a is \(not\) there/"]
    text = scene.path.read_text()
    assert "# failed, and left out: job-cancel id=a\n#     Job not found\n" in text
    assert "# quit\n" in text


def test_a_command_waits_for_what_jobs_had_come_to(scene: Scene) -> None:
    scene.do("blockdev-mirror", job_id="m", meanwhile=lambda: scene.job("m", "created", "running"))
    scene.job("m", "ready", "standby", "ready")
    scene.do("job-complete", id="m", meanwhile=lambda: scene.job("m", "waiting", "pending", "concluded"))
    scene.do("blockdev-del", node_name="a")
    assert scene.statements() == [
        "blockdev-mirror job-id=m",
        "@wait-job m ready",
        "job-complete id=m",
        "@wait-job m success",
        "blockdev-del node-name=a",
    ]


def test_the_end_waits_too(scene: Scene) -> None:
    scene.do("block-stream", job_id="s", meanwhile=lambda: scene.job("s", "created", "running"))
    scene.job("s", "waiting", "pending", "concluded", "null")
    assert scene.statements() == ["block-stream job-id=s", "@wait-job s success", "@wait-job s null"]


def test_a_dismissed_job_needs_no_wait_to_be_gone(scene: Scene) -> None:
    scene.do("block-stream", job_id="s", meanwhile=lambda: scene.job("s", "created", "running"))
    scene.job("s", "waiting", "pending", "concluded")
    scene.do("job-dismiss", id="s", meanwhile=lambda: scene.job("s", "null"))
    scene.do("block-stream", job_id="s", meanwhile=lambda: scene.job("s", "created", "running"))
    assert scene.statements() == [
        "block-stream job-id=s",
        "@wait-job s success",
        "job-dismiss id=s",
        "block-stream job-id=s",
    ]


def test_jobs_that_fail_or_are_cancelled(scene: Scene) -> None:
    for job in ("gone", "left", "cancelled"):
        scene.do("block-stream", job_id=job)
        scene.job(job, "created", "running", "aborting")
        if job == "cancelled":
            scene.event("BLOCK_JOB_CANCELLED", device=job)
        scene.job(job, "concluded", *(["null"] if job == "gone" else []))
    assert scene.statements() == [
        "block-stream job-id=gone",
        "@wait-job gone null",
        "block-stream job-id=left",
        "@retry 3000 every 200ms",
        "query-jobs",
        "@expect $[?id==left].status == concluded",
        "@expect $[?id==left].error ~ .",
        "block-stream job-id=cancelled",
        "@wait-job cancelled concluded",
    ]


def test_pauses_are_waited_for_only_by_the_command_that_ends_them(scene: Scene) -> None:
    scene.do("block-stream", job_id="s", meanwhile=lambda: scene.job("s", "created", "running"))
    scene.job("s", "paused")
    scene.do("blockdev-del", node_name="a")
    scene.do("job-resume", id="s")
    assert scene.statements() == [
        "block-stream job-id=s",
        "blockdev-del node-name=a",
        "@wait-job s paused|standby",
        "job-resume id=s",
    ]


def test_a_wait_for_what_goes_away_later(scene: Scene) -> None:
    scene.do("device_del", id="d")
    scene.event("DEVICE_DELETED", path="/machine/peripheral/d/x")
    scene.event("DEVICE_DELETED", device="d", path="/machine/peripheral/d")
    scene.do("blockdev-del", node_name="n0")
    scene.do("block-export-del", id="e", meanwhile=lambda: scene.event("BLOCK_EXPORT_DELETED", id="e"))
    scene.do("blockdev-del", node_name="n1")
    assert scene.statements() == [
        "device_del id=d",
        "@wait-event DEVICE_DELETED device=d",
        "blockdev-del node-name=n0",
        "block-export-del id=e",
        "blockdev-del node-name=n1",
    ]


def test_the_file_is_the_owners_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bmon"
    path.write_text("what was here before\n" * 100)
    path.chmod(0o644)
    Recorder(str(path), ["a note", "of\nlines"]).close()
    head = path.read_text().splitlines()
    assert head[0].startswith("# Recorded by blockmon ")
    assert head[1:] == ["# a note", "# of", "# lines"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_each_command_is_in_the_file_at_once(scene: Scene) -> None:
    scene.do("blockdev-del", node_name="a")
    deadline = time.monotonic() + 10
    while "blockdev-del node-name=a\n" not in scene.path.read_text():
        assert time.monotonic() < deadline, "nothing was written before the end"
        os.sched_yield()
    scene.recorder.close()


async def test_a_full_disk_is_told_once_and_the_session_goes_on() -> None:
    backend = RecordingBackend(Server(), "/dev/full")
    told: list[Event] = []
    came = asyncio.Event()

    def take(events: Any) -> None:
        told.extend(events)
        came.set()

    backend.subscribe(take)
    await backend.start()
    async with asyncio.timeout(10):
        await came.wait()
    for _ in range(3):
        assert await backend.execute("blockdev-del", {"node-name": "a"}) == {}
    await backend.close()
    [event] = told
    assert event["event"] == STOPPED
    assert event["data"] == {"reason": "/dev/full: No space left on device; recording has stopped"}
    assert backend.recording is None


async def test_a_file_that_cannot_be_made_is_the_options_fault(tmp_path: Path) -> None:
    backend = RecordingBackend(Server(), str(tmp_path / "no" / "a.bmon"))
    with pytest.raises(StartupError, match=r"--record .*/no/a.bmon: No such file or directory"):
        await backend.start()


async def test_a_remote_session_is_recorded_by_what_is_sent(tmp_path: Path) -> None:
    server = Server()
    server.answers = {"query-jobs": [], "blockdev-del": CommandError("GenericError", "no")}
    backend = RecordingBackend(server, str(tmp_path / "a.bmon"))
    await backend.start()
    await backend.execute("query-jobs")
    await backend.execute("block-stream", {"job-id": "s"})
    for status in ("created", "running", "concluded"):
        server.callbacks[0]([{"event": "JOB_STATUS_CHANGE", "data": {"id": "s", "status": status}}])
    with pytest.raises(CommandError):
        await backend.execute("blockdev-del", {"node-name": "a"})
    await backend.close()
    assert server.closed
    assert not server.callbacks
    lines = (tmp_path / "a.bmon").read_text().splitlines()
    assert "# Engine: unix:/somewhere" in lines
    assert [line for line in lines if line and line[0] != "#"] == [
        "block-stream job-id=s",
        "@wait-job s success",
        "blockdev-del node-name=a",
        "@error GenericError /no/",
    ]


async def test_recording_is_begun_and_ended_at_run_time(tmp_path: Path) -> None:
    backend = RecordingBackend(Server())
    await backend.start()
    assert backend.recording is None
    assert backend.stop_recording() is None
    await backend.execute("blockdev-del", {"node-name": "before"})
    first, second = str(tmp_path / "1.bmon"), str(tmp_path / "2.bmon")
    backend.record(first)
    await backend.execute("blockdev-del", {"node-name": "one"})
    with pytest.raises(FileNotFoundError):
        backend.record(str(tmp_path / "no" / "3.bmon"))
    assert backend.recording == first
    backend.record(second)
    await backend.execute("blockdev-del", {"node-name": "two"})
    assert backend.stop_recording() == second
    await backend.execute("blockdev-del", {"node-name": "after"})
    await backend.close()
    for path, name in ((tmp_path / "1.bmon", "one"), (tmp_path / "2.bmon", "two")):
        text = path.read_text()
        assert text.count("blockdev-del") == 1
        assert f"blockdev-del node-name={name}\n" in text
        assert "# Begun in the middle of a session" in text


async def test_what_was_not_sent_is_no_statement(tmp_path: Path) -> None:
    backend = RecordingBackend(ReadOnlyBackend(Server()), str(tmp_path / "a.bmon"))
    await backend.start()
    with pytest.raises(CommandError, match="read-only"):
        await backend.execute("blockdev-del", {"node-name": "a"})
    await backend.close()
    text = (tmp_path / "a.bmon").read_text()
    assert "\nblockdev-del" not in text
    assert "# failed, and left out: blockdev-del node-name=a\n" in text


def test_folders_that_go_are_variables(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "a.bmon"), places={"DIR": "/tmp/a b"})
    recorder.begin("blockdev-add", {"file": {"filename": "/tmp/a b/x.raw"}, "list": ["/tmp/a b"]})({}, None)
    error = CommandError("GenericError", "Could not open '/tmp/a b/y': No such file")
    recorder.begin("human-monitor-command", {"command-line": "drive_add 0 file=/tmp/a b/y"})(None, error)
    recorder.close()
    assert [line for line in (tmp_path / "a.bmon").read_text().splitlines() if line and line[0] != "#"] == [
        'blockdev-add file.filename="${DIR}/x.raw" list=["${DIR}"]',
        "drive_add 0 file=${DIR}/y",
        r"@error GenericError /Could not open '${DIR}\/y': No such file/",
    ]


async def test_a_command_whose_answer_was_lost_is_a_comment(tmp_path: Path) -> None:
    server = Server()
    server.answers = {"blockdev-del": ConnectionError("the server has gone")}
    backend = RecordingBackend(server, str(tmp_path / "a.bmon"))
    await backend.start()
    with pytest.raises(ConnectionError):
        await backend.execute("blockdev-del", {"node-name": "a"})
    await backend.close()
    assert (
        (tmp_path / "a.bmon")
        .read_text()
        .endswith("# failed, and left out: blockdev-del node-name=a\n#     the server has gone\n")
    )


def test_times_are_comments(scene: Scene) -> None:
    scene.do("blockdev-del", node_name="a")
    scene.statements()
    now = time.strftime("# %Y-%m-%d %H:")
    assert any(line.startswith(now) for line in scene.path.read_text().splitlines())

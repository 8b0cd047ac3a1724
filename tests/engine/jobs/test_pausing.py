"""Pause, resume, drain, speed and cancel, in any order: legal states, no work while halted, nothing gets stuck."""

import itertools
import random
import threading
import time
from typing import Any

import pytest

from engine.errors import QMPError
from engine.graph.drain import drained
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.jobs.blockjob import BlockJob
from engine.jobs.job import JobCancelled
from engine.jobs.states import TRANSITIONS
from engine.jobs.types import JobStatus, JobType
from tests.engine.jobs.session import Session


class Ticker(BlockJob):
    """Counts up without a pause of its own; also reads its node, as a drain must find nothing in flight."""

    job_type = JobType.STREAM
    completable = True

    def __init__(self, session: Session, node: Node, **options: Any) -> None:
        super().__init__(session.engine.jobs, "t", node, Perm.NONE, Perm.ALL, **options)
        self.ticks = 0
        self.in_step = False
        self.makes_ready = False
        self.ended = threading.Event()
        self.backend = self.add_backend(node, Perm.CONSISTENT_READ, Perm.ALL)
        self._end = False

    def run(self) -> None:
        try:
            buffer = memoryview(bytearray(512))
            self.set_remaining(1 << 40)
            while not self._end and not self.cancel_requested:
                self.pace()
                self.in_step = True
                self.backend.read(0, buffer)
                self.in_step = False
                with self._changed:
                    self.ticks += 1
                    self._changed.notify_all()
                self.progress(512)
                self.account(512)
                if self.makes_ready and not self.is_ready:
                    self.become_ready()
        finally:
            self.ended.set()

    def on_complete(self) -> None:
        self._end = True

    def on_cancel(self, force: bool) -> bool:
        return force or not self.is_ready


@pytest.fixture
def node(session: Session) -> Node:
    session.do("blockdev-add", driver="null-co", node_name="n", read_zeroes=True)
    return session.node("n")


def start(session: Session, node: Node, **options: Any) -> Ticker:
    def make() -> Ticker:
        job = Ticker(session, node, **options)
        job.start()
        return job

    made = session.call(make)
    assert isinstance(made, Ticker)
    return made


def test_no_tick_while_paused(session: Session, node: Node) -> None:
    job = start(session, node)
    session.do("job-pause", id="t")
    session.wait_status("t", "paused")
    ticks = job.ticks
    info = session.do("query-block-jobs")[0]
    assert (info["paused"], info["busy"], info["status"]) == (True, False, "paused")
    for _ in range(20):
        session.do("query-jobs")
    assert job.ticks == ticks
    session.do("block-job-resume", device="t")
    with job._changed:
        assert job._changed.wait_for(lambda: job.ticks > ticks, 10)
    assert session.story("t")[:4] == ["created", "running", "paused", "running"]


def test_drain_stops_the_job_and_shows(session: Session, node: Node) -> None:
    job = start(session, node)

    def look() -> tuple[bool, int, int, str]:
        with drained([node]):
            first = job.ticks
            status = str(job.status)
            quiet = not job.in_step
            for _ in range(5000):
                pass  # a worker that goes on would be seen
            return quiet, first, job.ticks, status

    for _ in range(20):
        quiet, first, second, status = session.call(look)
        assert quiet
        assert first == second
        assert status == "paused"
    assert session.story("t") == ["created", "running", *["paused", "running"] * 20]


def test_a_user_pause_outlives_a_drain(session: Session, node: Node) -> None:
    start(session, node)
    session.do("job-pause", id="t")
    session.wait_status("t", "paused")

    def drain() -> None:
        with drained([node]):
            pass

    session.call(drain)
    assert session.story("t") == ["created", "running", "paused"]
    session.do("job-resume", id="t")
    assert session.story("t") == ["created", "running", "paused", "running"]


def test_started_while_drained(session: Session, node: Node) -> None:
    def make() -> Ticker:
        with drained([node]):
            job = Ticker(session, node)
            job.start()
            with job._changed:
                job._changed.wait_for(lambda: not job.busy, 10)
            assert job.ticks == 0
        return job

    session.call(make)
    session.wait_status("t", "running", 1)
    session.do("job-cancel", id="t")
    session.wait_status("t", "null")
    # As QEMU shows a backup that starts inside a transaction; unless the worker was slower than the drain.
    story = session.story("t")
    assert story[:2] == ["created", "running"]
    assert [s for s in story[2:] if s not in ("paused", "running")] == ["aborting", "CANCELLED", "concluded", "null"]


def test_a_sleeping_job_wakes_at_once(session: Session, node: Node) -> None:
    """With a speed of one byte a second the worker sleeps for minutes; nothing waits for that."""
    begun = time.monotonic()
    job = start(session, node, speed=1)
    with job._changed:
        assert job._changed.wait_for(lambda: not job.busy and job.ticks > 0, 10)
    session.do("job-pause", id="t")
    session.wait_status("t", "paused")
    session.do("job-resume", id="t")
    ticks = job.ticks
    session.do("block-job-set-speed", device="t", speed=0)
    with job._changed:
        assert job._changed.wait_for(lambda: job.ticks > ticks + 10, 10)
    session.do("block-job-set-speed", device="t", speed=1)
    session.do("block-job-cancel", device="t")
    session.wait_status("t", "null")
    assert job.ended.is_set()
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("seed", range(12))
def test_random_interleavings(session: Session, node: Node, seed: int) -> None:
    rng = random.Random(seed)
    job = start(session, node, speed=rng.choice([0, 0, 1 << 20]))
    job.makes_ready = rng.random() < 0.5
    held = 0

    def drain() -> None:
        with drained([node]):
            assert not job.in_step
            ticks = job.ticks
            for _ in range(100):
                pass
            assert job.ticks == ticks
            if rng.random() < 0.2:
                with drained([node]):
                    assert job.ticks == ticks

    def hold() -> None:
        nonlocal held
        node.drained_begin()
        node.drained_wait()
        held += 1

    def let_go() -> None:
        nonlocal held
        if held:
            held -= 1
            node.drained_end()

    for _ in range(80):
        kind = rng.choice("ppprrrddsshl")
        try:
            if kind == "p":
                session.do("job-pause", id="t")
            elif kind == "r":
                session.do("job-resume", id="t")
            elif kind == "d":
                session.call(drain)
            elif kind == "s":
                session.do("block-job-set-speed", device="t", speed=rng.choice([0, 1, 1 << 16, 1 << 30]))
            elif kind == "h":
                session.call(hold)
            else:
                session.call(let_go)
        except QMPError as exc:
            if exc.desc not in ("Job is already paused", "Can't resume a job that was not paused"):
                raise
    if rng.random() < 0.5:
        while held:
            session.call(let_go)
    session.do("job-cancel", id="t")
    session.wait_status("t", "null")
    while held:
        session.call(let_go)
    states = [s for s in session.story("t") if s.islower()]
    walked = [JobStatus(s) for s in states]
    assert walked[0] is JobStatus.CREATED
    assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(walked))
    ends = [s for s in session.story("t") if s in ("COMPLETED", "CANCELLED")]
    assert ends == ["CANCELLED"]
    assert job.ended.is_set()
    assert node.quiesce_count == 0
    assert all(edge.parent is not job for edge in node.parents)
    assert node.blockers.reasons() == []


def test_the_worker_hears_of_a_cancellation_as_an_exception(session: Session, node: Node) -> None:
    job = start(session, node)
    job._forced = True
    with pytest.raises(JobCancelled):
        job.checkpoint()

"""An engine for job tests: events with waiting, images in memory-sized files, guests that write."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import QMPError
from engine.graph.backend import BlockBackend
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.jobs.job import Job
from engine.jobs.types import JobType

TIMEOUT = 30.0
CLUSTER = 65536


class Session:
    """An engine, its events so far, and ways to wait for more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.engine.subscribe(self._take)

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"].startswith("X_BLOCKMON"):
            return
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def close(self) -> None:
        self.engine.close()

    # -- commands and the control plane ----------------------------------------------------------------------

    def do(self, command: str, **arguments: Any) -> Any:
        """Execute a command; _ stands for - in the names."""
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.engine.submit(command, wire).result(TIMEOUT)

    def error(self, command: str, **arguments: Any) -> str:
        """The text of the error a command answers with."""
        with pytest.raises(QMPError) as caught:
            self.do(command, **arguments)
        return caught.value.desc

    def call(self, function: Callable[[], Any]) -> Any:
        """Run something on the control plane."""
        return self.engine.control.call(function)

    def job(self, job_id: str) -> dict[str, Any] | None:
        """The job as query-jobs shows it."""
        found = [job for job in self.do("query-jobs") if job["id"] == job_id]
        return found[0] if found else None

    def node(self, name: str) -> Node:
        return self.engine.graph.nodes[name]

    # -- events ----------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition*, looked at after each event, holds."""
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT), self.story()

    def wait_status(self, job_id: str, status: str, times: int = 1) -> None:
        """Wait until the job has entered *status* so many times."""
        data = {"id": job_id, "status": status}
        self.wait(
            lambda: [e.get("data") for e in self.events if e["event"] == "JOB_STATUS_CHANGE"].count(data) >= times
        )

    def wait_event(self, name: str, times: int = 1) -> dict[str, Any]:
        self.wait(lambda: [event["event"] for event in self.events].count(name) >= times)
        data = next(event["data"] for event in reversed(self.events) if event["event"] == name)
        assert isinstance(data, dict)
        return data

    def story(self, job_id: str | None = None) -> list[str]:
        """Events in short: the new state, or the name without BLOCK_JOB_; of one job, or of all with their ids."""
        out = []
        for event in self.events:
            data = event.get("data", {})
            name = data.get("id", data.get("device"))
            if job_id is not None and name != job_id:
                continue
            short = (
                data["status"] if event["event"] == "JOB_STATUS_CHANGE" else event["event"].removeprefix("BLOCK_JOB_")
            )
            out.append(short if job_id is not None else f"{name}:{short}")
        return out

    # -- images ----------------------------------------------------------------------------------------------

    def file(self, name: str, content: bytes | int = 0) -> Path:
        """A file with this content, or of this length."""
        path = self.folder / name
        if isinstance(content, int):
            with path.open("wb") as out:
                out.truncate(content)
        else:
            path.write_bytes(content)
        return path

    def create_qcow2(self, name: str, size: int, backing: str | None = None, **options: Any) -> Path:
        """A new qcow2 image, made by the engine."""
        path = self.file(f"{name}.qcow2")
        self.do("blockdev-add", driver="file", node_name=f"new-{name}", filename=str(path))
        extra = {key.replace("_", "-"): value for key, value in options.items()}
        if backing is not None:
            extra |= {"backing-file": str(self.folder / f"{backing}.qcow2"), "backing-fmt": "qcow2"}
        job = f"make-{name}"
        self.do(
            "blockdev-create", job_id=job, options={"driver": "qcow2", "file": f"new-{name}", "size": size, **extra}
        )
        self.wait_status(job, "concluded")
        assert "error" not in (self.job(job) or {}), self.job(job)
        self.do("job-dismiss", id=job)
        self.do("blockdev-del", node_name=f"new-{name}")
        self.events.clear()
        return path

    def add_qcow2(self, name: str, backing: str | None = None, **options: Any) -> Node:
        """Open NAME.qcow2 as the node NAME over the node *backing*."""
        extra = {key.replace("_", "-"): value for key, value in options.items()}
        self.do(
            "blockdev-add",
            driver="qcow2",
            node_name=name,
            file={"driver": "file", "filename": str(self.folder / f"{name}.qcow2")},
            backing=backing,
            **extra,
        )
        return self.node(name)

    def chain(self, *names: str, size: int = 4 << 20, read_only_below: bool = True, **options: Any) -> list[Node]:
        """New qcow2 images, the base first, opened each over the one before."""
        below: str | None = None
        nodes = []
        for name in names:
            self.create_qcow2(name, size, below, **options)
            below = name
        below = None
        for name in names:
            nodes.append(self.add_qcow2(name, below, read_only=read_only_below and name != names[-1]))
            below = name
        return nodes

    @contextmanager
    def writer(self, node: str) -> Iterator[BlockBackend]:
        """A guest on *node*: a device that reads and writes."""
        graph = self.engine.graph
        perm = Perm.CONSISTENT_READ | Perm.WRITE
        backend: BlockBackend = self.call(
            lambda: graph.add_backend("device", "guest", graph.nodes[node], perm, Perm.ALL & ~Perm.RESIZE)
        )
        try:
            yield backend
        finally:
            self.call(lambda: graph.remove_backend(backend))

    def fill(self, name: str, *writes: tuple[int, bytes]) -> None:
        """Write (offset, data) into the image NAME.qcow2 while it is not open otherwise."""
        with self.offline(name) as guest:
            for offset, data in writes:
                guest.write(offset, memoryview(data))

    @contextmanager
    def offline(self, name: str) -> Iterator[BlockBackend]:
        """The image NAME.qcow2 with its chain, open for a moment."""
        self.do(
            "blockdev-add",
            driver="qcow2",
            node_name="offline",
            file={"driver": "file", "filename": str(self.folder / f"{name}.qcow2")},
        )
        try:
            with self.writer("offline") as guest:
                yield guest
        finally:
            self.do("blockdev-del", node_name="offline")


def content(node: Node | BlockBackend) -> bytes:
    """All that a read returns."""
    data = bytearray(node.length)
    node.read(0, memoryview(data))
    return bytes(data)


def noise(seed: object, size: int) -> bytes:
    """Random bytes without long runs of zeros, the same for the same *seed*."""
    return random.Random(str(seed)).randbytes(size)


class Guest:
    """A thread that writes at random through a back end, and a byte array that knows what must be there.

    Only whole multiples of 512 bytes are written; zero writes and discards are among them when asked for.
    """

    def __init__(self, backend: BlockBackend, seed: int, *, zeroes: bool = True) -> None:
        self.backend = backend
        self.model = bytearray(content(backend))
        self.operations = 0
        self._rng = random.Random(seed)
        self._zeroes = zeroes
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Guest:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop writing. Fails with what went wrong in the thread."""
        self._stop.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.once()
        except BaseException as exc:
            self._failed = exc

    def once(self) -> None:
        """One write."""
        rng = self._rng
        length = 512 * rng.choice((1, 8, 128, rng.randrange(1, 300)))
        offset = 512 * rng.randrange((len(self.model) - length) // 512 + 1)
        kind = rng.random()
        if self._zeroes and kind < 0.15:
            self.backend.write_zeroes(offset, length)
            self.model[offset : offset + length] = bytes(length)
        else:
            data = bytes([rng.randrange(1, 256)]) * length
            self.backend.write(offset, memoryview(data))
            self.model[offset : offset + length] = data
        self.operations += 1


class Steps(Job):
    """A job whose worker does what the test tells it: it makes a step for every permit, and ends when told to."""

    job_type = JobType.AMEND
    completable = True

    def __init__(self, session: Session, job_id: str = "j", **options: Any) -> None:
        super().__init__(session.engine.jobs, job_id, **options)
        self.hooks: list[str] = []
        self.permits = threading.Semaphore(0)
        self.outcome: Exception | None = None
        self.ready_first = False
        self.soft = False
        self.prepare_error: Exception | None = None
        self._end = False

    def run(self) -> None:
        if self.ready_first:
            self.become_ready()
        while not self._end:
            self.checkpoint(60)
            if self.cancel_requested:
                return
            self.progress(1)
        if self.outcome is not None:
            raise self.outcome

    def end_work(self, outcome: Exception | None = None) -> None:
        """Have run() return, or raise *outcome*."""
        self.outcome = outcome
        self._end = True
        self.kick()

    def on_cancel(self, force: bool) -> bool:
        return force or not self.soft

    def on_complete(self) -> None:
        self._end = True

    def prepare(self) -> None:
        self.hooks.append("prepare")
        if self.prepare_error is not None:
            raise self.prepare_error

    def commit(self) -> None:
        self.hooks.append("commit")

    def abort(self) -> None:
        self.hooks.append("abort")

    def clean(self) -> None:
        self.hooks.append("clean")

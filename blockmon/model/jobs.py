"""
Jobs as the screen lists them: what the queries say, what the events add, the rate and the time left.

A job that is over vanishes from the queries as soon as it is dismissed, usually at once. The list keeps it, with its
outcome, until the user puts it away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blockmon.model.format import percent

RATE_WINDOW = 4.0
"""Seconds over which a rate is taken; long enough to even out the 100 ms slices of a throttled job."""
KEPT = 200
"""So many jobs that are over are kept; more make the oldest ones go."""

RATE_EVERY = 1.0
"""Seconds after which a shown rate is taken anew."""

_MOVING = frozenset({"created", "running", "waiting", "aborting"})

# Which verbs QEMU's job state machine takes in which state (query-jobs' `status`).
VERBS: Mapping[str, frozenset[str]] = {
    "created": frozenset({"cancel", "pause", "resume", "set-speed"}),
    "running": frozenset({"cancel", "pause", "resume", "set-speed"}),
    "paused": frozenset({"cancel", "pause", "resume", "set-speed"}),
    "ready": frozenset({"cancel", "pause", "resume", "set-speed", "complete"}),
    "standby": frozenset({"cancel", "pause", "resume", "set-speed", "complete"}),
    "waiting": frozenset({"cancel"}),
    "pending": frozenset({"cancel", "finalize"}),
    "concluded": frozenset({"dismiss"}),
}

COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
GONE = "gone"
"""The outcome of a job that went while there was no connection: how it ended was not heard."""


@dataclass
class Job:
    """One job. *current*, *total* and *speed* are in bytes where the job counts bytes; speed 0 is unlimited."""

    serial: int
    id: str
    type: str = ""
    status: str = "created"
    current: int = 0
    total: int = 0
    error: str | None = None
    block_job: bool = False
    speed: int = 0
    paused: bool = False
    busy: bool = False
    io_status: str = "ok"
    auto_finalize: bool = True
    auto_dismiss: bool = True
    outcome: str | None = None
    """COMPLETED, FAILED or CANCELLED once that is known; GONE where it never will be."""
    asked: bool = False
    """True once a query has listed it."""
    born: int = 0
    """The last `JobsModel.moment` before it was first told of."""
    unheard: bool = False
    """True while it is not known what became of it since the connection was lost."""
    gone: bool = False
    """True once the server does not know the job any more."""
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64), repr=False)
    _rate: float | None = field(default=None, repr=False)
    _rated_at: float = field(default=0.0, repr=False)
    _between: bool = field(default=False, repr=False)
    """True while the first sample is not known to be from the end of a step."""
    _heard: str = field(default="", repr=False)
    """The status that the last event told of."""

    @property
    def finished(self) -> bool:
        """True once the job does nothing any more, whether or not it waits to be dismissed."""
        return self.gone or self.status in ("concluded", "null")

    @property
    def word(self) -> str:
        """The one word to show for it: the status, or the outcome when it is gone."""
        return self.outcome or COMPLETED if self.gone else self.status

    @property
    def percent(self) -> int | None:
        """Whole per cent done."""
        return percent(self.current, self.total)

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, max(0.0, self.current / self.total)) if self.total > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Bytes per second over the last seconds; None while there is too little to tell from, or nothing moves."""
        return None if self.finished or self.unheard or self.status not in ("running", "ready") else self._rate

    @property
    def time_left(self) -> float | None:
        """Seconds to the end at the present rate; None when it cannot be told."""
        rate = self.rate
        if self.status != "running" or not rate or self.total <= self.current:
            return None
        return (self.total - self.current) / rate

    def verbs(self) -> frozenset[str]:
        """What can be asked of it now; the server too refuses to pause a paused job or to resume a running one."""
        if self.gone:
            return frozenset()
        allowed = set(VERBS.get(self.status, ()))
        allowed.discard("pause" if self.paused or self.status in ("paused", "standby") else "resume")
        if not self.block_job:
            allowed.discard("set-speed")
        return frozenset(allowed)

    def sample(self, now: float) -> None:
        """Note the progress at monotonic time *now*. The rate follows once a second, for numbers that can be read."""
        samples = self._samples
        if samples and self.current < samples[-1][1]:
            samples.clear()
        if self.status not in ("running", "ready"):
            samples.clear()
            self._rate = None
            return
        if not samples:
            samples.append((now, self.current))
            self._between = self.current > 0
        elif self.current != samples[-1][1]:
            if self._between and len(samples) > 1:
                # A throttled job goes on in large steps seconds apart, and the first look was between two of them.
                self._between = False
                if now - samples[-1][0] > RATE_EVERY:
                    samples.popleft()
            samples.append((now, self.current))
        while len(samples) > 2 and now - samples[1][0] >= RATE_WINDOW:
            samples.popleft()
        (start, first), (end, last) = samples[0], samples[-1]
        if now - start >= 0.2 and (self._rate is None or now - self._rated_at >= RATE_EVERY):
            step = (end - start) / max(1, len(samples) - 1)
            # While the next large step is not overdue, the rate is that of those there were.
            until = end if step > RATE_EVERY and now - end <= 2 * step and not self._between else now
            self._rate = (last - first) / (until - start) if now - end <= 3 * max(step, RATE_WINDOW) else 0.0
            self._rated_at = now

    def face(self) -> tuple[object, ...]:
        """Everything that a row shows; two equal faces look the same."""
        return (self.type, self.status, self.current, self.total, self.error, self.speed, self.paused, self.outcome,
                self.gone, self.rate, self.time_left)  # fmt: skip


class JobsModel:
    """All jobs seen, newest first, less those put away."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._live: dict[str, Job] = {}
        self._gone: deque[int] = deque()
        self._left: dict[str, int] = {}
        self._serial = 0
        self._moment = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def listed(self) -> list[Job]:
        """Newest first."""
        return [job for _, job in sorted(self._jobs.items(), reverse=True)]

    def live(self, job_id: str) -> Job | None:
        """The job that the server knows by this id."""
        return self._live.get(job_id)

    def by_serial(self, serial: int) -> Job | None:
        """The listed job with this serial number."""
        return self._jobs.get(serial)

    @property
    def active(self) -> int:
        """How many are not finished."""
        return sum(not job.finished for job in self._live.values())

    @property
    def moving(self) -> bool:
        """True while some job may make progress without an event telling of it."""
        return any(job.status in _MOVING or (job.status == "ready" and not job.paused) for job in self._live.values())

    def unused_id(self, stem: str) -> str:
        """A job id that no known job has: ``stream0``, ``stream1`` …"""
        number = 0
        while f"{stem}{number}" in self._live:
            number += 1
        return f"{stem}{number}"

    def _job(self, job_id: str) -> Job:
        job = self._live.get(job_id)
        if job is None:
            self._serial += 1
            job = self._jobs[self._serial] = self._live[job_id] = Job(self._serial, job_id, born=self._moment)
        return job

    def moment(self) -> int:
        """A mark for `update`: what comes and goes from here on, an answer asked for now may not know."""
        self._moment += 1
        self._left.clear()
        return self._moment

    def update(
        self,
        jobs: Iterable[Mapping[str, Any]],
        block_jobs: Iterable[Mapping[str, Any]],
        now: float,
        since: int | None = None,
    ) -> bool:
        """
        Take in the answers to query-jobs and query-block-jobs, come at monotonic time *now*, asked for at *since*.

        Of jobs that events have told of meanwhile the answers are out of date, and are passed over. Returns whether
        anything that is shown changed.
        """
        if since is not None:
            overtaken = {job.id for job in self._live.values() if job.born >= since}
            overtaken.update(job_id for job_id, left in self._left.items() if left >= since)
            jobs = [item for item in jobs if str(item["id"]) not in overtaken]
            block_jobs = [item for item in block_jobs if str(item["device"]) not in overtaken]
        else:
            overtaken = set()
        before = {job.serial: job.face() for job in self._live.values()}
        present: set[str] = set()
        # The queries list the newest first; those not seen before get their numbers oldest first.
        for item in reversed(list(jobs)):
            job = self._job(str(item["id"]))
            present.add(job.id)
            job.unheard = False
            job.asked = True
            job.type = str(item.get("type", job.type))
            job.status = str(item.get("status", job.status))
            job.current = int(item.get("current-progress", 0))
            job.total = int(item.get("total-progress", 0))
            if item.get("error") is not None:
                job.error = str(item["error"])
            if job.status == "concluded" and job.outcome is None:
                job.outcome = FAILED if job.error else COMPLETED
        for item in block_jobs:
            found = self._live.get(str(item["device"]))
            if found is None:
                continue
            found.block_job = True
            found.speed = int(item.get("speed", 0))
            found.paused = bool(item.get("paused", False))
            found.busy = bool(item.get("busy", False))
            found.io_status = str(item.get("io-status", "ok"))
            found.auto_finalize = bool(item.get("auto-finalize", True))
            found.auto_dismiss = bool(item.get("auto-dismiss", True))
        for job_id in [job_id for job_id in self._live if job_id not in present | overtaken]:
            self._retire(job_id)
        for job in self._live.values():
            job.sample(now)
        return before != {job.serial: job.face() for job in self._live.values()}

    def _retire(self, job_id: str) -> None:
        job = self._live.pop(job_id)
        self._left[job_id] = self._moment
        job.gone = True
        if job.outcome is None:
            job.outcome = FAILED if job.error else GONE if job.unheard else COMPLETED
        if job.outcome == COMPLETED and job.total:
            job.current = job.total
        self._gone.append(job.serial)
        if len(self._gone) > KEPT:
            self._jobs.pop(self._gone.popleft(), None)

    def on_event(self, event: Mapping[str, Any]) -> bool:
        """Take in an event. Returns whether it told of a job."""
        name = event.get("event", "")
        data = event.get("data", {})
        if name == "JOB_STATUS_CHANGE":
            status = str(data.get("status", ""))
            job_id = str(data.get("id", ""))
            if status == "null":
                if job_id in self._live:
                    over = self._live[job_id]
                    if over.status == over._heard == "created" and over.outcome is None:
                        # What should have begun it was refused; such a job never runs.
                        over.outcome, over.error = FAILED, over.error or "it did not begin"
                    self._retire(job_id)
                return True
            known = self._live.get(job_id)
            if known is not None and status == "created" and known.status == "concluded":
                # The id is used again: that its first bearer went was overlooked.
                self._retire(job_id)
                known = None
            job = self._job(job_id)
            job._heard = status
            if known is None or not job.asked:
                # Of a job that the queries list the event may be older than what they said.
                job.status = status
                job.paused = status in ("paused", "standby")
            return True
        if not name.startswith("BLOCK_JOB_"):
            return False
        job_id = str(data.get("device", data.get("id", "")))
        if job_id not in self._live:
            return False
        job = self._live[job_id]
        job.block_job = True
        job.type = str(data.get("type", job.type))
        job.current = int(data.get("offset", job.current))
        job.total = int(data.get("len", job.total))
        if data.get("error") is not None:
            job.error = str(data["error"])
        if name == "BLOCK_JOB_COMPLETED":
            job.outcome = FAILED if job.error else COMPLETED
        elif name == "BLOCK_JOB_CANCELLED":
            job.outcome = CANCELLED
        return True

    def lost_sight(self) -> None:
        """Note that the connection was lost: a job that is not listed any more may have ended in any way."""
        for job in self._live.values():
            job.unheard = job.status != "concluded"

    def put_away(self, serial: int) -> bool:
        """Take a job that is gone off the list. A job that the server still knows stays."""
        job = self._jobs.get(serial)
        if job is None or not job.gone:
            return False
        del self._jobs[serial]
        return True

    def put_away_all(self) -> int:
        """Take all jobs that are gone off the list; how many there were."""
        gone = [serial for serial, job in self._jobs.items() if job.gone]
        for serial in gone:
            del self._jobs[serial]
        return len(gone)

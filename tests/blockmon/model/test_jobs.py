"""The list of jobs: from queries, from events, and after the end."""

from typing import Any

import pytest

from blockmon.model.jobs import CANCELLED, COMPLETED, FAILED, Job, JobsModel
from tests.blockmon.tui.fake import block_job, event


def feed(model: JobsModel, now: float, *block_jobs: dict[str, Any]) -> bool:
    """Update as after the two queries."""
    listed = [
        {"id": job["device"], "type": job["type"], "status": job["status"], "current-progress": job["offset"],
         "total-progress": job["len"], **({"error": job["error"]} if "error" in job else {})}
        for job in block_jobs
    ]  # fmt: skip
    return model.update(listed, block_jobs, now)


def only(model: JobsModel) -> Job:
    (job,) = model.listed()
    return job


def test_progress_rate_and_time_left() -> None:
    model = JobsModel()
    feed(model, 10.0, block_job("j", "stream", "running", 0, 1000))
    assert only(model).rate is None
    feed(model, 12.0, block_job("j", "stream", "running", 200, 1000))
    job = only(model)
    assert (job.percent, job.rate, job.time_left) == (20, 100.0, 8.0)


def test_the_rate_follows_the_last_seconds() -> None:
    model = JobsModel()
    for second in range(10):
        feed(model, float(second), block_job("j", "stream", "running", second * 100, 100_000))
    for second in range(10, 20):
        feed(model, float(second), block_job("j", "stream", "running", 1000 + (second - 10) * 500, 100_000))
    assert only(model).rate == 500.0


def test_shown_numbers_do_not_flicker() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "stream", "running", 0, 10**6))
    feed(model, 1.0, block_job("j", "stream", "running", 1000, 10**6))
    feed(model, 1.2, block_job("j", "stream", "running", 5000, 10**6))
    assert only(model).rate == 1000.0
    feed(model, 2.0, block_job("j", "stream", "running", 5000, 10**6))
    assert only(model).rate == 2500.0


def test_a_paused_job_has_no_rate_and_starts_afresh() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "mirror", "running", 0, 1000))
    feed(model, 1.0, block_job("j", "mirror", "running", 500, 1000))
    feed(model, 2.0, block_job("j", "mirror", "paused", 500, 1000))
    assert only(model).rate is None
    assert only(model).time_left is None
    feed(model, 100.0, block_job("j", "mirror", "running", 500, 1000))
    assert only(model).rate is None


def test_a_job_whose_length_is_not_known_has_no_per_cent() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "backup", "created", 0, 0))
    assert only(model).percent is None
    assert only(model).fraction == 0.0


def test_a_job_that_is_over_stays_until_it_is_put_away() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "stream", "running", 500, 1000))
    model.on_event(event("BLOCK_JOB_COMPLETED", type="stream", device="j", len=1000, offset=1000, speed=0))
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="null"))
    feed(model, 1.0)
    job = only(model)
    assert (job.gone, job.word, job.percent) == (True, COMPLETED, 100)
    assert model.active == 0
    assert model.put_away(job.serial)
    assert model.listed() == []


def test_of_very_many_jobs_the_oldest_are_let_go() -> None:
    model = JobsModel()
    for number in range(1000):
        for status in ("created", "null"):
            model.on_event(event("JOB_STATUS_CHANGE", id=f"j{number}", status=status))
    assert len(model) == 200
    assert model.listed()[0].id == "j999"
    assert model.listed()[-1].id == "j800"


def test_a_job_the_server_knows_cannot_be_put_away() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "stream", "concluded", 1000, 1000))
    assert not model.put_away(only(model).serial)
    assert model.put_away_all() == 0
    assert len(model) == 1


def test_a_job_too_fast_for_any_query() -> None:
    model = JobsModel()
    for status in ("created", "running", "waiting", "pending"):
        model.on_event(event("JOB_STATUS_CHANGE", id="quick", status=status))
    model.on_event(event("BLOCK_JOB_COMPLETED", type="commit", device="quick", len=4096, offset=4096, speed=0))
    for status in ("concluded", "null"):
        model.on_event(event("JOB_STATUS_CHANGE", id="quick", status=status))
    feed(model, 0.0)
    job = only(model)
    assert (job.id, job.type, job.word, job.total) == ("quick", "commit", COMPLETED, 4096)


def test_how_a_job_ended() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("bad", "stream", "running", 1, 9), block_job("off", "mirror", "running", 1, 9))
    model.on_event(
        event(
            "BLOCK_JOB_COMPLETED",
            type="stream",
            device="bad",
            len=9,
            offset=1,
            speed=0,
            error="No space left on device",
        )
    )
    model.on_event(event("BLOCK_JOB_CANCELLED", type="mirror", device="off", len=9, offset=1, speed=0))
    feed(model, 1.0)
    outcome = {job.id: job for job in model.listed()}
    assert outcome["bad"].word == FAILED
    assert outcome["bad"].error == "No space left on device"
    assert outcome["bad"].percent == 11
    assert outcome["off"].word == CANCELLED


def test_an_id_may_be_used_again() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "stream", "running", 5, 10))
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="null"))
    feed(model, 1.0, block_job("j", "commit", "running", 1, 10))
    assert [(job.type, job.gone) for job in model.listed()] == [("commit", False), ("stream", True)]


def test_an_event_that_is_older_than_the_query_changes_nothing() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "mirror", "ready", 10, 10))
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="created"))
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="running"))
    assert only(model).status == "ready"


def test_an_answer_asked_for_before_a_job_went_does_not_bring_it_back() -> None:
    model = JobsModel()
    since = model.moment()
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="created"))
    late = [{"id": "j", "type": "commit", "status": "running", "current-progress": 0, "total-progress": 9}]
    model.on_event(event("BLOCK_JOB_COMPLETED", type="commit", device="j", len=9, offset=0, speed=0, error="no"))
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="null"))
    model.update(late, [block_job("j", "commit", "running", 0, 9)], 0.0, since)
    model.update([], [], 1.0, model.moment())
    assert only(model).word == FAILED


def test_an_answer_asked_for_before_a_job_came_does_not_end_it() -> None:
    model = JobsModel()
    since = model.moment()
    model.on_event(event("JOB_STATUS_CHANGE", id="j", status="created"))
    model.update([], [], 0.0, since)
    assert not only(model).gone
    model.update([], [], 1.0, model.moment())
    assert only(model).gone


def test_newest_first_though_the_first_query_listed_several() -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("young", "stream", "running", 0, 1), block_job("old", "stream", "running", 0, 1))
    assert [job.id for job in model.listed()] == ["young", "old"]
    feed(
        model, 1.0, block_job("newest", "stream", "running", 0, 1), block_job("young", "stream", "running", 0, 1),
        block_job("old", "stream", "running", 0, 1),
    )  # fmt: skip
    assert [job.id for job in model.listed()] == ["newest", "young", "old"]


def test_nothing_changed_is_said_when_nothing_did() -> None:
    model = JobsModel()
    assert feed(model, 0.0, block_job("j", "mirror", "paused", 1, 2))
    assert not feed(model, 1.0, block_job("j", "mirror", "paused", 1, 2))
    assert feed(model, 2.0, block_job("j", "mirror", "running", 1, 2))


@pytest.mark.parametrize(
    ("status", "verbs"),
    [
        ("running", {"cancel", "pause", "set-speed"}),
        ("paused", {"cancel", "resume", "set-speed"}),
        ("ready", {"cancel", "pause", "set-speed", "complete"}),
        ("standby", {"cancel", "resume", "set-speed", "complete"}),
        ("waiting", {"cancel"}),
        ("pending", {"cancel", "finalize"}),
        ("aborting", set()),
        ("concluded", {"dismiss"}),
    ],
)
def test_verbs_by_status(status: str, verbs: set[str]) -> None:
    model = JobsModel()
    feed(model, 0.0, block_job("j", "mirror", status, 1, 2))
    assert only(model).verbs() == verbs


def test_a_create_job_takes_no_speed() -> None:
    model = JobsModel()
    model.update(
        [{"id": "c", "type": "create", "status": "running", "current-progress": 0, "total-progress": 1}], [], 0
    )
    assert only(model).verbs() == {"cancel", "pause"}


def test_unused_ids() -> None:
    model = JobsModel()
    assert model.unused_id("stream") == "stream0"
    feed(model, 0.0, block_job("stream0", "stream", "running", 0, 1))
    assert model.unused_id("stream") == "stream1"


@pytest.mark.parametrize("period", [2, 8])
def test_a_throttled_job_that_goes_on_in_large_steps_has_a_steady_rate(period: int) -> None:
    model = JobsModel()
    # 64 KiB/s in steps some seconds apart, looked at five times a second from a moment before one; then it is stuck.
    rates: list[float | None] = []
    for tick in range(1000):
        now = period - 0.1 + tick / 5
        done = min(int(now // period), 15) * 65536 * period + (1 << 20)
        model.update([{"id": "s", "status": "running", "current-progress": done, "total-progress": 1 << 30}], [], now)
        rates.append(only(model).rate)
    steady = rates[5 * (period + 2) : 5 * 14 * period]
    assert {rate and round(rate, -4) for rate in steady} == {70000.0}
    assert rates[-1] == 0.0


def test_a_job_that_could_not_be_started_has_not_completed() -> None:
    model = JobsModel()
    for status in ("created", "null"):
        model.on_event({"event": "JOB_STATUS_CHANGE", "data": {"id": "m0", "status": status}})
    assert (only(model).word, only(model).error) == ("failed", "it did not begin")
    # One that was listed at its beginning, and of whose course only events tell, has.
    model.put_away_all()
    model.on_event({"event": "JOB_STATUS_CHANGE", "data": {"id": "m1", "status": "created"}})
    model.update([{"id": "m1", "status": "created"}], [], 1.0)
    for status in ("running", "waiting", "pending", "concluded", "null"):
        model.on_event({"event": "JOB_STATUS_CHANGE", "data": {"id": "m1", "status": status}})
    assert only(model).word == "completed"

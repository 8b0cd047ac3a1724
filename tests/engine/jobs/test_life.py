"""How jobs end: order of events and hooks, alone and in a transaction."""

import errno
from typing import Any

import pytest

from engine.errors import GenericError
from engine.jobs.transaction import JobTransaction
from tests.engine.jobs.session import Session, Steps


def start(session: Session, job_id: str = "j", **options: Any) -> Steps:
    def make() -> Steps:
        ready_first = options.pop("ready_first", False)
        soft = options.pop("soft", False)
        job = Steps(session, job_id, **options)
        job.ready_first, job.soft = ready_first, soft
        job.start()
        return job

    made = session.call(make)
    assert isinstance(made, Steps)
    return made


def test_success(session: Session) -> None:
    job = start(session)
    job.end_work()
    session.wait_status("j", "null")
    assert session.story("j") == ["created", "running", "waiting", "pending", "concluded", "null"]
    assert job.hooks == ["prepare", "commit", "clean"]


def test_by_hand(session: Session) -> None:
    job = start(session, auto_finalize=False, auto_dismiss=False)
    job.end_work()
    session.wait_status("j", "pending")
    assert job.hooks == []
    session.do("job-finalize", id="j")
    assert session.job("j") == {
        "id": "j",
        "type": "amend",
        "status": "concluded",
        "current-progress": 1,
        "total-progress": 0,
    }
    session.do("job-dismiss", id="j")
    assert session.job("j") is None
    assert session.story("j") == ["created", "running", "waiting", "pending", "concluded", "null"]


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (OSError(errno.ENOSPC, "whatever"), "No space left on device"),
        (GenericError("It is broken"), "It is broken"),
    ],
)
def test_failure(session: Session, outcome: Exception, text: str) -> None:
    job = start(session, auto_dismiss=False)
    job.end_work(outcome)
    session.wait_status("j", "concluded")
    assert session.story("j") == ["created", "running", "aborting", "concluded"]
    assert (session.job("j") or {})["error"] == text
    assert job.hooks == ["abort", "clean"]


def test_an_internal_error_fails_the_job_and_not_the_engine(session: Session) -> None:
    job = start(session, auto_dismiss=False)
    job.end_work(ZeroDivisionError("oops"))
    session.wait_status("j", "concluded")
    assert "Internal error: ZeroDivisionError" in (session.job("j") or {})["error"]


def test_failing_prepare(session: Session) -> None:
    job = start(session, auto_dismiss=False)
    job.prepare_error = OSError(errno.EPERM, "")
    job.end_work()
    session.wait_status("j", "concluded")
    assert session.story("j") == ["created", "running", "waiting", "pending", "aborting", "concluded"]
    assert job.hooks == ["prepare", "abort", "clean"]
    assert (session.job("j") or {})["error"] == "Operation not permitted"


@pytest.mark.parametrize("stage", ["created", "running", "paused", "ready", "standby", "pending"])
def test_forced_cancel(session: Session, stage: str) -> None:
    before = {
        "created": [],
        "running": ["running"],
        "paused": ["running", "paused", "running"],
        "ready": ["running", "ready"],
        "standby": ["running", "ready", "standby", "ready"],
        "pending": ["running", "waiting", "pending"],
    }[stage]
    if stage == "created":
        job = session.call(lambda: Steps(session))
    else:
        job = start(session, ready_first=stage in ("ready", "standby"), soft=True, auto_finalize=False)
    if stage in ("ready", "standby"):
        session.wait_status("j", "ready")
    if stage in ("paused", "standby"):
        session.do("job-pause", id="j")
    if stage == "pending":
        job.end_work()
    session.wait_status("j", stage)
    session.do("job-cancel", id="j")
    session.wait_status("j", "null")
    assert session.story("j") == ["created", *before, "aborting", "concluded", "null"]
    assert job.hooks == ["abort", "clean"]
    assert job.error == "Operation canceled"


def test_a_job_without_soft_cancel_is_always_cancelled_by_force(session: Session) -> None:
    job = start(session, ready_first=True)
    session.wait_status("j", "ready")
    session.call(lambda: job.user_cancel(False))
    session.wait_status("j", "null")
    assert session.story("j")[-3:] == ["aborting", "concluded", "null"]


def test_soft_cancel_of_a_ready_job_is_a_success(session: Session) -> None:
    job = start(session, ready_first=True, soft=True)
    session.wait_status("j", "ready")
    session.call(lambda: job.user_cancel(False))
    session.wait_status("j", "null")
    assert session.story("j") == ["created", "running", "ready", "waiting", "pending", "concluded", "null"]
    assert job.hooks == ["prepare", "commit", "clean"]


def test_complete(session: Session) -> None:
    start(session, ready_first=True)
    session.wait_status("j", "ready")
    session.do("job-complete", id="j")
    session.wait_status("j", "null")
    assert session.story("j") == ["created", "running", "ready", "waiting", "pending", "concluded", "null"]


def test_complete_in_standby_takes_effect_when_resumed(session: Session) -> None:
    start(session, ready_first=True)
    session.wait_status("j", "ready")
    session.do("job-pause", id="j")
    session.wait_status("j", "standby")
    session.do("job-complete", id="j")
    assert (session.job("j") or {})["status"] == "standby"
    session.do("job-resume", id="j")
    session.wait_status("j", "null")
    assert session.story("j")[2:] == ["ready", "standby", "ready", "waiting", "pending", "concluded", "null"]


def test_complete_after_a_soft_cancel_is_refused(session: Session) -> None:
    job = start(session, ready_first=True, soft=True)
    session.wait_status("j", "ready")
    session.do("job-pause", id="j")
    session.wait_status("j", "standby")

    def both() -> str:
        job._cancelled = True
        with pytest.raises(GenericError) as caught:
            job.complete()
        return caught.value.desc

    assert session.call(both) == "The active block job 'j' cannot be completed"


def test_closing_the_engine_ends_jobs_in_every_state(session: Session) -> None:
    start(session, "running")
    session.call(lambda: Steps(session, "created"))
    start(session, "ready", ready_first=True, soft=True)
    paused = start(session, "paused")
    session.wait_status("ready", "ready")
    session.do("job-pause", id="paused")
    pending = start(session, "pending", auto_finalize=False)
    pending.end_work()
    session.wait_status("pending", "pending")
    concluded = start(session, "concluded", auto_dismiss=False)
    concluded.end_work()
    session.wait_status("concluded", "concluded")
    session.engine.close()
    assert session.engine.jobs.jobs == []
    assert paused.hooks == ["abort", "clean"]
    assert pending.hooks == ["abort", "clean"]


# -- transactions ------------------------------------------------------------------------------------------------------


def pair(session: Session, **second: Any) -> tuple[Steps, Steps]:
    """b1, then b2, in one transaction."""

    def make() -> tuple[Steps, Steps]:
        transaction = JobTransaction()
        one = Steps(session, "b1", transaction=transaction)
        two = Steps(session, "b2", transaction=transaction, **second)
        one.start()
        two.start()
        return one, two

    made: tuple[Steps, Steps] = session.call(make)
    return made


def test_grouped_success_waits_for_all(session: Session) -> None:
    one, two = pair(session)
    one.end_work()
    session.wait_status("b1", "waiting")
    assert one.hooks == []
    two.end_work()
    session.wait_status("b1", "null")
    assert session.story()[4:] == [
        "b1:waiting",
        "b2:waiting",
        "b2:pending",
        "b1:pending",
        "b2:concluded",
        "b2:null",
        "b1:concluded",
        "b1:null",
    ]
    assert one.hooks == two.hooks == ["prepare", "commit", "clean"]


def test_grouped_one_by_hand_holds_all(session: Session) -> None:
    one, two = pair(session, auto_finalize=False)
    one.end_work()
    session.wait_status("b1", "waiting")
    two.end_work()
    session.wait_status("b1", "pending")
    assert session.story()[-4:] == ["b1:waiting", "b2:waiting", "b2:pending", "b1:pending"]
    session.do("job-finalize", id="b1")
    assert session.story()[-4:] == ["b2:concluded", "b2:null", "b1:concluded", "b1:null"]


@pytest.mark.parametrize("failing", ["b1", "b2"])
def test_grouped_failure_cancels_the_others(session: Session, failing: str) -> None:
    one, two = pair(session)
    (one if failing == "b1" else two).end_work(OSError(errno.EIO, ""))
    session.wait_status("b1", "null")
    session.wait_status("b2", "null")
    # The newest ends first, so a failed older one waits for it.
    if failing == "b2":
        expected = ["b2:aborting", "b2:concluded", "b2:null", "b1:aborting", "b1:concluded", "b1:null"]
    else:
        expected = ["b1:aborting", "b2:aborting", "b2:concluded", "b2:null", "b1:concluded", "b1:null"]
    assert session.story()[4:] == expected
    assert one.hooks == two.hooks == ["abort", "clean"]
    other = two if failing == "b1" else one
    assert other.error == "Operation canceled"


def test_grouped_failing_prepare_aborts_all(session: Session) -> None:
    one, two = pair(session)
    one.prepare_error = GenericError("no")
    one.end_work()
    session.wait_status("b1", "waiting")
    two.end_work()
    session.wait_status("b1", "null")
    assert one.hooks == ["prepare", "abort", "clean"]
    assert two.hooks == ["prepare", "abort", "clean"]
    assert (one.error, two.error) == ("no", "Operation canceled")


def test_a_transaction_with_a_job_that_never_started_aborts_it_too(session: Session) -> None:
    def make() -> tuple[Steps, Steps]:
        transaction = JobTransaction()
        one = Steps(session, "b1", transaction=transaction)
        two = Steps(session, "b2", transaction=transaction)
        one.start()
        return one, two

    _, two = session.call(make)
    session.do("job-cancel", id="b1")
    session.wait_status("b1", "null")
    assert session.story("b2") == ["created", "aborting", "concluded", "null"]
    assert two.hooks == ["abort", "clean"]

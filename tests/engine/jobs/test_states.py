"""The state machine: every verb in every state, and transitions that must not happen."""

import pytest

from engine.errors import GenericError
from engine.jobs.states import TRANSITIONS, VERBS
from engine.jobs.types import JobStatus, JobVerb
from tests.engine.jobs.session import Session, Steps

ALLOWED = {
    "created": "cancel pause resume set-speed",
    "running": "cancel pause resume set-speed",
    "paused": "cancel pause resume set-speed",
    "ready": "cancel pause resume set-speed complete",
    "standby": "cancel pause resume set-speed complete",
    "waiting": "cancel",
    "pending": "cancel finalize",
    "aborting": "",
    "concluded": "dismiss",
}
FOLLOWING = {
    "undefined": "created",
    "created": "running aborting null",
    "running": "paused ready waiting aborting",
    "paused": "running",
    "ready": "standby waiting aborting",
    "standby": "ready",
    "waiting": "pending aborting",
    "pending": "aborting concluded",
    "aborting": "aborting concluded",
    "concluded": "null",
    "null": "",
}


@pytest.mark.parametrize("status", ALLOWED)
@pytest.mark.parametrize("verb", list(JobVerb))
def test_verb_in_state(session: Session, status: str, verb: JobVerb) -> None:
    job: Steps = session.call(lambda: Steps(session))
    job.status = JobStatus(status)
    try:
        if verb in ALLOWED[status].split():
            job.check_verb(verb)
        else:
            with pytest.raises(GenericError) as caught:
                job.check_verb(verb)
            assert caught.value.desc == f"Job 'j' in state '{status}' cannot accept command verb '{verb}'"
    finally:
        job.status = JobStatus.CREATED


def test_every_verb_and_state_is_in_the_table() -> None:
    assert set(VERBS) == set(JobVerb)
    assert {status: set(after) for status, after in TRANSITIONS.items()} == {
        status: set(after.split()) for status, after in FOLLOWING.items()
    }


@pytest.mark.parametrize("status", list(JobStatus))
@pytest.mark.parametrize("to", list(JobStatus))
def test_only_legal_transitions_happen(session: Session, status: JobStatus, to: JobStatus) -> None:
    job: Steps = session.call(lambda: Steps(session))
    session.events.clear()
    job.status = status
    try:
        if to in FOLLOWING[status].split():
            session.call(lambda: job._transition(to))
            assert session.story("j") == ([] if to is status else [to])
        else:
            with pytest.raises(RuntimeError):
                session.call(lambda: job._transition(to))
            assert session.story("j") == []
    finally:
        job.status = JobStatus.CREATED


def test_commands_answer_with_the_real_state(session: Session) -> None:
    job: Steps = session.call(lambda: Steps(session, auto_finalize=False, auto_dismiss=False))
    session.call(job.start)
    assert session.error("job-complete", id="j") == "Job 'j' in state 'running' cannot accept command verb 'complete'"
    assert session.error("job-resume", id="j") == "Can't resume a job that was not paused"
    session.do("job-pause", id="j")
    session.wait_status("j", "paused")
    assert session.error("job-pause", id="j") == "Job is already paused"
    assert session.error("job-finalize", id="j") == "Job 'j' in state 'paused' cannot accept command verb 'finalize'"
    session.do("job-resume", id="j")
    job.end_work()
    session.wait_status("j", "pending")
    assert session.error("job-pause", id="j") == "Job 'j' in state 'pending' cannot accept command verb 'pause'"
    assert session.error("job-dismiss", id="j") == "Job 'j' in state 'pending' cannot accept command verb 'dismiss'"
    session.do("job-finalize", id="j")
    session.wait_status("j", "concluded")
    assert session.error("job-cancel", id="j") == "Job 'j' in state 'concluded' cannot accept command verb 'cancel'"
    session.do("job-dismiss", id="j")
    assert session.error("job-dismiss", id="j") == "Job not found"


def test_ids(session: Session) -> None:
    session.call(lambda: Steps(session, "a.b-c_1"))
    assert session.call(lambda: _error(session, "a.b-c_1")) == "Job ID 'a.b-c_1' already in use"
    for bad in ("1a", "", "a b", "ä", "#block1"):
        assert session.call(lambda bad=bad: _error(session, bad)) == f"Invalid job ID '{bad}'"


def _error(session: Session, job_id: str) -> str:
    with pytest.raises(GenericError) as caught:
        Steps(session, job_id)
    return caught.value.desc


def test_a_block_job_verb_does_not_see_other_jobs(session: Session) -> None:
    session.call(lambda: Steps(session))
    assert session.error("block-job-pause", device="j") == "Block job 'j' not found"
    assert session.do("query-block-jobs") == []
    assert [job["id"] for job in session.do("query-jobs")] == ["j"]

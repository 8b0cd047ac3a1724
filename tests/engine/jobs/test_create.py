"""blockdev-create: images made in a job."""

from tests.engine.jobs.session import Session

MIB = 1 << 20


def test_a_file(session: Session) -> None:
    path = session.folder / "new.raw"
    session.do("blockdev-create", job_id="c", options={"driver": "file", "filename": str(path), "size": MIB})
    session.wait_status("c", "concluded")
    assert path.stat().st_size == MIB
    assert session.story("c") == ["created", "running", "waiting", "pending", "concluded"]
    assert session.job("c") == {
        "id": "c",
        "type": "create",
        "status": "concluded",
        "current-progress": 1,
        "total-progress": 1,
    }
    assert session.error("block-job-dismiss", id="c") == "Block job 'c' not found"
    session.do("job-dismiss", id="c")
    assert session.story("c")[-1] == "null"


def test_a_failure_stays_readable(session: Session) -> None:
    session.do("blockdev-create", job_id="c", options={"driver": "file", "filename": "/nope/x", "size": MIB})
    session.wait_status("c", "concluded")
    assert session.story("c") == ["created", "running", "aborting", "concluded"]
    assert (session.job("c") or {})["error"] == "Could not create '/nope/x': No such file or directory"


def test_a_format_on_a_node_and_back_ends_given_back(session: Session) -> None:
    session.do("blockdev-add", driver="file", node_name="f", filename=str(session.file("i.qcow2")))
    session.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "f", "size": MIB})
    session.wait_status("c", "concluded")
    assert "error" not in (session.job("c") or {})
    assert session.engine.graph.backends == []
    session.do("blockdev-add", driver="qcow2", node_name="q", file="f")
    assert session.node("q").length == MIB


def test_a_format_on_a_missing_node_is_the_jobs_error(session: Session) -> None:
    session.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "nope", "size": MIB})
    session.wait_status("c", "concluded")
    assert (session.job("c") or {})["error"] == "Cannot find device='nope' nor node-name='nope'"


def test_refusals_make_no_job(session: Session) -> None:
    assert session.error("blockdev-create", job_id="c", options={"driver": "null-co"}) == (
        "Driver does not support blockdev-create"
    )
    options = {"driver": "file", "filename": str(session.folder / "x"), "size": MIB}
    assert session.error("blockdev-create", job_id="1", options=options) == "Invalid job ID '1'"
    assert session.do("query-jobs") == []
    assert session.events == []
    session.do("blockdev-create", job_id="c", options=options)
    assert session.error("blockdev-create", job_id="c", options=options) == "Job ID 'c' already in use"

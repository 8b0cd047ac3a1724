"""Internal snapshots and amending by command, without QEMU to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.drivers.qcow2.support import make
from tests.engine.jobs.session import Session


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = Session(tmp_path)
    for name in ("a", "b"):
        make(tmp_path / f"{name}.qcow2", 1 << 20)
        file = {"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")}
        session.do("blockdev-add", driver="qcow2", node_name=name, file=file)
    yield session
    session.close()


def human(session: Session, line: str) -> str:
    answer: str = session.do("human-monitor-command", command_line=line)
    return answer


def snapshots(session: Session, node: str) -> list[tuple[str, str]]:
    """(id, name) of the snapshots that a query shows."""
    for item in session.do("query-named-block-nodes"):
        if item["node-name"] == node:
            return [(entry["id"], entry["name"]) for entry in item["image"].get("snapshots", [])]
    raise AssertionError(node)


def test_taken_shown_and_deleted(session: Session) -> None:
    for name in ("one", "two", "three"):
        session.do("blockdev-snapshot-internal-sync", device="a", name=name)
    assert snapshots(session, "a") == [("1", "one"), ("2", "two"), ("3", "three")]
    gone = session.do("blockdev-snapshot-delete-internal-sync", device="a", id="2")
    assert (gone["id"], gone["name"], gone["vm-state-size"]) == ("2", "two", 0)
    assert gone["date-sec"] > 1_700_000_000
    assert snapshots(session, "a") == [("1", "one"), ("3", "three")]
    text = session.error("blockdev-snapshot-delete-internal-sync", device="a", name="two")
    assert text == "Snapshot with id 'null' and name 'two' does not exist on device 'a'"
    text = session.error("blockdev-snapshot-internal-sync", device="a", name="one")
    assert text == "Snapshot with name 'one' already exists on device 'a'"


def test_a_transaction_that_fails_leaves_none(session: Session) -> None:
    def taking(*devices: str) -> list[dict[str, Any]]:
        kind = "blockdev-snapshot-internal-sync"
        return [{"type": kind, "data": {"device": device, "name": "s"}} for device in devices]

    text = session.error("transaction", actions=[*taking("a", "b"), {"type": "abort", "data": {}}])
    assert text == "Transaction aborted using Abort action"
    assert snapshots(session, "a") == snapshots(session, "b") == []
    session.do("transaction", actions=taking("a", "b"))
    assert snapshots(session, "a") == snapshots(session, "b") == [("1", "s")]


def test_all_disks_are_saved_and_loaded(session: Session) -> None:
    assert human(session, 'qemu-io a "write -q -P 1 0 64k"') == ""
    assert human(session, "savevm now") == ""
    assert human(session, 'qemu-io a "write -q -P 2 0 64k"') == ""
    assert human(session, 'qemu-io b "write -q -P 2 0 64k"') == ""
    assert human(session, "loadvm now") == ""
    assert human(session, 'qemu-io a "read -q -P 1 0 64k"') == ""
    assert human(session, 'qemu-io b "read -q -P 0 0 64k"') == ""
    assert "--        now " in human(session, "info snapshots")
    session.do("blockdev-snapshot-delete-internal-sync", device="b", name="now")
    assert human(session, "loadvm now") == "Error: Snapshot 'now' does not exist in one or more devices\r\n"
    assert "List of partial (non-loadable) snapshots on '':" in human(session, "info snapshots")
    assert human(session, "delvm now") == ""
    assert human(session, "info snapshots") == "There is no snapshot available.\r\n"


def test_a_snapshot_named_as_another_s_id_is_the_one_that_is_loaded(session: Session) -> None:
    """(QEMU 7.2 would take the id first, and go back to the wrong one.)"""
    assert human(session, "savevm first") == ""
    assert human(session, 'qemu-io a "write -q -P 7 0 64k"') == ""
    assert human(session, "savevm 1") == ""
    assert human(session, 'qemu-io a "write -q -P 8 0 64k"') == ""
    assert human(session, "loadvm 1") == ""
    assert human(session, 'qemu-io a "read -q -P 7 0 64k"') == ""


def test_amending_an_image_without_encryption(session: Session) -> None:
    options = {"driver": "qcow2", "encrypt": {"format": "luks", "state": "active", "new-secret": "s"}}
    session.do("x-blockdev-amend", job_id="j", node_name="a", options=options)
    session.wait_status("j", "concluded")
    assert session.do("query-jobs")[0]["error"] == "image is not encrypted, can't amend"
    session.do("job-dismiss", id="j")
    session.do("x-blockdev-amend", job_id="k", node_name="a", options={"driver": "qcow2"})
    session.wait_status("k", "concluded")
    assert "error" not in session.do("query-jobs")[0]
    # The job holds the node while it is there.
    session.do("job-dismiss", id="k")
    session.do("blockdev-del", node_name="a")

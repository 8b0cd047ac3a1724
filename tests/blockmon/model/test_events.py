"""The event log's ring and its views."""

import pytest

from blockmon.model.events import EventLog, EventView
from tests.blockmon.tui.fake import event


def status(number: int) -> dict[str, object]:
    return event("JOB_STATUS_CHANGE", number, id=f"job{number}", status="running")


def test_the_ring_keeps_the_last_ones_under_their_own_numbers() -> None:
    log = EventLog(capacity=4)
    log.extend(status(number) for number in range(10))
    assert (len(log), log.first, log.end) == (4, 6, 10)
    assert [log[number].event["data"]["id"] for number in range(6, 10)] == ["job6", "job7", "job8", "job9"]
    for number in (5, 10):
        with pytest.raises(IndexError):
            log[number]


def test_a_view_selects_and_keeps_up() -> None:
    log = EventLog(capacity=4)
    log.extend([status(0), event("BLOCK_JOB_READY", 1, device="mirror0", type="mirror", len=8, offset=8, speed=0)])
    view = EventView(log, "ready")
    assert [entry.number for entry in map(view.__getitem__, range(len(view)))] == [1]
    log.extend([status(2), event("BLOCK_JOB_READY", 3, device="mirror1", type="mirror", len=8, offset=8, speed=0)])
    view.refresh()
    assert [view[index].number for index in range(len(view))] == [1, 3]
    log.extend([status(4), status(5)])
    view.refresh()
    assert [view[index].number for index in range(len(view))] == [3]


def test_a_view_that_was_overrun_goes_on_with_what_is_kept() -> None:
    log = EventLog(capacity=4)
    view = EventView(log, "job")
    log.extend(status(number) for number in range(10))
    view.refresh()
    assert [view[index].number for index in range(len(view))] == [6, 7, 8, 9]


def test_a_view_without_a_text_is_the_whole_log() -> None:
    log = EventLog(capacity=3)
    log.extend(status(number) for number in range(5))
    view = EventView(log)
    assert [view[index].number for index in range(len(view))] == [2, 3, 4]
    assert view.index_of(4) == 2
    assert view.index_of(0) == 0


def test_what_an_event_says_in_one_line() -> None:
    log = EventLog()
    assert log.append(status(1)).summary == "job1 running"
    job = {"device": "j", "type": "stream", "len": 2048, "offset": 1024, "speed": 0}
    done = log.append(event("BLOCK_JOB_COMPLETED", 1, **job, error="EIO"))
    assert done.summary == "j stream EIO 1K of 2K"
    assert done.severity == "error"
    assert log.append(event("BLOCK_JOB_ERROR", 1, device="j", operation="read", action="stop")).severity == "error"
    assert log.append(event("BLOCK_JOB_READY", 1, device="j")).severity == "notable"
    assert log.append(event("RESUME", 1)).summary == ""
    assert log.append(event("X_BLOCKMON_GRAPH_CHANGE", 1, generation=2)).severity == "trivial"


def test_names_in_events_cannot_drive_the_terminal() -> None:
    entry = EventLog().append(event("X", 1, id="a\x1b]0;title\x07b"))
    assert entry.summary == "a\\x1b]0;title\\x07b"

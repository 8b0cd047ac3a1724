"""The event log's ring and its views."""

import json
from pathlib import Path

import pytest

from blockmon.model.events import EventFilter, EventLog, EventView, newest_as_json, save_events
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


def exported(number: int) -> dict[str, object]:
    return event("BLOCK_EXPORT_DELETED", number, id=f"exp{number}")


def numbers(view: EventView) -> list[int]:
    return [view[index].number for index in range(len(view))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("write", [1]),
        ("WRITE overlay2", [1]),
        ("event:job", [0, 2]),
        ("job:j1", [0]),
        ("job:j", []),
        ("node:overlay2", [1]),
        ("node:overlay", []),
        ("!event:job", [1]),
        ("event:job !job:j1", [2]),
        ('"j10 running"', [2]),
        ("  ", [0, 1, 2]),
    ],
)
def test_what_a_filter_asks_for(text: str, found: list[int]) -> None:
    log = EventLog()
    log.extend(
        [
            event("JOB_STATUS_CHANGE", 1, id="j1", status="running"),
            event("BLOCK_IO_ERROR", 2, device="", node_name="overlay2", operation="write", action="report"),
            event("JOB_STATUS_CHANGE", 3, id="j10", status="running"),
        ]
    )
    assert numbers(EventView(log, text)) == found


def test_an_event_comes_back_as_it_was() -> None:
    plain = event("RESUME", 1.5)
    del plain["data"]
    odd = {"event": "ODD", "timestamp": {"seconds": -1, "microseconds": -1}, "__com.vendor_note": [1]}
    whole = event("BLOCK_EXPORT_DELETED", 2.000001, id="e")
    log = EventLog(capacity=2)
    for wanted in (plain, odd, whole, plain):
        assert log.append(wanted).event == wanted
    assert log[2].event == whole


def test_a_view_in_slices_finds_what_one_look_finds() -> None:
    log = EventLog(capacity=3000)
    log.extend(exported(number) for number in range(2500))
    view = EventView(log, "exp1", seconds=0.0)
    assert view.behind
    steps = 0
    while view.behind:
        # The log goes on meanwhile, and loses its oldest events.
        log.extend(exported(10_000 + 20 * steps + number) for number in range(20))
        for _ in range(3):
            view.refresh(1e-4)
        steps += 1
        assert steps < 10_000
    assert numbers(view) == numbers(EventView(log, "exp1"))
    for number in (0, log.first, log.first + 777, log.end - 1, log.end):
        assert view.index_of(number) == EventView(log, "exp1").index_of(number)


def test_a_frozen_view_keeps_what_the_log_loses() -> None:
    log = EventLog(capacity=4)
    log.extend(exported(number) for number in range(4))
    live, held = EventView(log, "exp"), EventView(log, "exp").frozen()
    log.extend(exported(number) for number in range(4, 10))
    live.refresh()
    assert numbers(held) == [0, 1, 2, 3]
    assert held[0].data == {"id": "exp0"}
    assert numbers(live) == [6, 7, 8, 9]


def test_search_goes_both_ways_and_says_where_to_go_on() -> None:
    log = EventLog()
    log.extend(exported(number) for number in range(1000))
    view, wanted = EventView(log), EventFilter("exp500")
    assert view.search(wanted, 999, -1, 10) == (500, 500)
    assert view.search(wanted, 0, 1, 10) == (500, 500)
    assert view.search(wanted, 499, -1, 10) == (None, -1)
    index, rounds = 999, 0
    while True:
        found, index = view.search(wanted, index, -1, 0.0)
        rounds += 1
        if found is not None:
            break
    assert found == 500
    assert rounds > 3


def test_saved_events_are_lines_of_json(tmp_path: Path) -> None:
    log = EventLog()
    log.extend(exported(number) for number in range(3))
    path = tmp_path / "log"
    assert save_events(path, EventView(log)) == 3
    assert [json.loads(line) for line in path.read_text().splitlines()] == [exported(number) for number in range(3)]
    with pytest.raises(FileExistsError):
        save_events(path, EventView(log))
    assert save_events(path, EventView(log, "exp1"), overwrite=True) == 1
    assert newest_as_json(EventView(log), len(json.dumps(exported(2))) + 1) == (json.dumps(exported(2)) + "\n", 1)

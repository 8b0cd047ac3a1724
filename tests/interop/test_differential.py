"""The tool that compares conversations finds what differs, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import (
    Call,
    Do,
    Normaliser,
    Transcript,
    Until,
    WaitEvent,
    assert_same,
    compare,
    differences,
)

NODE = Do("blockdev-add", {"driver": "null-co", "node-name": "n"})


def test_every_kind_of_difference_has_its_place() -> None:
    assert differences({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "x"}]}) == []
    assert differences({"a": 1, "b": 2}, {"b": 2, "a": 1}) == []
    assert differences({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "y"}]}) == [".a[1].b: ours 'x', the real one 'y'"]
    assert differences({"a": 1}, {"b": 1}) == [".a: only ours has it: 1", ".b: only the real one has it: 1"]
    assert differences([1, 2], [1]) == [": ours has 2 items, the real one 1"]
    # A number is no truth value, as in JSON.
    assert differences({"a": 1}, {"a": True}) == [".a: ours 1, the real one True"]
    assert differences({"a": {"size": 1}}, {"a": {"size": 2}}, ignore={"size"}) == []


def test_what_cannot_be_the_same_is_evened_out() -> None:
    a, b = Normaliser(Path("/a")), Normaliser(Path("/b"))
    one: dict[str, Any] = {
        "node-name": "#block123",
        "child": "#block4567",
        "again": "#block123",
        "file": 'json:{"driver": "file", "filename": "/a/x"}',
        "timestamp": {"seconds": 1},
    }
    other = {
        "node-name": "#block999",
        "child": "#block001",
        "again": "#block999",
        "file": 'json:{"filename": "/b/x", "driver": "file"}',
        "timestamp": {"seconds": 2},
    }
    assert a(one) == b(other)
    assert a({"x": "#block123"}) != b({"x": "#block001"})


def test_events_count_in_their_order() -> None:
    first, second = {"event": "A"}, {"event": "B"}
    ours, real = Transcript([{}], [first, second]), Transcript([{}], [second, first])
    assert len(compare([NODE], ours, real)) == 2
    assert compare([NODE], ours, real, events=False) == []


def test_a_deviation_on_purpose_is_checked_too(qsd: str, tmp_path: Path) -> None:
    old_form = {"options": {"driver": "null-co", "node-name": "n"}}
    assert_same([Do("blockdev-add", old_form, ours={"return": {}})], tmp_path / "right")
    with pytest.raises(AssertionError, match="step 0 blockdev-add"):
        assert_same([Do("blockdev-add", old_form, ours={"return": 1})], tmp_path / "wrong")


def test_every_kind_of_step(qsd: str, tmp_path: Path) -> None:
    path = "$DIR/new.raw"
    talk = [
        Do("blockdev-create", {"job-id": "c", "options": {"driver": "file", "filename": path, "size": 4096}}),
        WaitEvent("JOB_STATUS_CHANGE", {"id": "c", "status": "concluded"}),
        Until("query-jobs", lambda jobs: jobs[0]["status"] == "concluded"),
        Do("job-dismiss", {"id": "c"}),
        Call(lambda where: (where / "new.raw").stat().st_size),
        Do("blockdev-add", {"driver": "file", "node-name": "f", "filename": path}),
        Do("query-named-block-nodes"),
    ]
    transcript = assert_same(talk, tmp_path, ignore={"actual-size"})
    assert transcript.replies[4] == 4096
    assert transcript.replies[6]["return"][0]["file"] == path
    assert [event["data"]["status"] for event in transcript.events][-2:] == ["concluded", "null"]
    assert (tmp_path / "ours" / "new.raw").exists()
    assert (tmp_path / "real" / "new.raw").exists()


def test_a_difference_fails(qsd: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"step 0 query-version\.return\.package"):
        assert_same([Do("query-version")], tmp_path)

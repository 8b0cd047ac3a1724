"""The inspector's pages that the server is asked for: options, permissions, bitmaps, I/O, image, JSON."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import pytest

from blockmon.backend import CommandError
from blockmon.model.details import Answer, Details, device_entry, latency, nanoseconds, node_stats
from blockmon.model.graph import from_query_graph
from blockmon.model.refresher import ScreenState
from blockmon.themes import find_theme
from blockmon.tui.inspect_links import permissions
from blockmon.tui.inspect_text import View
from blockmon.tui.look import Look
from blockmon.tui.symbols import UNICODE
from tests.blockmon.tui.fake import GIB, KIB, MIB, FakeBackend, busy_graph, edge, event
from tests.blockmon.tui.screens import busy_backend, line_with, lines, shown, text, until, widest

ZERO = {
    f"{what}{kind}_{unit}": 0
    for kind in ("rd", "wr", "flush", "unmap")
    for what, unit in (("", "operations"), ("", "total_time_ns"), ("failed_", "operations"), ("invalid_", "operations"))
}


class TellingBackend(FakeBackend):
    """A server that tells everything of its nodes and devices."""

    def __init__(self) -> None:
        model = busy_backend()
        super().__init__(model.graph, model.jobs)
        self.commands += [
            "query-blockstats", "query-block", "query-block-exports", "x-blockmon-query-node-options",
            "block-dirty-bitmap-add",
        ]  # fmt: skip
        self.compat = "1.1"
        self.stats: dict[str, Any] = {
            **ZERO, "rd_bytes": 40 * MIB, "wr_bytes": 3 * MIB, "unmap_bytes": 0,
            "rd_operations": 1000, "rd_total_time_ns": 2_000_000_000, "failed_wr_operations": 7,
            "rd_merged": 5, "wr_merged": 0, "unmap_merged": 0, "wr_highest_offset": 12 * GIB,
            "account_invalid": True, "account_failed": True, "timed_stats": [],
            "rd_latency_histogram": {"boundaries": [10_000, 1_000_000], "bins": [900, 90, 10]},
        }  # fmt: skip
        self.bitmaps: list[dict[str, Any]] = [
            {"name": "daily", "granularity": 64 * KIB, "count": 5 * GIB, "recording": True, "busy": False,
             "persistent": True},
            {"name": "old", "granularity": 64 * KIB, "count": 0, "recording": False, "busy": True,
             "persistent": False, "inconsistent": True},
        ]  # fmt: skip

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        answer = await super().execute(command, arguments)
        if command == "query-named-block-nodes":
            top = answer[0]
            top["dirty-bitmaps"] = copy.deepcopy(self.bitmaps)
            top["image"] |= {
                "cluster-size": 64 * KIB, "actual-size": 1288490188, "backing-filename": "overlay1.qcow2",
                "full-backing-filename": "/img/overlay1.qcow2", "backing-filename-format": "qcow2", "dirty-flag": True,
                "snapshots": [
                    {"id": "1", "name": "before-upgrade", "vm-state-size": 512 * MIB, "date-sec": 1_700_000_000,
                     "date-nsec": 0, "vm-clock-sec": 3725, "vm-clock-nsec": 0},
                ],
                "format-specific": {
                    "type": "qcow2",
                    "data": {"compat": self.compat, "lazy-refcounts": False, "refcount-bits": 16,
                             "bitmaps": [{"name": "daily", "flags": ["auto"], "granularity": 65536}]},
                },
            }  # fmt: skip
        if command == "query-blockstats":
            below = {"node-name": "overlay2-file", "stats": {**ZERO, "wr_highest_offset": GIB}}
            idle = time.time_ns() - 1_700_000_020_000_000_000
            return [{"device": "", "qdev": "/machine/vda", "node-name": "overlay2",
                     "stats": {**self.stats, "idle_time_ns": idle}, "parent": below}]  # fmt: skip
        if command == "query-block":
            return [{"device": "", "qdev": "/machine/vda", "removable": True, "locked": False, "tray_open": True,
                     "io-status": "nospace", "inserted": {"node-name": "overlay2", "iops": 500}}]  # fmt: skip
        if command == "query-block-exports":
            return [{"id": "exp0", "type": "nbd", "node-name": "clone", "shutting-down": False}]
        if command == "x-blockmon-query-node-options":
            assert arguments is not None
            return [
                {"name": "driver", "value": "qcow2", "source": "explicit"},
                {"name": "read-only", "value": False, "source": "inherited"},
                {"name": "cache-clean-interval", "value": 600, "source": "default"},
                {"name": "l2-cache-entry-size", "source": "default"},
                {"name": "of", "value": arguments["node-name"], "source": "default"},
            ]
        return answer


async def test_the_options_by_where_they_come_from() -> None:
    async with shown(TellingBackend()) as (app, pilot, _):
        await pilot.press("down", "enter", "2")
        await until(pilot, lambda: "explicit" in text(app))
        given, rest = text(app).split("inherited", 1)
        assert "driver" in given
        assert "read-only" in rest.split("default", 1)[0]
        assert line_with(app, "read-only").split()[:2] == ["read-only", "off"]
        assert line_with(app, "cache-clean-interval").split()[:2] == ["cache-clean-interval", "600"]
        assert "up to the driver" in line_with(app, "l2-cache-entry-size")
        # Another node's are asked for when that is looked at.
        await pilot.press("escape", "down", "enter")
        await until(pilot, lambda: line_with(app, "  of ").split()[:2] == ["of", "overlay2-file"])


async def test_without_the_commands_the_pages_are_not_there() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "enter")
        assert app.inspector.sections == ["Overview", "Permissions", "Bitmaps", "I/O", "Image", "JSON"]
    backend = busy_backend()
    backend.commands.remove("query-named-block-nodes")
    async with shown(backend) as (app, pilot, _):
        await pilot.press("down", "enter")
        assert app.inspector.sections == ["Overview", "Permissions", "I/O"]


async def test_the_bitmaps() -> None:
    async with shown(TellingBackend()) as (app, pilot, _):
        await pilot.press("down", "enter", "4")
        await until(pilot, lambda: "daily" in text(app))
        assert "5 GiB" in line_with(app, "dirty")
        assert "25 %" in line_with(app, "dirty")
        assert "64 KiB a bit" in line_with(app, "grain")
        assert "recording · persistent" in line_with(app, "state")
        other = " ".join(text(app).split("old", 1)[1].split())
        assert "not recording · ✗ inconsistent: it can only be removed · ◍ busy · in memory only" in other


async def test_a_node_without_bitmaps_says_how_to_make_one() -> None:
    async with shown(TellingBackend()) as (app, pilot, _):
        await pilot.press("down", "down", "enter", "4")
        await until(pilot, lambda: "No dirty bitmaps" in text(app))
        assert "block-dirty-bitmap-add node=overlay2-file name=NAME" in text(app)


async def test_latency_is_that_of_what_came_since_the_last_answer() -> None:
    async with shown(TellingBackend(), size=(140, 40)) as (app, pilot, backend):
        assert isinstance(backend, TellingBackend)
        await pilot.press("down", "enter", "5", "z")
        await until(pilot, lambda: "latency" in text(app))
        assert line_with(app, " 2.0ms").split()[:4] == ["read", "1.0k", "-", "2.0ms"]
        backend.stats |= {"rd_operations": 1100, "rd_total_time_ns": 2_050_000_000}
        await until(pilot, lambda: "500µs" in text(app))
        assert line_with(app, "500µs").split()[:4] == ["read", "1.1k", "500µs", "1.9ms"]
        assert next(line for line in lines(app) if line.startswith(" write ")).split()[4] == "7"
        assert "900" in line_with(app, "- 10µs")
        assert "12 GiB at the highest" in text(app)


async def test_nothing_is_asked_for_that_nobody_sees() -> None:
    async with shown(TellingBackend()) as (app, pilot, backend):
        await pilot.press("down", "enter", "5")
        await until(pilot, lambda: "latency" in text(app))
        await pilot.press("1")
        await pilot.pause()
        timer = app.inspector._timer
        assert timer is not None
        assert not timer._active.is_set()
        await pilot.press("5", "f4")
        await until(pilot, lambda: not app.inspector.display)
        asked = backend.executed.count("query-blockstats")
        app.inspector.details.forget()
        app.inspector.renew()
        await pilot.pause()
        assert backend.executed.count("query-blockstats") == asked
        # What was missed meanwhile is asked for when it comes into sight again.
        await pilot.press("f6")
        await until(pilot, lambda: backend.executed.count("query-blockstats") > asked)


async def test_a_page_that_is_asked_for_over_and_over_draws_nothing_while_nothing_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with shown(TellingBackend()) as (app, pilot, backend):
        await pilot.press("down", "enter", "5")
        await until(pilot, lambda: "last used" in text(app))
        drawn: list[Any] = []
        monkeypatch.setattr(app.inspector, "refresh", lambda *regions, **options: drawn.append(regions))
        asked = backend.executed.count("query-blockstats")
        await until(pilot, lambda: backend.executed.count("query-blockstats") >= asked + 3)
        assert drawn == []


async def test_the_image() -> None:
    async with shown(TellingBackend(), size=(80, 40)) as (app, pilot, _):
        await pilot.press("down", "enter", "6")
        await until(pilot, lambda: "format-specific: qcow2" in text(app))
        assert "20 GiB (21,474,836,480 bytes)" in line_with(app, "virtual")
        assert "1.2 GiB" in line_with(app, "allocated")
        assert "not closed cleanly" in text(app)
        assert "overlay1.qcow2" in line_with(app, "backing")
        assert line_with(app, "lazy-refcounts").split()[-1] == "off"
        assert "daily" in line_with(app, "bitmaps.0.name")
        snapshot = line_with(app, "before-upgrade")
        assert snapshot.split() == ["1", "before-upgrade", "2023-11-14", "22:13", "512M", "01:02:05"]


async def test_a_device() -> None:
    async with shown(TellingBackend()) as (app, pilot, _):
        await pilot.press("enter")
        await until(pilot, lambda: "I/O status" in text(app))
        assert "removable · tray open" in line_with(app, "medium")
        assert "nospace" in line_with(app, "I/O status")
        assert "iops 500" in line_with(app, "limits")
        assert app.inspector.sections == ["Overview", "Permissions", "I/O", "JSON"]
        await pilot.press("3")
        await until(pilot, lambda: "2.0ms" in text(app))
        assert "read 40 MiB · written 3 MiB" in line_with(app, "bytes")
        await pilot.press("4")
        await until(pilot, lambda: '"tray_open": true' in text(app))


async def test_an_export_and_a_job_as_the_server_lists_them() -> None:
    async with shown(TellingBackend()) as (app, pilot, _):
        app.graph.go_to(next(n for n, row in enumerate(app.graph.rows) if row.parent and row.parent.kind == "export"))
        await pilot.press("enter", "3")
        await until(pilot, lambda: '"shutting-down": false' in text(app))
        await pilot.press("f3", "end", "enter", "2")
        await until(pilot, lambda: '"current-progress"' in text(app))


async def test_an_event_says_when_it_was_and_what_about() -> None:
    async with shown(TellingBackend()) as (app, pilot, backend):
        backend.emit(event("BLOCK_WRITE_THRESHOLD", 1.5, node_name="overlay2", amount_exceeded=4096))
        await pilot.press("f4", "enter")
        await until(pilot, lambda: "about" in text(app))
        assert "2023-11-14 22:13:21.500" in line_with(app, "time ")
        assert "overlay2" in line_with(app, "about ")
        assert '"amount-exceeded": 4096' in text(app)


@pytest.mark.parametrize("width", [40, 60, 80, 110, 140])
async def test_all_sections_can_be_reached_and_seen_at_any_width(width: int) -> None:
    async with shown(TellingBackend(), size=(width, 24)) as (app, pilot, _):
        await pilot.press("down", "enter")
        for number, name in enumerate(("Overview", "Options", "Perm", "Bitmaps", "I/O", "Image", "JSON"), 1):
            await pilot.press(str(number))
            await until(pilot, lambda name=name: name in text(app))  # type: ignore[misc]
            await pilot.pause()
            assert widest(app) <= width
        await pilot.press("right_square_bracket")
        assert app.inspector.section == "Overview"
        await pilot.press("left_square_bracket")
        assert app.inspector.section == "JSON"


async def test_a_refusal_stands_on_the_page() -> None:
    class Refusing(TellingBackend):
        async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
            if command == "query-named-block-nodes":
                raise CommandError("GenericError", "not today")
            return await super().execute(command, arguments)

    async with shown(Refusing()) as (app, pilot, _):
        await pilot.press("down", "enter", "6")
        await until(pilot, lambda: "not today" in text(app))


async def test_changes_of_the_graph_are_asked_about_anew() -> None:
    async with shown(TellingBackend()) as (app, pilot, backend):
        assert isinstance(backend, TellingBackend)
        await pilot.press("down", "enter", "6", "z")
        await until(pilot, lambda: "compat" in text(app))
        backend.compat = "0.10"
        backend.graph["nodes"][0]["bitmaps"] = 1
        backend.change_graph()
        await until(pilot, lambda: line_with(app, "compat").split()[-1] == "0.10")


def test_permissions_together_are_what_one_takes_and_all_share() -> None:
    graph = from_query_graph(
        {
            "nodes": [{"node-name": "n"}],
            "edges": [
                edge("a", "x", "n", ["write"], ["consistent-read", "write"]),
                edge("b", "x", "n", ["consistent-read"], ["write", "resize"]),
                edge("monitor", "", "n", [], [], parent_kind="monitor"),
            ],
        }
    )
    look = Look(find_theme("dark")[0], UNICODE)
    lines = permissions(View(ScreenState(graph=graph), look, 80, lambda *_: Answer()), "n")
    found = [" ".join("".join(part for part, _ in line).split()) for line in lines]
    assert "together T - T S - - - -" in found
    assert not any("monitor" in line for line in found)


async def test_queries_are_bounded() -> None:
    """Whatever the stamp says, a slow query is not repeated before several times the time it took."""
    now = [0.0]
    asked = 0

    class Slow(FakeBackend):
        async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
            nonlocal asked
            asked += 1
            now[0] += 2.0
            return asked

    arrived: list[Any] = []
    waiting: list[Any] = []
    details = Details(waiting.append, lambda: arrived.append(1), clock=lambda: now[0])
    details.backend = Slow(busy_graph())
    assert not details.ask("query-block", stamp=1).known
    await waiting.pop()
    assert details.ask("query-block", stamp=1).value == 1
    now[0] += 1.0
    details.ask("query-block", stamp=2)
    assert not waiting
    assert details.waiting
    now[0] += 12.0
    details.ask("query-block", stamp=2)
    await waiting.pop()
    assert (asked, len(arrived)) == (2, 2)


def test_finding_things_in_answers() -> None:
    stats = [{"device": "vda", "node-name": "top", "parent": {"node-name": "file", "stats": {}},
              "backing": {"node-name": "base", "parent": {"node-name": "base-file"}}}]  # fmt: skip
    assert node_stats(stats, "base-file") == {"node-name": "base-file"}
    assert node_stats(stats, "else") is None
    assert device_entry(stats, "/machine/x", "vda") is stats[0]
    virtio = {"device": "", "qdev": "/machine/peripheral/d0/virtio-backend"}
    assert device_entry([virtio], "d0", "") is virtio
    assert device_entry([virtio], "", "vda") is None
    assert latency({"rd_operations": 4, "rd_total_time_ns": 400}, {"rd_operations": 4}, "rd") == (None, 100)
    assert [nanoseconds(value) for value in (None, 850, 12_300, 1_200_000, 3.4e9)] == [
        "-", "850ns", "12µs", "1.2ms", "3.4s",
    ]  # fmt: skip


async def test_filters_are_no_layers_of_a_chain() -> None:
    backend = FakeBackend(busy_graph())
    for item in backend.graph["nodes"]:
        if item["node-name"] == "overlay1":
            item["filter"] = True
    async with shown(backend, size=(140, 40)) as (app, pilot, _):
        await pilot.press("down")
        await until(pilot, lambda: "3 layers: overlay2 → [overlay1] → snap → base" in text(app))

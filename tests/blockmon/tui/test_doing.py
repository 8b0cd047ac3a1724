"""What the screen does for one: actions on all kinds of things, the question before harm, the palette, help."""

from dataclasses import replace
from typing import Any

import pytest
from textual.events import Key

from blockmon.model.refresher import BitmapState, DeviceState
from blockmon.tui.actions import choices, node_choices
from blockmon.tui.app import BlockmonApp
from blockmon.tui.hazard import hazard
from blockmon.tui.palette import PaletteItem, PalettePopup, matching
from blockmon.tui.subject import NodeSubject, ParentSubject
from tests.blockmon.tui.fake import COMMANDS, GIB, FakeBackend, block_job, busy_graph, edge, event, node
from tests.blockmon.tui.screens import line_with, lines, popup_text, shown, text, twelve_busy_seconds, until

MORE = [
    "block-dirty-bitmap-add", "block-dirty-bitmap-clear", "block-dirty-bitmap-remove", "block-dirty-bitmap-disable",
    "block-dirty-bitmap-enable", "block-export-add", "block-export-del", "blockdev-mirror", "blockdev-backup",
    "blockdev-snapshot", "blockdev-reopen", "blockdev-create", "block_set_io_throttle", "block-latency-histogram-set",
    "eject", "blockdev-open-tray", "blockdev-close-tray", "blockdev-insert-medium", "blockdev-remove-medium",
    "blockdev-change-medium", "device_del", "x-blockdev-change", "block-set-write-threshold",
]  # fmt: skip


def able() -> FakeBackend:
    """A server with every command that an action writes."""
    backend = FakeBackend(busy_graph(), [block_job("stream0", "stream", "running", 1, 2)])
    # Without introspection its commands are known by their names alone.
    backend.commands = [name for name in (*COMMANDS, *MORE) if name != "query-qmp-schema"]
    return backend


def written(app: BlockmonApp, name: str) -> list[str]:
    return [choice.command for choice in node_choices(app.state, name)]


# Actions


async def test_bitmaps_offer_what_their_state_allows() -> None:
    async with shown(able()) as (app, _, _):
        app.state.bitmaps = {
            "overlay2": (
                BitmapState("bitmap0"),
                BitmapState("used", busy=True),
                BitmapState("broken", inconsistent=True),
                BitmapState("off", recording=False),
            )
        }
        found = [command for command in written(app, "overlay2") if "bitmap" in command]
    assert found == [
        "block-dirty-bitmap-add node=overlay2 name=bitmap1 persistent=on",
        "block-dirty-bitmap-clear node=overlay2 name=bitmap0",
        "block-dirty-bitmap-remove node=overlay2 name=bitmap0",
        "block-dirty-bitmap-disable node=overlay2 name=bitmap0",
        "block-dirty-bitmap-remove node=overlay2 name=broken",
        "block-dirty-bitmap-clear node=overlay2 name=off",
        "block-dirty-bitmap-remove node=overlay2 name=off",
        "block-dirty-bitmap-enable node=overlay2 name=off",
    ]


async def test_a_copy_goes_to_the_only_node_that_can_take_it() -> None:
    backend = able()
    backend.graph["nodes"].append(node("copy", "raw", "/img/copy.raw", 20 * GIB, 0, read_only=False))
    async with shown(backend) as (app, _, _):
        assert "blockdev-mirror job-id=mirror0 device=overlay2 sync=full target=copy" in written(app, "overlay2")
        assert "blockdev-backup job-id=backup0 device=scratch sync=full target=" in written(app, "scratch")
        # What backs another node cannot be mirrored.
        assert not any("mirror" in command for command in written(app, "overlay1"))


async def test_access_is_reopened_with_the_children_as_they_are() -> None:
    async with shown(able()) as (app, _, _):
        assert any(
            command
            == "blockdev-reopen options.0.driver=qcow2 options.0.node-name=overlay1 options.0.file=overlay1-file"
            " options.0.backing=snap options.0.read-only=on"
            for command in written(app, "overlay1")
        )
        # A guest writes to this one, and what is below that one is read-only.
        assert not any("reopen" in command for command in (*written(app, "overlay2"), *written(app, "snap")))


async def test_a_reopened_node_keeps_the_options_it_was_opened_with() -> None:
    backend = able()
    backend.commands.append("x-blockmon-query-node-options")
    ask = backend.execute

    async def execute(command: str, arguments: Any = None) -> Any:
        if command != "x-blockmon-query-node-options":
            return await ask(command, arguments)
        assert arguments == {"node-name": "overlay1"}
        return [
            {"name": "driver", "value": "qcow2", "source": "explicit"},
            {"name": "node-name", "value": "overlay1", "source": "explicit"},
            {"name": "discard", "value": "unmap", "source": "explicit"},
            {"name": "cache.no-flush", "value": True, "source": "explicit"},
            {"name": "read-only", "value": False, "source": "explicit"},
            {"name": "file.driver", "value": "file", "source": "explicit"},
            {"name": "l2-cache-size", "value": 1048576, "source": "inherited"},
            {"name": "overlap-check", "value": {"mode": "all", "template": "none"}, "source": "explicit"},
            {"name": "pr-manager", "source": "default"},
        ]

    backend.execute = execute  # type: ignore[method-assign]
    async with shown(backend) as (app, pilot, _):
        app.graph.reveal(NodeSubject("overlay1"))
        await pilot.press("a")
        await until(pilot, lambda: "reopen it read-only" in popup_text(app))
        assert "default" not in popup_text(app)
        await pilot.press("w")
        await until(pilot, lambda: app.prompt.text)
        assert app.prompt.text == (
            "blockdev-reopen options.0.driver=qcow2 options.0.node-name=overlay1 options.0.file=overlay1-file"
            " options.0.backing=snap options.0.read-only=on options.0.discard=unmap options.0.cache.no-flush=on"
            " options.0.overlap-check.mode=all options.0.overlap-check.template=none"
        )


async def test_a_backing_link_that_leads_nowhere_stays_unopened_in_a_reopen() -> None:
    backend = able()
    for item in backend.graph["nodes"]:
        if item["node-name"] == "#block317":
            item.update({"backing-file": "golden.qcow2", "monitor-owned": True, "read-only": False})
    async with shown(backend) as (app, _, _):
        assert any("options.0.backing=null" in command for command in written(app, "#block317"))


async def test_where_options_cannot_be_asked_for_a_reopen_warns() -> None:
    async with shown(able()) as (app, _, _):
        names = [choice.name for choice in node_choices(app.state, "overlay1") if choice.word == "blockdev-reopen"]
    assert names == ["reopen it read-only; other options go back to their defaults"]


async def test_a_filter_can_be_put_in_and_taken_out() -> None:
    backend = able()
    backend.graph["nodes"].append(
        node("limit", "throttle", "", 20 * GIB, monitor_owned=True, filter=True, read_only=False)
    )
    backend.graph["edges"].append(edge("limit", "file", "base", roles=["filtered", "primary"]))
    backend.graph["edges"] = [item for item in backend.graph["edges"] if item["parent"] != "clone"]
    async with shown(backend) as (app, pilot, _):
        snap = "options.0.driver=qcow2 options.0.node-name=snap options.0.file=snap-file options.0.backing="
        assert f"blockdev-reopen {snap}limit" in written(app, "limit")
        for item in backend.graph["edges"]:
            if item["parent"] == "snap" and item["name"] == "backing":
                item["child"] = "limit"
        backend.change_graph()
        await until(pilot, lambda: app.state.graph.child("snap", "backing").child == "limit")  # type: ignore[union-attr]
        assert f"blockdev-reopen {snap}base" in written(app, "limit")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (DeviceState(), {"block_set_io_throttle", "block-latency-histogram-set", "block_resize", "device_del"}),
        (
            DeviceState(removable=True, tray_open=False, inserted="overlay2"),
            {"eject", "blockdev-open-tray", "blockdev-change-medium"},
        ),
        (
            DeviceState(removable=True, tray_open=True, inserted="overlay2"),
            {"eject", "blockdev-close-tray", "blockdev-remove-medium", "blockdev-change-medium"},
        ),
        (
            DeviceState(removable=True, tray_open=True),
            {"blockdev-close-tray", "blockdev-insert-medium", "blockdev-change-medium"},
        ),
    ],
    ids=["disk", "closed", "open", "empty"],
)
async def test_devices_offer_what_their_trays_allow(device: DeviceState, words: set[str]) -> None:
    always = {"block_set_io_throttle", "block-latency-histogram-set", "block_resize", "device_del"}
    async with shown(able()) as (app, _, _):
        app.state.devices = {"vda": replace(device, qdev="vda")}
        found = {choice.word for choice in choices(app.state, ParentSubject("device:/machine/vda"))}
    assert found == words | always


async def test_a_device_goes_by_what_the_server_knows_it_by() -> None:
    async with shown(able()) as (app, _, _):

        def found(**device: Any) -> dict[str, str]:
            app.state.devices = {"vda": DeviceState(removable=True, tray_open=True, **device)}
            choices_now = choices(app.state, ParentSubject("device:/machine/vda"))
            return {choice.word: choice.command.split()[1] for choice in choices_now}

        # QEMU does not find a virtio device's back end by the id of the device.
        virtio = found(qdev="/machine/peripheral/vda/virtio-backend")
        assert virtio.pop("device_del") == "id=vda"
        assert virtio.pop("block_resize") == "node-name=overlay2"
        assert set(virtio.values()) == {"id=/machine/peripheral/vda/virtio-backend"}
        # One of -drive has no id, and goes by its path.
        assert found(qdev="/machine/unattached/device[3]")["device_del"] == 'id="/machine/unattached/device[3]"'
        drive = found()
        assert drive["block_set_io_throttle"] == "device=vda"
        assert drive["blockdev-close-tray"] == "device=vda"
        assert not {"device_del", "block-latency-histogram-set", "blockdev-insert-medium"} & set(drive)


async def test_trays_are_asked_for_and_again_when_they_move() -> None:
    backend = able()
    backend.commands.append("query-block")
    answer: list[dict[str, Any]] = [{"device": "", "qdev": "/machine/peripheral/vda/virtio-backend", "removable": True,
                                     "tray_open": False, "inserted": {"node-name": "overlay2"}}]  # fmt: skip
    ask = backend.execute

    async def execute(command: str, arguments: Any = None) -> Any:
        return answer if command == "query-block" else await ask(command, arguments)

    backend.execute = execute  # type: ignore[method-assign]
    async with shown(backend) as (app, pilot, _):
        await until(pilot, lambda: "vda" in app.state.devices)
        assert app.state.devices["vda"].inserted == "overlay2"
        answer[0]["tray_open"] = True
        backend.emit(event("DEVICE_TRAY_MOVED", 1, device="", id="vda", tray_open=True))
        await until(pilot, lambda: app.state.devices["vda"].tray_open)


async def test_an_export_is_withdrawn_softly_or_by_force() -> None:
    async with shown(able()) as (app, pilot, backend):
        app.graph.reveal(ParentSubject("export:exp0"))
        await pilot.press("a")
        await until(pilot, lambda: "block-export-del id=exp0" in popup_text(app))
        await pilot.press("D")
        await until(pilot, lambda: "cuts its clients off" in popup_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert "block-export-del" not in backend.executed
        await pilot.press("a", "d")
        await until(pilot, lambda: app.prompt.text == "block-export-del id=exp0")


async def test_a_paused_job_is_cancelled_only_by_force() -> None:
    backend = FakeBackend(busy_graph(), [block_job("m", "mirror", "standby", 1, 1)])
    async with shown(backend, size=(200, 40)) as (app, pilot, _):
        await pilot.press("f3")
        await until(pilot, lambda: "K cancel by force" in lines(app)[-1])
        assert "c cancel" not in lines(app)[-1]
        assert "o complete" in lines(app)[-1]
        assert "r resume" in lines(app)[-1]


async def test_a_key_that_can_do_nothing_says_so() -> None:
    backend = able()
    backend.commands.remove("blockdev-mirror")
    async with shown(backend) as (app, pilot, _):
        await pilot.press("down", "d")
        await until(pilot, lambda: "delete the node: not with overlay2 as it is now" in lines(app)[0])
        await pilot.press("m")
        await until(pilot, lambda: "mirror to another node: the server has no blockdev-mirror" in lines(app)[0])
        await pilot.press("up", "n")
        await until(pilot, lambda: "snapshot: vda is no node" in lines(app)[0])
        assert app.prompt.text == ""


# The question before harm


async def test_harm_is_asked_about_with_the_command_shown() -> None:
    async with shown(able()) as (app, pilot, backend):
        await pilot.press("down", "c")
        await until(pilot, lambda: "Run this?" in popup_text(app))
        page = popup_text(app)
        assert "block-commit job-id=commit0 device=overlay2 base-node=overlay1" in page
        assert "writes into overlay1, which cannot be undone" in page
        assert "Enter runs it" in page
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert app.prompt.text == ""
        assert "block-commit" not in backend.executed
        await pilot.press("c")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("enter")
        await until(pilot, lambda: "block-commit" in backend.executed)
        assert "(qmp) block-commit job-id=commit0" in text(app)


async def test_what_does_harm_can_be_edited_instead() -> None:
    async with shown(able()) as (app, pilot, backend):
        await pilot.press("down", "c")
        await until(pilot, lambda: "Run this?" in popup_text(app))
        await pilot.press("e")
        await until(pilot, lambda: app.prompt.text.startswith("block-commit"))
        assert app.focused is app.prompt
        # Seen once, it is not asked about again.
        await pilot.press("enter")
        await until(pilot, lambda: "block-commit" in backend.executed)


async def test_a_size_made_smaller_at_the_prompt_is_asked_about() -> None:
    async with shown(able()) as (app, pilot, backend):
        await pilot.press("down", "r")
        await until(pilot, lambda: app.prompt.text == f"block_resize node-name=overlay2 size={20 * GIB}")
        await pilot.press("backspace", "enter")
        await until(pilot, lambda: "off overlay2; what is in there is lost" in popup_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert "block_resize" not in backend.executed
        assert app.prompt.text.startswith("block_resize")
        await pilot.press("0", "enter")
        await until(pilot, lambda: "block_resize" in backend.executed)


async def test_what_is_typed_runs_as_typed() -> None:
    async with shown(able()) as (app, pilot, backend):
        await pilot.press("f5", *"blockdev-del node-name=scratch", "escape", "enter")
        await pilot.press("enter")
        await until(pilot, lambda: "blockdev-del" in backend.executed)
        assert len(app.screen_stack) == 1


@pytest.mark.parametrize(
    ("command", "arguments", "harmful"),
    [
        ("block_resize", {"node-name": "overlay2", "size": GIB}, True),
        ("block_resize", {"node-name": "overlay2", "size": 40 * GIB}, False),
        ("block_resize", {"device": "vda", "size": GIB}, True),
        ("block-job-cancel", {"device": "j"}, False),
        ("block-job-cancel", {"device": "j", "force": True}, True),
        ("job-cancel", {"id": "j"}, True),
        ("block-export-del", {"id": "e"}, False),
        ("block-export-del", {"id": "e", "mode": "hard"}, True),
        ("block-stream", {"device": "overlay2"}, False),
        ("transaction", {"actions": [{"type": "block-dirty-bitmap-clear", "data": {"node": "a", "name": "b"}}]}, True),
        ("transaction", {"actions": [{"type": "block-dirty-bitmap-add", "data": {"node": "a", "name": "b"}}]}, False),
    ],
)
async def test_what_counts_as_harm(command: str, arguments: dict[str, Any], harmful: bool) -> None:
    async with shown() as (app, _, _):
        assert (hazard(app.state, command, arguments) is not None) is harmful


async def test_leaving_asks_while_something_is_under_way() -> None:
    async with shown() as (app, pilot, _):
        await twelve_busy_seconds(pilot)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: "3 jobs under way" in popup_text(app))
        assert "1 guest at work: vda" in popup_text(app)
        assert not any("exp0" in told for told in app.under_way())  # No client does anything there.
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert app.is_running
        await pilot.press("ctrl+q")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("enter")
        await until(pilot, lambda: not app.is_running)
        assert app.return_value == 0


async def test_a_remote_engine_is_left_without_a_question() -> None:
    async with shown() as (app, pilot, _):
        app.options.connect = "unix:/run/qmp.sock"
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)


async def test_keys_typed_ahead_are_no_answer_to_a_question_that_nobody_has_seen() -> None:
    async with shown(able()) as (app, pilot, backend):
        await pilot.press("down")
        for key, character in (("c", "c"), ("enter", "\r")):
            app.post_message(Key(key, character))
        await until(pilot, lambda: "Run this?" in popup_text(app))
        await pilot.pause()
        assert "block-commit" not in backend.executed
        assert len(app.screen_stack) == 2
        await pilot.press("enter")
        await until(pilot, lambda: "block-commit" in backend.executed)


# The palette


async def test_letters_typed_right_after_its_key_go_into_the_palette() -> None:
    async with shown(able()) as (app, pilot, _):
        for key, character in (("f9", None), *((letter, letter) for letter in "stre")):
            app.post_message(Key(key, character))
        await until(pilot, lambda: isinstance(app.screen, PalettePopup) and app.screen.query_line.text == "stre")


async def test_the_palette_writes_a_command_with_what_it_demands() -> None:
    async with shown(able()) as (app, pilot, backend):
        await pilot.press("colon", *"stre")
        await until(pilot, lambda: "block-stream" in popup_text(app))
        await pilot.press("ctrl+u", *"bdel")
        await until(pilot, lambda: "close a node" in popup_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.prompt.text == "blockdev-del")
        assert app.focused is app.prompt
        assert "blockdev-del" not in backend.executed


async def test_the_palette_turns_to_panes_and_themes() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f9", *"theme light", "enter")
        await until(pilot, lambda: app.look.theme.name == "light")
        await pilot.press("f9", *"screen: jobs", "enter")
        await until(pilot, lambda: app.focused is app.jobs)
        await pilot.press("colon", *"screen: zoom", "enter")
        await until(pilot, lambda: "F2 Graph" not in text(app))


async def test_the_palette_has_the_actions_on_the_selection_first() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "colon")
        await until(pilot, lambda: isinstance(app.screen, PalettePopup))
        assert app.screen.found.items[0].name == "overlay2: stream: copy in what the backing chain holds"  # type: ignore[attr-defined]
        await pilot.press("q", "escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)


def test_the_best_match_comes_first() -> None:
    items = [
        PaletteItem(name, note, lambda: None)
        for name, note in (("x-block-thing", ""), ("query-jobs", "jobs with status"), ("job-pause", "hold a job"))
    ]
    assert [item.name for item in matching(items, "job")] == ["job-pause", "query-jobs"]
    assert [item.name for item in matching(items, "hold")] == ["job-pause"]
    assert [item.name for item in matching(items, "qj")] == ["query-jobs"]
    assert [item.name for item in matching(items, "jobs status")] == ["query-jobs"]


# Help and the footer


@pytest.mark.parametrize(
    ("key", "first"), [("f2", "Graph"), ("f3", "Jobs"), ("f4", "Events"), ("f6", "Inspector"), ("f5", "Prompt")]
)
async def test_help_begins_with_the_pane_in_focus(key: str, first: str) -> None:
    async with shown() as (app, pilot, _):
        await pilot.press(key, "f1")
        await until(pilot, lambda: f"{first}, where you are" in popup_text(app))
        await pilot.press("f1")
        await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_help_without_an_f_key() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "question_mark")
        await until(pilot, lambda: "Graph, where you are" in popup_text(app))
        await pilot.press("question_mark")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.press("a", "question_mark")
        await until(pilot, lambda: "write into the prompt" in popup_text(app))


@pytest.mark.parametrize("size", [(80, 24), (40, 10)], ids=["80x24", "40x10"])
async def test_no_line_of_the_help_is_cut_off(size: tuple[int, int]) -> None:
    async with shown(size=size) as (app, pilot, _):
        for key in ("f2", "f3", "f4", "f6", "f5"):
            await pilot.press(key, "f1")
            await until(pilot, lambda: "where you are" in popup_text(app))
            for _ in range(16):
                assert "…" not in popup_text(app).replace("events: …", "")
                await pilot.press("pagedown")
            await pilot.press("escape")
            await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_popups_have_help_of_their_own() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "a", "f1")
        await until(pilot, lambda: "write into the prompt" in popup_text(app))
        # Textual's own keys do nothing here.
        assert "Focus" not in popup_text(app)
        assert "Copy selected" not in popup_text(app)
        await pilot.press("escape", "escape", "colon", "f1")
        await until(pilot, lambda: "do it; a command is written into the prompt" in popup_text(app))


async def test_finished_jobs_are_put_away_one_by_one_or_together() -> None:
    jobs = [block_job(f"job{number}", "stream", "running", 1, 2) for number in range(3)]
    async with shown(FakeBackend(busy_graph(), jobs)) as (app, pilot, backend):
        await pilot.press("f3")
        backend.jobs.clear()
        backend.emit(*(event("JOB_STATUS_CHANGE", 1, id=f"job{number}", status="null") for number in range(3)))
        await until(pilot, lambda: "X put all away" in lines(app)[-1])
        await pilot.press("x")
        await until(pilot, lambda: app.jobs.count() == 2)
        await pilot.press("X")
        await until(pilot, lambda: "No jobs." in text(app))
        assert not line_with(app, "X put all away")

"""What is offered of the things that live in a server: only what the command can take, each with a word about it."""

from __future__ import annotations

from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent, Completion
from prompt_toolkit.document import Document

from blockmon.backend.read_only import ReadOnlyBackend
from blockmon.repl.completer import ReplCompleter
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.session import ReplSession
from tests.blockmon.repl.fakes import CHAIN, HELP, Server, graph_reply, knowledge_of

BITMAPS = [
    {"name": "b0", "count": 131072, "granularity": 65536, "recording": True, "busy": False, "persistent": True},
    {"name": "off", "count": 0, "granularity": 65536, "recording": False, "busy": False, "persistent": False},
    {"name": "busy", "count": 0, "granularity": 65536, "recording": True, "busy": True, "persistent": False},
    {
        "name": "broken",
        "granularity": 65536,
        "recording": False,
        "busy": False,
        "persistent": True,
        "inconsistent": True,
    },
]
SNAPSHOTS = [
    {"name": "clean", "id": "1", "vm-state-size": 0, "date-sec": 1700000000},
    {"name": "running", "id": "7", "vm-state-size": 1 << 20, "date-sec": 1700000000},
]
NODES = [
    {"node-name": "overlay2", "drv": "qcow2", "dirty-bitmaps": BITMAPS, "image": {"snapshots": SNAPSHOTS}},
    {"node-name": "base", "drv": "raw", "dirty-bitmaps": [{"name": "below", "recording": True, "count": 0}]},
]
MEDIUM = {"drv": "qcow2", "node-name": "overlay2"}
DRIVES = [
    {"device": "vda", "qdev": "/machine/peripheral/vd0/virtio-backend", "removable": False, "inserted": MEDIUM},
    {"device": "", "qdev": "cd-full", "removable": True, "tray_open": False, "locked": True, "inserted": MEDIUM},
    {"device": "", "qdev": "cd-open", "removable": True, "tray_open": True, "inserted": MEDIUM},
    {"device": "cd2", "qdev": "cd-empty", "removable": True, "tray_open": True},
]
MORE_HELP = (
    HELP
    + """\
block_job_set_speed device speed -- set a limit
change device [-f] filename [format [read-only-mode]] -- put another medium in
chardev-remove id -- remove chardev
delvm tag -- delete a snapshot
device_add driver[,prop=value][,...] -- add device, like -device on the command line
device_del device -- remove device
drive_add [-n] [[<domain>:]<bus>:]<slot>
[file=file][,if=type][,bus=n]
[,unit=m][,media=d][,index=i] -- add drive to PCI storage controller
eject [-f] device -- eject a removable medium (use -f to force it)
loadvm tag -- restore a snapshot
object_add [qom-type=]type,id=str[,prop=value][,...] -- create QOM object
"""
)


def qom_list(path: str) -> list[dict[str, str]]:
    """The objects of a machine."""
    found = {
        "/objects": {"tg0": "throttle-group", "io0": "iothread", "sec0": "secret", "tls0": "tls-creds-x509"},
        "/objects/io0": {},
        "/machine/peripheral": {"cd-full": "scsi-cd", "net0": "virtio-net-pci"},
    }[path]
    children = [{"name": name, "type": f"child<{kind}>"} for name, kind in found.items()]
    return children or [{"name": "poll-grow", "type": "int"}, {"name": "part", "type": "child<part>"}]


@pytest.fixture
async def knowledge() -> Knowledge:
    reply = graph_reply(CHAIN)
    reply["edges"] += [
        {"parent": "monitor", "parent-kind": "monitor", "name": "", "child": "overlay2", "roles": []},
        {"parent": "overlay2", "name": "file", "child": "base", "roles": ["data", "metadata"]},
    ]
    answers: dict[str, Any] = {
        "x-blockmon-query-graph": reply,
        "query-named-block-nodes": NODES,
        "query-block": DRIVES,
        "query-block-exports": [
            {"id": "exp0", "type": "nbd", "node-name": "overlay2", "shutting-down": False},
            {"id": "going", "type": "nbd", "node-name": "overlay2", "shutting-down": True},
        ],
        "query-chardev": [{"label": "serial0", "filename": "pty:/dev/pts/3", "frontend-open": True}],
        "qom-list": qom_list,
        "human-monitor-command": lambda command_line: MORE_HELP if command_line == "help" else "",
    }
    server = Server(answers)
    add_commands(server)
    knowledge = await knowledge_of(server)
    for section in ("images", "chardevs", "peripherals"):
        knowledge.names.want(section)
    await knowledge.names.refresh()
    await knowledge.names.close()
    return knowledge


def add_commands(server: Server) -> None:
    """What an emulator has more than the storage daemon whose schema this is."""
    string = {"name": "id", "type": "str"}
    device = {"name": "device", "type": "str", "default": None}
    members = {
        "eject": [{**string, "default": None}, device],
        "blockdev-open-tray": [{**string, "default": None}, device],
        "blockdev-close-tray": [string],
        "blockdev-insert-medium": [string, {"name": "node-name", "type": "str"}],
        "blockdev-remove-medium": [string],
        "device_add": [{"name": "driver", "type": "str"}, {**string, "default": None}],
        "device_del": [string],
        "chardev-remove": [string],
        "query-chardev": [],
        "query-block": [],
    }
    for name, listed in members.items():
        server.schema.append({"name": name, "meta-type": "command", "arg-type": f"-{name}", "ret-type": "0"})
        server.schema.append({"name": f"-{name}", "meta-type": "object", "members": listed})


def offers(knowledge: Knowledge, text: str) -> dict[str, str]:
    """What is offered at `|`, or at the end, with what is said of it."""
    return {c.display_text: c.display_meta_text for c in completions(knowledge, text)}


def completions(knowledge: Knowledge, text: str) -> list[Completion]:
    cursor = text.index("|") if "|" in text else len(text)
    document = Document(text.replace("|", ""), cursor)
    return list(ReplCompleter(knowledge).get_completions(document, CompleteEvent()))


def results(knowledge: Knowledge, text: str) -> list[str]:
    """The whole text for each completion, once it is taken."""
    before, _, after = text.partition("|")
    return [before[: len(before) + c.start_position] + c.text + after for c in completions(knowledge, text)]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("block-dirty-bitmap-clear", ["b0", "off"]),
        ("block-dirty-bitmap-enable", ["off"]),
        ("block-dirty-bitmap-disable", ["b0"]),
        ("block-dirty-bitmap-remove", ["b0", "off", "broken"]),
    ],
)
async def test_bitmaps_of_the_node_that_the_verb_can_be_used_on(
    knowledge: Knowledge, command: str, names: list[str]
) -> None:
    assert list(offers(knowledge, f"{command} node=overlay2 name=")) == names
    assert offers(knowledge, f"{command} node=overlay1 name=") == {}
    action = f"transaction actions.0.type={command} actions.0.data.node=overlay2 actions.0.data.name="
    assert list(offers(knowledge, action)) == names


async def test_what_is_said_of_bitmaps(knowledge: Knowledge) -> None:
    found = offers(knowledge, "block-dirty-bitmap-remove node=overlay2 name=")
    assert found["b0"] == "on overlay2, 128K dirty, by 64K, persistent"
    assert found["off"] == "on overlay2, 0 dirty, by 64K, disabled"
    assert found["broken"] == "on overlay2, 0 dirty, by 64K, persistent, inconsistent"


async def test_a_device_stands_for_the_node_in_it(knowledge: Knowledge) -> None:
    assert list(offers(knowledge, "blockdev-backup device=vda sync=incremental bitmap=")) == ["b0", "off"]


async def test_bitmaps_of_a_list_are_of_the_nearest_node(knowledge: Knowledge) -> None:
    line = "block-dirty-bitmap-merge node=overlay2 target=b0 bitmaps."
    assert list(offers(knowledge, line + "0=")) == ["b0", "off"]
    assert list(offers(knowledge, line + "0.node=base " + line.split()[-1] + "0.name=")) == ["below"]
    json = '{"execute": "block-dirty-bitmap-merge", "arguments": {"node": "overlay2", "bitmaps": '
    assert list(offers(knowledge, json + '["b')) == ["b0"]
    assert list(offers(knowledge, json + '[{"node": "base", "name": "')) == ["below"]


async def test_an_exports_bitmaps_may_be_further_down_the_chain(knowledge: Knowledge) -> None:
    found = offers(knowledge, "block-export-add type=nbd id=x node-name=overlay2 bitmaps.0=")
    assert found["below"].startswith("on base")


async def test_an_item_with_a_value_of_its_own_has_no_members(knowledge: Knowledge) -> None:
    line = "block-dirty-bitmap-merge node=overlay2 target=b0 bitmaps.0=b0 bitmaps."
    assert list(offers(knowledge, line)) == ["1=", "1."]
    assert offers(knowledge, line + "0.") == {}


async def test_exports_that_can_be_deleted(knowledge: Knowledge) -> None:
    assert offers(knowledge, "block-export-del id=") == {"exp0": "nbd overlay2"}
    assert offers(knowledge, "nbd-server-remove name=") == {"exp0": "nbd overlay2"}


async def test_snapshots(knowledge: Knowledge) -> None:
    line = "blockdev-snapshot-delete-internal-sync device=overlay2 "
    found = offers(knowledge, line + "name=")
    assert list(found) == ["clean", "running"]
    assert found["running"].startswith("id 7 on overlay2 2023-11-1")
    assert found["running"].endswith("VM 1M")
    assert list(offers(knowledge, line + "id=")) == ["1", "7"]
    assert list(offers(knowledge, "delvm ")) == ["clean", "running"]
    assert list(offers(knowledge, "loadvm ")) == ["running"]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("eject", ["cd-full", "cd-open", "cd-empty"]),
        ("blockdev-open-tray", ["cd-full"]),
        ("blockdev-close-tray", ["cd-open", "cd-empty"]),
        ("blockdev-insert-medium", ["cd-empty"]),
        ("blockdev-remove-medium", ["cd-open"]),
    ],
)
async def test_drives_by_what_can_be_done_with_them(knowledge: Knowledge, command: str, names: list[str]) -> None:
    assert list(offers(knowledge, f"{command} id=")) == names


async def test_what_is_said_of_drives(knowledge: Knowledge) -> None:
    assert offers(knowledge, "eject id=cd-f") == {"cd-full": "qcow2 overlay2, tray closed, locked"}
    assert offers(knowledge, "eject ")["cd2"] == "empty, tray open"


async def test_devices_to_unplug_and_character_devices(knowledge: Knowledge) -> None:
    assert offers(knowledge, "device_del id=net") == {"net0": "virtio-net-pci"}
    assert offers(knowledge, "device_del cd-f") == {"cd-full": "scsi-cd qcow2 overlay2, tray closed, locked"}
    assert offers(knowledge, "chardev-remove id=") == {"serial0": "pty:/dev/pts/3"}


async def test_properties_of_an_object_are_asked_for_when_wanted(knowledge: Knowledge) -> None:
    assert list(offers(knowledge, "qom-get path=/objects/")) == [
        f"/objects/{n}" for n in ("tg0", "io0", "sec0", "tls0")
    ]
    assert offers(knowledge, "qom-get path=/objects/io0 property=") == {}
    await knowledge.names.refresh()
    assert offers(knowledge, "qom-get path=/objects/io0 property=") == {"poll-grow": "int"}
    await knowledge.names.close()


async def test_objects_by_type(knowledge: Knowledge) -> None:
    assert list(offers(knowledge, "blockdev-add driver=throttle throttle-group=")) == ["tg0"]
    assert list(offers(knowledge, "block-export-add type=nbd id=x node-name=base iothread=")) == ["io0"]
    assert list(offers(knowledge, "blockdev-add driver=luks key-secret=")) == ["sec0"]
    assert list(offers(knowledge, "blockdev-add driver=nbd tls-creds=")) == ["tls0"]


async def test_edges_with_their_roles(knowledge: Knowledge) -> None:
    found = offers(knowledge, "x-blockdev-change parent=overlay2 child=")
    assert found == {"backing": "cow → overlay1 qcow2 8G", "file": "data, metadata → base raw 8G"}


async def test_reopening_offers_what_is_there_now_first(knowledge: Knowledge) -> None:
    line = "blockdev-reopen options.0.node-name=overlay2 options.0.driver="
    assert list(offers(knowledge, line)) == ["qcow2"]
    found = offers(knowledge, line + "qcow2 options.0.backing=")
    assert next(iter(found)) == "overlay1"
    assert found["overlay1"].startswith("now backing (cow) qcow2 8G")
    json = (
        '{"execute": "blockdev-reopen", "arguments": {"options": [{"node-name": "overlay2", "driver": "qcow2", "file": '
    )
    assert next(iter(results(knowledge, json))) == json + '"base"'


async def test_only_unused_nodes_can_be_deleted() -> None:
    reply = graph_reply(CHAIN)
    reply["nodes"].append({"node-name": "free", "driver": "raw", "filename": "/img/free", "size": 512})
    for item in reply["nodes"]:
        item["monitor-owned"] = item["node-name"] in ("overlay2", "base", "free")
    reply["edges"] += [
        {"parent": "monitor", "parent-kind": "monitor", "name": "", "child": "free"},
        {"parent": "vda", "parent-kind": "device", "name": "root", "child": "overlay2"},
    ]
    knowledge = await knowledge_of(Server({"x-blockmon-query-graph": reply}))
    assert list(offers(knowledge, "blockdev-del node-name=")) == ["free"]
    assert offers(knowledge, "blockdev-del node-name=over") == {}
    # What is to be copied to is not what is copied; an unused node is the usual choice.
    assert list(offers(knowledge, "blockdev-mirror device=overlay2 target=")) == ["free"]
    assert list(offers(knowledge, "blockdev-mirror device=base target=")) == ["free", "overlay1", "overlay2"]
    assert list(offers(knowledge, "blockdev-snapshot node=overlay2 overlay=")) == ["free"]


async def test_enum_values_say_what_they_mean(knowledge: Knowledge) -> None:
    assert offers(knowledge, "blockdev-mirror sync=")["top"] == "only what the topmost layer holds itself"
    assert offers(knowledge, "blockdev-add driver=raw discard=") == {
        "ignore": "discards are dropped",
        "unmap": "discards free space in the image or on the host",
    }
    assert offers(knowledge, "blockdev-add driver=quor") == {"quorum": "filter: several copies that vote"}
    assert offers(knowledge, "object-add qom-type=iot")["iothread"] == "a thread that does I/O"
    assert offers(knowledge, "transaction actions.0.type=abo") == {"abort": "fail, and undo the other actions"}


async def test_members_say_what_they_are_for_where_they_are(knowledge: Knowledge) -> None:
    assert offers(knowledge, "block-job-cancel ")["device="] == "required job · the job's id"
    path = offers(knowledge, "blockdev-add driver=nbd server.type=unix server.")["path="]
    assert "/objects" not in path  # that is the path of qom-get
    qcow2 = offers(knowledge, "blockdev-add driver=qcow2 l2-cache-s")
    assert qcow2["l2-cache-size="] == "size · bytes of one"


async def test_sizes_get_units_and_json_gets_bytes(knowledge: Knowledge) -> None:
    found = offers(knowledge, "blockdev-add driver=null-co size=64")
    assert list(found) == ["64K", "64M", "64G", "64T"]
    assert found["64M"] == "67,108,864 bytes"
    json = '{"execute": "blockdev-add", "arguments": {"driver": "null-co", "size": 64'
    assert results(knowledge, json)[1] == json[:-2] + "67108864"
    assert offers(knowledge, "blockdev-add driver=null-co size=64M") == {}
    assert offers(knowledge, "blockdev-add driver=null-co latency-ns=64") == {}
    assert offers(knowledge, "block_resize overlay2 64")["64M"] == "67,108,864 bytes, as without the M"


# HMP -----------------------------------------------------------------------------------------------------------------


async def test_option_strings_of_hmp(knowledge: Knowledge) -> None:
    assert results(knowledge, "object_add throt") == ["object_add throttle-group,id="]
    assert "limits=" in offers(knowledge, "object_add throttle-group,id=x,")
    assert list(offers(knowledge, "object_add secret,id=x,format=")) == ["raw", "base64"]
    assert results(knowledge, "device_add virtio-blk-pci,drive=overlay1,share-rw=o")[0].endswith("share-rw=on")
    assert list(offers(knowledge, "device_add scsi-hd,drive=over")) == ["overlay1", "overlay2"]
    assert results(knowledge, "drive_add 0 if=none,med") == ["drive_add 0 if=none,media="]
    assert "if=" not in offers(knowledge, "drive_add 0 if=none,")
    assert list(offers(knowledge, "drive_add 0 if=none,format=qcow")) == ["qcow", "qcow2"]


async def test_qemu_ios_commands_inside_their_quotes(knowledge: Knowledge) -> None:
    assert results(knowledge, 'qemu-io base "len') == ['qemu-io base "length"']
    assert results(knowledge, "qemu-io base fl")[:1] == ['qemu-io base "flush"']
    assert results(knowledge, 'qemu-io base "write -z')[0] == 'qemu-io base "write -z'
    assert results(knowledge, 'qemu-io base "write -z 64')[0] == 'qemu-io base "write -z 64K'
    assert results(knowledge, 'qemu-io base "write -z 64K 1')[1] == 'qemu-io base "write -z 64K 1M"'


async def test_media_commands_of_hmp_offer_removable_drives(knowledge: Knowledge) -> None:
    assert list(offers(knowledge, "change ")) == ["cd2", "-f"]
    assert list(offers(knowledge, "change cd2 x.iso raw r")) == ["retain", "read-only", "read-write"]


# JSON ----------------------------------------------------------------------------------------------------------------

STREAM = '{"execute": "block-stream", "arguments": {"device": "overlay2"'


async def test_behind_a_value_comes_a_comma_or_the_end(knowledge: Knowledge) -> None:
    found = offers(knowledge, STREAM)
    assert list(found)[:3] == ["}", "}}", "job-id"]
    assert found["}}"] == "ends the command"
    assert results(knowledge, STREAM)[2] == STREAM + ', "job-id": '
    assert results(knowledge, STREAM + "  ")[2] == STREAM + ', "job-id": '
    number = STREAM + ', "speed": 5'
    assert number + "}}" in results(knowledge, number)
    assert STREAM + ', "auto-dismiss": true}' in results(knowledge, STREAM + ', "auto-dismiss": true')


async def test_a_command_does_not_end_before_what_it_needs_is_given(knowledge: Knowledge) -> None:
    mirror = '{"execute": "blockdev-mirror", "arguments": {"device": "base"'
    assert list(offers(knowledge, mirror))[:2] == ["target", "sync"]
    assert "}" not in offers(knowledge, mirror)
    assert "}" not in offers(knowledge, '{"execute": "block-stream"')
    assert list(offers(knowledge, '{"execute": "query-jobs"')) == ["}", "id"]


async def test_completion_in_the_middle_of_json(knowledge: Knowledge) -> None:
    assert "}" not in offers(knowledge, STREAM + "|}}")
    assert results(knowledge, STREAM + "|}}")[0] == STREAM + ', "job-id": }}'
    # A string that was never closed gets its quote, and only what is missing is put in.
    text = '{"execute": "block-stream", "arguments": {"device": "overlay2|, "speed": 1}}'
    assert results(knowledge, text) == [text.replace("|", '"')]
    text = '{"execute": "block-stream", "arguments": {"device": |"speed": 1}}'
    assert text.replace("|", '"vda", ') in results(knowledge, text)
    assert results(knowledge, '{"execute": "block-stream"| "id": 1}') == ['{"execute": "block-stream", "id": 1}']


async def test_json_over_several_lines_keeps_its_lines(knowledge: Knowledge) -> None:
    text = STREAM.replace(", ", ",\n  ") + "\n    "
    assert results(knowledge, text)[2] == text.rstrip() + ',\n    "job-id": '
    assert results(knowledge, text)[0] == text + "}"


async def test_an_empty_object_can_be_closed(knowledge: Knowledge) -> None:
    assert offers(knowledge, '{"execute": "query-jobs", "arguments": {')["}}"] == "ends the command"
    text = '{"execute": "transaction", "arguments": {"actions": [{"type": "abort", "data": '
    assert results(knowledge, text) == [text + "{}"]
    assert results(knowledge, "transaction actions.0.type=abort actions.0.d") == [
        "transaction actions.0.type=abort actions.0.data={}"
    ]


# Loosely -------------------------------------------------------------------------------------------------------------


async def test_letters_in_their_order_find_what_nothing_else_does(knowledge: Knowledge) -> None:
    assert list(offers(knowledge, "bdbadd")) == ["block-dirty-bitmap-add"]
    assert list(offers(knowledge, "blockdev-del node-name=ol1")) == ["overlay1"]
    assert list(offers(knowledge, "blockdev-del node-name=LAY1")) == ["overlay1"]
    assert list(offers(knowledge, "block-commit device=overlay2 base-node=ol1")) == ["overlay1"]
    assert list(offers(knowledge, "commit")) == ["commit", "block-commit"]  # no looser ones beside good ones


# Read-only sessions --------------------------------------------------------------------------------------------------


async def test_what_a_read_only_session_refuses_is_said_and_comes_last() -> None:
    session = ReplSession(ReadOnlyBackend(Server()))
    await session.start()
    await session.learned()
    await session.close()
    found = offers(session.knowledge, "query-b")
    assert found["query-block-jobs"] == "block jobs with speed and progress"
    assert offers(session.knowledge, "blockdev-d")["blockdev-del"] == "read-only: close a node"
    assert offers(session.knowledge, "nbd_server_s")["nbd_server_stop"].startswith("read-only: hmp")
    assert not offers(session.knowledge, "info")["info"].startswith("read-only")

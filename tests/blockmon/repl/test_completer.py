"""What the prompt offers, with a real 7.2 schema and a fake server. The cursor is `|`, or the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent, Completion
from prompt_toolkit.document import Document

from blockmon.repl.completer import MOST, ReplCompleter
from blockmon.repl.hints import hint_for
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.lexers import PromptInputLexer
from blockmon.repl.summaries import SUMMARIES
from tests.blockmon.repl.fakes import Server, graph_reply, knowledge_of, schema_entries

Complete = Callable[[str], list[Completion]]


def complete_with(knowledge: Knowledge, text: str) -> list[Completion]:
    cursor = text.index("|") if "|" in text else len(text)
    document = Document(text.replace("|", ""), cursor)
    return list(ReplCompleter(knowledge).get_completions(document, CompleteEvent()))


@pytest.fixture
async def complete() -> Complete:
    knowledge = await knowledge_of(Server())
    return lambda text: complete_with(knowledge, text)


def shown(completions: list[Completion]) -> list[str]:
    return [completion.display_text for completion in completions]


def result(text: str, completion: Completion) -> str:
    """The text before the cursor once *completion* is taken."""
    before = text.split("|")[0]
    return before[: len(before) + completion.start_position] + completion.text


def meta(completions: list[Completion], name: str) -> str:
    return next(c.display_meta_text for c in completions if c.display_text == name)


async def test_commands_of_qmp_and_hmp_with_a_line_about_each(complete: Complete) -> None:
    found = complete("block")
    assert shown(found)[:2] == ["block-commit", "block-dirty-bitmap-add"]
    assert "block_job_pause" in shown(found)
    assert meta(found, "block-commit") == "move a layer's data down into one below"
    assert meta(found, "block_job_pause") == "hmp · hold a job"
    assert result("block", found[0]) == "block-commit "


async def test_a_line_with_nothing_on_it_offers_everything_only_when_asked() -> None:
    completer = ReplCompleter(await knowledge_of(Server()))
    for text in ("", "query-version\n"):
        typed = completer.get_completions_async(Document(text), CompleteEvent(text_inserted=True))
        assert [completion async for completion in typed] == []
        asked = completer.get_completions_async(Document(text), CompleteEvent(completion_requested=True))
        assert len([completion async for completion in asked]) > 20


async def test_commands_match_inside_and_with_either_dash(complete: Complete) -> None:
    assert shown(complete("commit")) == ["commit", "block-commit"]
    assert {"block-stream", "block_stream"} <= set(shown(complete("block_str")))
    assert shown(complete("block_str"))[0] == "block_stream"


async def test_deprecated_commands_say_so_and_come_last(complete: Complete) -> None:
    found = complete("drive-")
    assert shown(found) == ["drive-mirror", "drive-backup"]
    assert meta(found, "drive-backup").startswith("deprecated ")


async def test_commands_of_a_newer_server_are_told_by_what_they_need() -> None:
    server = Server()
    server.schema = [*server.schema, {**command_entry("block-stream"), "name": "block-newer"}]
    found = complete_with(await knowledge_of(server), "block-newer")
    assert meta(found, "block-newer") == "device="


def command_entry(name: str) -> dict[str, object]:
    return next(entry for entry in schema_entries() if entry["name"] == name)


def test_every_block_command_of_7_2_has_a_summary() -> None:
    commands = {entry["name"] for entry in schema_entries() if entry["meta-type"] == "command"}
    assert commands <= SUMMARIES.keys()
    assert max(map(len, SUMMARIES.values())) <= 45


async def test_arguments_still_missing_required_first(complete: Complete) -> None:
    found = complete("block-stream ")
    assert shown(found)[0] == "device="
    assert meta(found, "device=") == "required device or node · the device or node to stream into"
    assert meta(found, "speed=") == "size · bytes per second, 0 for no limit"
    left = shown(complete("block-stream device=overlay2 speed=1M "))
    assert "device=" not in left
    assert "speed=" not in left
    assert left[0] == "job-id="


async def test_arguments_behind_the_cursor_are_given_too(complete: Complete) -> None:
    assert "device=" not in shown(complete("block-stream | device=overlay2"))


async def test_driver_dependent_fields(complete: Complete) -> None:
    assert "l2-cache-size=" not in shown(complete("blockdev-add "))
    found = shown(complete("blockdev-add driver=qcow2 "))
    assert found[:2] == ["file=", "file."]
    assert {"backing=", "backing.", "l2-cache-size=", "encrypt."} <= set(found)
    assert "filename=" not in found
    assert shown(complete("blockdev-add driver=qcow2 file.driver=file file.f")) == ["filename=", "force-share="]


async def test_driver_dependent_fields_in_json(complete: Complete) -> None:
    text = '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "file": {"driver": "file", "fi'
    (found,) = complete(text)
    assert result(text, found) == text[:-2] + 'filename": '
    assert complete('{"execute": "blockdev-add", "arguments": {"l2|": 1, "driver": "raw"}}') == []
    text = '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "l2-cache-s|"}}'
    assert result(text, complete(text)[0]).endswith('"l2-cache-size')


async def test_enum_values_and_booleans(complete: Complete) -> None:
    assert shown(complete("block-stream device=a on-error=")) == ["report", "ignore", "enospc", "stop", "auto"]
    assert shown(complete("block-stream device=a auto-dismiss=")) == ["on", "off"]
    json = '{"execute": "block-stream", "arguments": {"auto-dismiss": '
    assert shown(complete(json)) == ["true", "false"]
    json = '{"execute": "block-stream", "arguments": {"on-error": '
    assert next(c.text for c in complete(json)) == '"report"'


async def test_node_names_with_driver_and_size(complete: Complete) -> None:
    found = complete("blockdev-del node-name=")
    assert shown(found) == ["base", "overlay1", "overlay2"]
    assert meta(found, "overlay2") == "qcow2 8G rw o2.qcow2"
    assert meta(found, "base") == "raw 8G ro base.raw"
    assert shown(complete("blockdev-del node-name=overlay")) == ["overlay1", "overlay2"]
    assert shown(complete("blockdev-del node-name=lay1")) == ["overlay1"]


async def test_layers_of_the_chain_come_in_its_order(complete: Complete) -> None:
    assert shown(complete("block-stream device=overlay2 base-node=")) == ["overlay1", "base"]
    assert shown(complete("block-commit device=overlay2 top-node=")) == ["overlay1", "base", "overlay2"]
    assert shown(complete("block-commit device=overlay2 top=")) == ["/img/o1.qcow2", "/img/base.raw"]


async def test_images_come_before_the_nodes_that_carry_them() -> None:
    reply = graph_reply([("b-image", "qcow2", "/b"), ("a-file", "file", "/b")])
    reply["edges"][0]["name"] = "file"
    knowledge = await knowledge_of(Server({"x-blockmon-query-graph": reply}))
    assert shown(complete_with(knowledge, "blockdev-del node-name=")) == ["b-image", "a-file"]


async def test_devices_beside_nodes_where_both_may_stand(complete: Complete) -> None:
    assert shown(complete("block-stream device=")) == ["vda", "base", "overlay1", "overlay2"]


async def test_new_names_are_not_offered_old_ones(complete: Complete) -> None:
    assert complete("blockdev-add node-name=") == []
    assert complete("block-stream job-id=") == []


async def test_references_in_options_are_nodes_or_objects(complete: Complete) -> None:
    assert shown(complete("blockdev-add driver=qcow2 backing=")) == ["base", "overlay1", "overlay2", "null"]
    json = '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "file": '
    found = complete(json)
    assert result(json, found[0]) == json + '"base"'
    assert found[-1].text == '{"driver": '


@pytest.mark.parametrize(
    ("text", "jobs"),
    [
        ("job-cancel id=", ["stream0", "mirror0", "held", "wait0"]),
        ("job-complete id=", ["mirror0"]),
        ("job-finalize id=", ["wait0"]),
        ("job-dismiss id=", ["create0"]),
        ("block-job-dismiss id=", []),  # a create job is no block job
        ("job-pause id=", ["stream0", "mirror0"]),
        ("job-resume id=", ["held"]),
        ("block-job-set-speed device=", ["stream0", "mirror0", "held"]),
        ("block_job_cancel ", ["stream0", "mirror0", "held", "wait0", "-f"]),
        ('{"execute": "job-complete", "arguments": {"id": "', ["mirror0"]),
    ],
)
async def test_job_ids_only_where_the_verb_is_legal(complete: Complete, text: str, jobs: list[str]) -> None:
    assert shown(complete(text)) == jobs


async def test_jobs_say_type_and_status(complete: Complete) -> None:
    assert meta(complete("job-complete id="), "mirror0") == "mirror ready"


async def test_exports_objects_edges_and_formats(complete: Complete) -> None:
    assert shown(complete("block-export-del id=")) == ["exp0"]
    assert shown(complete("blockdev-add driver=throttle throttle-group=")) == ["tg0"]
    assert shown(complete("object-del id=")) == ["tg0", "sec0"]
    assert shown(complete("x-blockdev-change parent=overlay2 child=")) == ["backing"]
    assert "qcow2" in shown(complete("blockdev-snapshot-sync format=q"))


async def test_bitmaps_are_asked_for_when_first_wanted() -> None:
    server = Server()
    knowledge = await knowledge_of(server)
    assert "query-named-block-nodes" not in server.commands
    assert complete_with(knowledge, "block-dirty-bitmap-clear node=overlay2 name=") == []
    await knowledge.names.refresh()
    assert shown(complete_with(knowledge, "block-dirty-bitmap-clear node=overlay2 name=")) == ["b0"]
    assert complete_with(knowledge, "block-dirty-bitmap-add node=overlay2 name=") == []
    await knowledge.names.close()


async def test_transaction_actions_by_dotted_index(complete: Complete) -> None:
    assert shown(complete("transaction ")) == ["actions.", "properties."]
    assert shown(complete("transaction actions.")) == ["0."]
    line = "transaction actions.0.type=blockdev-snapshot actions."
    assert shown(complete(line)) == ["0.", "1."]
    assert shown(complete(line + "0.data.")) == ["node=", "overlay="]
    assert shown(complete(line + "0.data.node=over")) == ["overlay1", "overlay2"]


async def test_json_from_the_first_brace_on(complete: Complete) -> None:
    assert shown(complete("{")) == ["execute", "arguments", "id"]
    text = '{"execute": "block-str'
    (found,) = complete(text)
    assert result(text, found) == '{"execute": "block-stream"'
    assert [c.text for c in complete('{"execute": "block-stream", "arguments": ')] == ["{"]
    assert "execute" not in shown(complete('{"execute": "x", '))
    left = shown(complete('{"execute": "block-stream", "arguments": {"device": "d", '))
    assert "device" not in left
    assert "base-node" in left


async def test_json_inside_a_shell_line(complete: Complete) -> None:
    assert [c.text for c in complete('blockdev-add driver=raw file={"driver": "file", "file')] == ['filename": ']


async def test_hmp_arguments(complete: Complete) -> None:
    assert shown(complete("info ")) == ["block", "block-jobs"]
    assert shown(complete("info block -")) == ["-n", "-v"]
    assert meta(complete("info block -"), "-n") == "named nodes"
    assert shown(complete("info block -n ")) == ["vda", "base", "overlay1", "overlay2", "-v"]
    assert shown(complete("commit ")) == ["vda", "all"]  # no node will do
    assert shown(complete("help snap")) == ["snapshot_blkdev"]
    assert shown(complete('qemu-io base "rea'))[:3] == ["read", "readv", "aio_read"]
    assert shown(complete("snapshot_blkdev overlay2 x qc")) == ["qcow", "qcow2"]
    assert shown(complete("block_stream overlay2 ")) == ["1M", "10M", "100M"]
    assert shown(complete("block_resize overlay2 12")) == ["12K", "12M", "12G", "12T"]


async def test_a_shared_name_offers_both_languages(complete: Complete) -> None:
    found = shown(complete("block_resize "))
    assert found[:3] == ["size=", "device=", "node-name="]
    assert "overlay1" in found
    assert shown(complete("block_resize ov")) == ["overlay1", "overlay2"]
    assert "overlay1" not in shown(complete("block_resize device=x "))


async def test_a_server_without_hmp_offers_none() -> None:
    knowledge = await knowledge_of(Server(hmp=False))
    assert "block_job_pause" not in shown(complete_with(knowledge, "block"))
    assert complete_with(knowledge, "info ") == []


async def test_file_names_with_probed_format(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(100))
    (tmp_path / "b.img").write_bytes(bytes(2048))
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").write_bytes(b"")
    found = complete(f"blockdev-add driver=file filename={tmp_path}/")
    assert shown(found) == ["sub/", "a.qcow2", "b.img"]
    assert [c.display_meta_text for c in found] == ["directory", "qcow2 108", "raw 2K"]
    assert found[1].text == f"{tmp_path}/a.qcow2"
    assert shown(complete(f"blockdev-add driver=file filename={tmp_path}/.h")) == [".hidden"]


async def test_file_names_are_quoted_where_the_form_needs_it(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "two words.img").write_bytes(b"")
    (tmp_path / 'quo"te').mkdir()
    line = f"blockdev-add driver=file filename={tmp_path}/two"
    (found,) = complete(line)
    assert result(line, found) == f'blockdev-add driver=file filename="{tmp_path}/two words.img"'
    json = f'{{"execute": "blockdev-add", "arguments": {{"driver": "file", "filename": "{tmp_path}/quo'
    (found,) = complete(json)
    assert result(json, found).endswith(f'{tmp_path}/quo\\"te/')


async def test_a_name_cannot_steer_the_terminal(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.img").write_bytes(b"")
    (found,) = complete(f"blockdev-add driver=file filename={tmp_path}/a")
    assert "\x1b" not in found.display_text


async def test_files_of_another_machine_are_not_offered(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"")
    knowledge = await knowledge_of(Server())
    knowledge.local_files = False
    assert complete_with(knowledge, f"blockdev-add driver=file filename={tmp_path}/") == []


async def test_the_asynchronous_way_offers_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"")
    completer = ReplCompleter(await knowledge_of(Server()))
    for text in (f"blockdev-add driver=file filename={tmp_path}/", "block-stream device="):
        document = Document(text, len(text))
        at_once = list(completer.get_completions(document, CompleteEvent()))
        later = [c async for c in completer.get_completions_async(document, CompleteEvent())]
        assert at_once == later
        assert at_once


async def test_ten_thousand_nodes_cost_no_keystroke_ten_milliseconds() -> None:
    chain = [(f"node{number:05d}", "qcow2", f"/img/{number}.qcow2") for number in range(10_000)]
    jobs = [{"id": f"job{number}", "type": "mirror", "status": "running"} for number in range(1000)]
    knowledge = await knowledge_of(Server({"x-blockmon-query-graph": graph_reply(chain), "query-jobs": jobs}))
    lexer = PromptInputLexer(lambda: knowledge.schema.commands)
    line = "block-stream device=node00000 base-node="
    best = {}
    for text in (
        line,
        line + "n",
        line + "node012",
        line + "de012",
        line + "nd99",
        "blockdev-del node-name=",
        "blockdev-del node-name=nxyz",
        "block-commit device=node00000 top=/img/99",
        "job-cancel id=job9",
        "block_resize ",
        '{"execute": "block-stream", "arguments": {"device": "',
    ):
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            found = complete_with(knowledge, text)
            hint_for(text, len(text), knowledge, 80)
            lexer.lex_document(Document(text))
            runs.append(time.perf_counter() - start)
        assert len(found) <= MOST
        assert found or "xyz" in text
        best[text] = min(runs)
    assert max(best.values()) < 0.010, best

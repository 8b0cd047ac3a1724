"""The same bad input given to qemu-storage-daemon 7.2 and to our checks brings the same words."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import GenericError
from engine.qapi import introspect, keyval, opts
from engine.qapi.json_stream import JSONParseError, JSONStream, dumps
from tests.engine.qapi import sample
from tests.engine.qapi.schema_compare import daemon_schema, differences
from tests.engine.qapi.test_json_stream import PIECES
from tests.qemu import StorageDaemon, storage_daemon

pytestmark = pytest.mark.interop

RAW = {"driver": "raw"}
NBD = {"driver": "nbd", "server": {"type": "inet", "host": "h", "port": "1"}}
MERGE = {"node": "n", "target": "t"}
QUORUM = {"driver": "quorum", "vote-threshold": 1}


def bitmap(**data: Any) -> dict[str, Any]:
    return {"actions": [{"type": "abort", "data": {}}, {"type": "block-dirty-bitmap-add", "data": data}]}


BAD_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("block_resize", arguments)
        for arguments in (
            {},
            {"node-name": "x"},
            {"size": "1"},
            {"size": 1.0},
            {"size": 1.5},
            {"size": 1 << 63},
            {"size": 1 << 64},
            {"size": -(1 << 63) - 1},
            {"size": None},
            {"size": True},
            {"size": [1]},
            {"size": {}},
            {"size": 1, "node-name": None},
            {"size": 1, "node-name": 1},
            {"size": 1, "node_name": "x"},
            {"size": 1, "foo": 1},
            {"size": "1", "foo": 1},
            {"device": 1, "size": "1"},
        )
    ),
    *(
        ("blockdev-add", arguments)
        for arguments in (
            {},
            {"x": 3},
            {"driver": "nope"},
            {"driver": 3},
            {"driver": None},
            {"driver": "null-co", "x": 3},
            {"driver": "null-co", "discard": "zz", "x": 3},
            {"driver": "null-co", "size": 1 << 63},
            {"driver": "null-co", "read-zeroes": 1},
            {"driver": "null-co", "read-zeroes": "on"},
            {"driver": "null-co", "latency-ns": 1 << 64},
            {"driver": "null-co", "latency-ns": "1"},
            {"driver": "null-co", "latency-ns": -(1 << 63) - 1},
            {"driver": "null-co", "cache": {"direct": "on"}},
            {"driver": "null-co", "cache": 3},
            {"driver": "null-co", "cache": {"x": 3}},
            RAW,
            {**RAW, "file": {}},
            {**RAW, "file": 3},
            {**RAW, "file": None},
            {**RAW, "file": []},
            {**RAW, "file": {"driver": "raw", "file": {"driver": "bad"}}},
            {**RAW, "file": {"driver": "raw", "file": 3}},
            {**RAW, "file": {"driver": "raw", "file": {"driver": "file"}}},
            {**RAW, "file": {"driver": "raw", "file": {"driver": "file", "filename": "x", "zz": 1}}},
            {**RAW, "file": {"driver": "raw", "file": {"driver": "file", "filename": 3}}},
            {**RAW, "file": {"driver": "file", "filename": "x", "locking": "yes"}},
            {"driver": "qcow2", "file": "x", "backing": 3},
            {"driver": "qcow2", "file": "x", "backing": []},
            {"driver": "qcow2", "file": "x", "overlap-check": "zz"},
            {"driver": "qcow2", "file": "x", "overlap-check": 1},
            {"driver": "qcow2", "file": "x", "overlap-check": {"template": "zz"}},
            {"driver": "qcow2", "file": "x", "overlap-check": {"main-header": 1}},
            {"driver": "qcow2", "file": "x", "overlap-check": {"main_header": True}},
            {"driver": "qcow2", "file": "x", "cache-size": -1.0},
            {**NBD, "server": 3},
            {**NBD, "server": {}},
            {**NBD, "server": {"type": "zz"}},
            {**NBD, "server": {"type": "inet", "host": "x"}},
            {**NBD, "server": {"type": "inet", "host": "x", "port": 3}},
            {**NBD, "server": {"type": "inet", "host": "x", "port": "3", "to": 70000}},
            {**NBD, "server": {"type": "inet", "host": "x", "port": "3", "to": "1"}},
            {**NBD, "reconnect-delay": 1 << 32},
            {**NBD, "reconnect-delay": -1},
            {**NBD, "reconnect-delay": "1"},
            {**NBD, "reconnect-delay": 1 << 64},
            {**QUORUM, "children": 3},
            {**QUORUM, "children": {}},
            {**QUORUM, "children": [3]},
            {**QUORUM, "children": [{}]},
            {**QUORUM, "children": [{"driver": "zz", "x": 1}]},
            {**QUORUM, "children": [{"driver": "null-co", "x": 1}]},
            {**QUORUM, "children": [{"driver": "null-co", "latency-ns": "1"}]},
            {**QUORUM, "children": ["a", {"driver": "raw", "file": 4}]},
            {**QUORUM, "children": ["a", {**QUORUM, "children": ["b", {"driver": "raw"}]}]},
        )
    ),
    *(
        ("transaction", arguments)
        for arguments in (
            {},
            {"actions": 3},
            {"actions": [3]},
            {"actions": [{}]},
            {"actions": [{"type": "zz", "data": {"x": 1}}]},
            {"actions": [{"type": "abort"}]},
            {"actions": [{"type": "abort", "data": 3}]},
            {"actions": [{"type": "abort", "data": {"x": 1}}]},
            {"actions": [{"type": "abort", "data": {}, "x": 1}]},
            bitmap(name="a"),
            bitmap(node="x", name=3),
            bitmap(node="x", name="3", granularity=1 << 32),
            bitmap(node="x", name="3", granularity="x"),
            {"actions": [], "properties": {"completion-mode": "x"}},
            {"actions": [], "properties": "x"},
        )
    ),
    *(
        ("block-dirty-bitmap-merge", {**MERGE, "bitmaps": bitmaps})
        for bitmaps in (
            [3],
            [None],
            ["a", {"node": "x"}],
            ["a", {"node": "x", "name": 1}],
            ["a", {"node": "x", "name": "1", "z": 1}],
        )
    ),
    ("blockdev-create", {"job-id": "x", "options": []}),
    ("blockdev-create", {"job-id": "x", "options": {"driver": "quorum", "size": 1}}),
    ("blockdev-create", {"job-id": "x", "options": {"driver": "file"}}),
    ("blockdev-create", {"job-id": "x", "options": {"driver": "qcow2", "file": "x", "size": "1"}}),
    ("blockdev-create", {"job-id": "x", "options": {"driver": "qcow2", "file": "x", "size": 1.5}}),
    ("blockdev-create", {"job-id": "x", "options": {"driver": "qcow2", "file": {"driver": "raw"}, "size": 1}}),
    ("block-stream", {"on-error": "zz"}),
    ("block-stream", {"x": 1}),
    ("block-stream", {"device": "x", "on-error": "zz"}),
    ("block-stream", {"device": "x", "on-error": 1}),
    ("block-stream", {"device": "x", "speed": "1M"}),
    ("block-stream", {"device": "x", "auto-dismiss": "off"}),
    ("nbd-server-start", {}),
    ("nbd-server-start", {"addr": {"type": "unix"}}),
    ("nbd-server-start", {"addr": {"type": "unix", "path": "x"}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": 3}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "x"}}, "max-connections": -1}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "x"}}, "max-connections": 1.5}),
    ("query-version", {"x": 1}),
    ("nope", {"x": 1}),
    ('Ünknown\u0000 "x"', {}),
]


@pytest.fixture(scope="module")
def daemon(qsd: str) -> Iterator[StorageDaemon]:
    with storage_daemon(qsd) as running:
        yield running


@pytest.mark.parametrize(("command", "arguments"), BAD_ARGUMENTS, ids=lambda value: json.dumps(value))
def test_bad_arguments(daemon: StorageDaemon, command: str, arguments: dict[str, Any]) -> None:
    real = daemon.ask(command, arguments)["error"]
    with pytest.raises(GenericError if real["class"] == "GenericError" else Exception) as caught:
        sample.registry.dispatch(None, command, arguments)
    assert {"class": caught.value.error_class, "desc": caught.value.desc} == real  # type: ignore[attr-defined]


def test_negative_sizes_get_through_to_the_job(daemon: StorageDaemon) -> None:
    arguments = {"job-id": "x", "options": {"driver": "qcow2", "file": "x", "size": -1}}
    assert daemon.ask("blockdev-create", arguments) == {
        "return": sample.registry.dispatch(None, "blockdev-create", arguments)
    }


def test_bad_capabilities(qsd: str) -> None:
    with storage_daemon(qsd) as fresh:
        for enable in ([1], "oob"):
            real = fresh.ask("qmp_capabilities", {"enable": enable})["error"]["desc"]
            with pytest.raises(GenericError) as caught:
                sample.registry.dispatch(None, "qmp_capabilities", {"enable": enable})
            assert caught.value.desc == real


# --- option strings --------------------------------------------------------------------------------------------------

LONG = "b" * 128
BAD_OPTIONS = [
    "driver=raw,file",
    "driver",
    "driver=",
    "=x",
    ",",
    "x.y,z=1",
    "nodriver=x",
    "driver=null-co,size=1k",
    "driver=null-co,size=x",
    "driver=null-co,size=08",
    "driver=null-co,size=8 ",
    "driver=null-co,size=",
    "driver=null-co,size=9223372036854775808",
    "driver=null-co,latency-ns=x",
    "driver=null-co,latency-ns=18446744073709551616",
    "driver=null-co,read-zeroes=x",
    "driver=null-co,read-zeroes=ON",
    "driver=null-co,read-zeroes=",
    "driver=null-co,cache=on",
    "driver=null-co,cache.direct=x",
    "driver=null-co,cache.x=x",
    "driver=null-co,cache.direct.x=x",
    "driver=null-co,node-name.x=a",
    "driver.x=null-co",
    "driver=null-co,size.0=x",
    "driver=null-co,size.0=x,size=3",
    "driver=null-co,size=3,size.0=3",
    "driver=null-co,0=4",
    "driver=null-co,.x=4",
    "driver=null-co,x.=4",
    "driver=null-co,x..y=4",
    "driver=null-co,x!=4",
    "driver=null-co,__org.x_y=4",
    "driver=null-co,_x=4",
    "driver=null-co,x.1y=4",
    "driver=null-co,é=1",
    f"driver=null-co,{LONG}=1",
    f"driver=null-co,a.{LONG}=1",
    "driver=quorum,vote-threshold=1,children.0=x,children.2=y",
    "driver=quorum,vote-threshold=1,children.0=x,children.a=y",
    "driver=quorum,vote-threshold=1,children.0=x,children.99999999999999999999=y",
    "driver=quorum,vote-threshold=1,children.0.driver=nope",
    "driver=quorum,vote-threshold=1,children.0.driver=null-co,children.0.size=x",
    "driver=quorum,vote-threshold=1,children.0.driver=null-co,children.0.zz=x",
    "driver=quorum,vote-threshold=1,children.0.driver=raw",
    "driver=quorum,vote-threshold=1,children=x",
    "driver=quorum,vote-threshold=1,children.0.0=x",
    "driver=quorum,vote-threshold=1,children.0.0.0=x,children.0.x=3",
    "driver=quorum,vote-threshold=1,children.0.file.0=x,children.0.file.2=3",
    "driver=raw,file.driver=raw,file.file.driver=file",
    "driver=raw,node-name=a,,file=x",
    "driver=nbd,server.type=inet,server.host=x,server.port=1,reconnect-delay=-1",
    "driver=nbd,server.type=inet,server.host=x,server.port=1,reconnect-delay=x",
    "driver=nbd,server.type=inet,server.host=x,server.port=1,server.to=70000",
    "driver=nbd,server=x",
    "driver=nbd,server.0=x",
    "driver=qcow2,file.driver=null-co,overlap-check=zz",
    "driver=qcow2,file.driver=null-co,overlap-check.template=zz",
    "driver=qcow2,file.driver=null-co,file=x",
    "driver=null-co,help",
    "help",
    "?",
    "",
    "{",
    "{}",
    '{"driver":"null-co","size":"1"}',
    '{"driver":"null-co"} x',
    '{"driver":"null-co"} {}',
    '{"driver":"null-co",}',
    '{"driver":"null-co',
    "{'driver':'null-co','cache':{'x':1}}",
    "{} x",
    "nope",
    "[1]",
]


def test_bad_option_strings(qsd: str) -> None:
    wrong = {}
    for text in BAD_OPTIONS:
        done = subprocess.run([qsd, "--blockdev", text], capture_output=True, text=True, check=False, timeout=30)
        real = done.stderr.split(f"--blockdev {text}: ", 1)[1].splitlines()[0]
        with pytest.raises(GenericError) as caught:
            keyval.from_option(sample.Options, text, "driver")
        if caught.value.desc != real:
            wrong[text] = caught.value.desc, real
    assert not wrong


def test_sizes(qemu_img: str, tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [
        "1",
        "1.",
        "1.00",
        ".5M",
        "1e3",
        "1k ",
        "+1k",
        "-1",
        "",
        "x",
        "16E",
        "0x5Ek",
        "010",
        "1.9999k",
        "0x",
        "0x1.",
    ]
    texts += [
        rng.choice(["", "", "0x", "+", " ", "0"])
        + str(rng.choice([1, 7, 42, rng.randrange(1 << 20)]))
        + rng.choice(["", "", ".", f".{rng.randrange(10**6)}", ".0", "e2", ".5e1"])
        + rng.choice(["", "b", "k", "K", "M", "G", "T", "kB", "i"])
        for _ in range(60)
    ]
    wrong = {}
    for text in texts:
        command = [qemu_img, "create", "-f", "raw", "-o", f"size={text}", str(tmp_path / "x")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        said = re.search(r" size=(-?[0-9]+)", done.stdout)
        real: Any = int(said[1]) if said else done.stderr.splitlines()[0].split(": ", 2)[2]
        try:
            ours: Any = opts.option_size("size", text)
        except GenericError as exc:
            ours = exc.desc
        if ours != real:
            wrong[text] = ours, real
    assert not wrong


def test_json_file_names(qemu_img: str) -> None:
    wrong = {}
    for text in (
        "json:",
        "json: ",
        "json:{",
        "json:[]",
        "json:1",
        "json:{} {}",
        'json:{"a":}',
        'json:{"driver":"nbd","server.0":"inet","server.x":{"host":"x"}}',
        'json:{"driver":"nbd","server.0":3,"server.2":4}',
    ):
        done = subprocess.run([qemu_img, "info", text], capture_output=True, text=True, check=False, timeout=30)
        real = done.stderr.split(f"Could not open '{text}': ", 1)[1].splitlines()[0]
        with pytest.raises(GenericError) as caught:
            keyval.crumple(keyval.flatten(keyval.parse_json_filename(text)))
        if caught.value.desc != real:
            wrong[text] = caught.value.desc, real
    assert not wrong


# --- JSON ------------------------------------------------------------------------------------------------------------


def talk(qsd: str, messages: list[bytes]) -> list[list[Any]]:
    """Send each message by itself to a monitor; return for each the objects that came back."""
    begin_anew = b'\xff\n{"execute": "qmp_capabilities", "id": "done"}\n'
    data = begin_anew + b"".join(message + begin_anew for message in messages) + b'{"execute": "quit"}\n'
    command = [qsd, "--chardev", "stdio,id=m", "--monitor", "chardev=m,mode=control"]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=60)
    answers: list[list[Any]] = [[]]
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        if answer.get("id") == "done":
            answers.append([])
        else:
            answers[-1].append(answer)
    return answers[1:-1]


def normal(desc: str) -> str:
    """How many replacement characters stand for a run of bad bytes is nobody's concern."""
    return re.sub("[\ufffd\uffff\ufdd0]+", "\ufffd", desc)


def test_what_the_parser_makes_of_any_bytes(qsd: str) -> None:
    rng = random.Random(7)
    messages = [b"".join(rng.choices(PIECES, k=rng.randrange(1, 25))) for _ in range(2500)]
    messages += [bytes(rng.choices(range(256), k=rng.randrange(1, 30))) for _ in range(500)]
    messages += [b"[" * 1025 + b"]", b"[" * 1024 + b"]" * 1024, b'{"a":' * 1025 + b"1}"]
    wrong = {}
    for message, answers in zip(messages, talk(qsd, messages), strict=True):
        real = [normal(answer["error"]["desc"]) for answer in answers]
        ours = [
            normal(item.desc)
            if isinstance(item, JSONParseError)
            else "QMP input lacks member 'execute'"
            if item == {}
            else "QMP input member 'a' is unexpected"
            if isinstance(item, dict)
            else "QMP input must be a JSON object"
            for item in JSONStream().feed(message + b"\xff\n")
        ]
        # Which of several unexpected members is told of depends on a hash in QEMU.
        real = [re.sub(r"member '.*' is unexpected", "member 'a' is unexpected", desc) for desc in real]
        if ours != real:
            wrong[message] = ours, real
    assert not wrong


def test_what_is_written(qsd: str) -> None:
    values: list[Any] = [
        None,
        '\x7f\x80é\U0001f600\0\b\f\n\r\t/\\"<>&\x1f\u2028',
        [1.0, 0.1, 1e20, 5e-324, 1.5e300, 1e-5, 1e15, 1e17, 123456789.123],
        [(1 << 64) - 1, -(1 << 63), 0, -0],
        {"a": [], "b": {}, "c": [[], [1, 2]], "d": True},
    ]
    command = [qsd, "--chardev", "stdio,id=m", "--monitor", "chardev=m,mode=control,pretty="]
    for pretty in ("off", "on"):
        for value in values:
            sent = f'{{"execute": "qmp_capabilities", "id": {json.dumps(value)}}}\n{{"execute": "quit"}}\n'
            args = [*command[:-1], command[-1] + pretty]
            done = subprocess.run(args, input=sent.encode(), capture_output=True, check=True, timeout=30)
            # Members come in the order of a hash there.
            decoder = json.JSONDecoder()
            text = done.stdout.decode().replace("\r\n", "\n")
            _, at = decoder.raw_decode(text)
            reply, end = decoder.raw_decode(text[at:].lstrip())
            real = text[at:].lstrip()[:end]
            assert dumps(reply, pretty=pretty == "on") == real


# --- introspection ---------------------------------------------------------------------------------------------------


def test_introspection(qsd: str) -> None:
    """What the sample declares in full is, member by member, what the daemon tells of it."""
    found = differences(introspect(sample.registry), daemon_schema())
    lacking = {name: [line for line in lines if " lacks " not in line] for name, lines in found.items()}
    # The sample's own query has no real result type, its unions lack most of the branches.
    lacking.pop("query-block-jobs")
    assert {name: lines for name, lines in lacking.items() if lines} == {}
    for whole in ("block_resize", "block-stream", "block-dirty-bitmap-merge", "query-version", "BLOCK_WRITE_THRESHOLD"):
        assert whole not in found


def test_the_format_of_introspection(qsd: str) -> None:
    """Every kind of entry has the members that the daemon's entries of the kind have."""

    def shapes(schema: list[dict[str, Any]]) -> dict[str, set[frozenset[str]]]:
        result: dict[str, set[frozenset[str]]] = {}
        for info in schema:
            result.setdefault(info["meta-type"], set()).add(frozenset(info) - {"features", "allow-oob"})
        return result

    real, ours = shapes(daemon_schema()), shapes(introspect(sample.registry))
    assert ours == real

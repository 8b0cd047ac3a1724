"""Objects, beside qemu-storage-daemon and the emulator 7.2: answers and errors must be the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.objects.certificates import PASSWORD, write_folders
from tests.interop.differential import SYSTEM_EMULATOR, Do, Step, assert_same

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
IV = "MDEyMzQ1Njc4OWFiY2RlZg=="


def error(text: str, cls: str = "GenericError") -> dict[str, Any]:
    return {"error": {"class": cls, "desc": text}}


def add(qom_type: Any, id: Any, /, ours: Any = None, **options: Any) -> Do:
    wire = {key.replace("_", "-"): value for key, value in options.items()}
    return Do("object-add", {"qom-type": qom_type, "id": id, **wire}, ours)


def delete(id: Any, ours: Any = None) -> Do:
    return Do("object-del", {"id": id}, ours)


def get(path: str, *properties: str) -> list[Step]:
    return [Do("qom-get", {"path": path, "property": name}) for name in properties]


def put(path: str, name: str, value: Any, ours: Any = None) -> Do:
    return Do("qom-set", {"path": path, "property": name, "value": value}, ours)


def listed(path: Any, ours: Any = None) -> Do:
    return Do("qom-list", {"path": path}, ours)


def group(id: str, **limits: int) -> Do:
    return add("throttle-group", id, limits={key.replace("_", "-"): value for key, value in limits.items()})


def refused_limits(**limits: int) -> list[Step]:
    """The same limits given to a new group, to one there is, and one by one."""
    single = {f"x-{key}": value for key, value in limits.items()}
    wire = {key.replace("_", "-"): value for key, value in limits.items()}
    return [group("new", **limits), group("old"), put("old", "limits", wire), add("throttle-group", "x", **single)]


TALKS: dict[str, Sequence[Step]] = {
    "ids": [
        *(add("throttle-group", id) for id in ("g", "g", "", "0g", "g/", "a" * 80, "objects", 3, None)),
        delete("objects"),
        delete("nope"),
        delete("/objects/g"),
        delete(3),
        delete("g"),
        delete("g"),
        Do("object-del"),
    ],
    "arguments": [
        Do("object-add"),
        Do("object-add", {"id": "x"}),
        Do("object-add", {"qom-type": "iothread"}),
        add("nope", "x"),
        add(4, "x"),
        add("secret", "s", data="x", foo=1),
        add("secret", "s", data=1),
        add("secret", "s", data="x", format="hex"),
        add("iothread", "i", poll_max_ns="1"),
        add("authz-list", "l", rules={}),
        add("authz-list", "l", rules=[{"match": "x"}]),
        add("authz-list", "l", rules=[{"match": "x", "policy": "y"}]),
    ],
    "a taken id comes before what the object says, behind what its options say": [
        add("secret", "s", data="x"),
        add("secret", "s"),
        add("secret", "s", data="x", loaded=True),
        add("iothread", "s", poll_max_ns=-1),
        group("s", iops_total=-1),
    ],
    "paths": [
        add("secret", "s", data="x"),
        *(listed(path) for path in ("s", "/objects/s", "objects/s", "/objects/s/", "//objects//s")),
        *(listed(path) for path in ("", "/s", "t", "s/data", "/objects/s/data", "type", "objects")),
        *get("/", "type", "objects", "nope"),
        *get("/objects", "type", "s", "nope"),
        *get("s", "type", "nope"),
        *get("", "type"),
        *get("nope", "type"),
        put("s", "type", "x"),
        put("/objects", "s", "x"),
        put("/objects", "t", "x"),
        put("nope", "data", "x"),
        Do("qom-get", {"path": "s"}),
        Do("qom-set", {"path": "s", "property": "data"}),
        listed(3),
        Do("qom-list"),
    ],
    "the root has objects once there was one": [
        # There are no character devices in the engine of the test.
        listed("/", {"return": [{"name": "type", "type": "string"}]}),
        listed("/objects"),
        add("secret", "s", data="x"),
        delete("s"),
        listed("/objects"),
    ],
    "types": [
        *(
            Do("qom-list-types", {"implements": name})
            for name in ("secret", "secret_common", "authz-simple", "throttle-group", "nope")
        ),
        Do("qom-list-types", {"implements": "iothread", "abstract": True}),
        *(
            Do("qom-list-properties", {"typename": name})
            for name in (
                *("throttle-group", "iothread", "secret", "secret_keyring", "tls-creds-x509", "tls-creds-psk"),
                *("tls-creds-anon", "authz-simple", "authz-list", "authz-list-file", "authz-listfile", "container"),
                *("object", "user-creatable", "tls-creds", "secret_common", "event-loop-base", "authz", "nope"),
            )
        ),
    ],
    "groups merge limits": [
        group("g", iops_total=10, iops_total_max=20, iops_total_max_length=3, iops_size=512),
        put("g", "limits", {"bps-total": 100}),
        *get("g", "limits", "x-iops-total", "x-bps-total", "x-iops-size"),
        put("g", "limits", {"bps-read": 100}),
        put("g", "limits", {"iops-total-max": 0}),
        put("g", "limits", {"iops-total": 0, "iops-total-max": 0, "iops-total-max-length": 1, "iops-size": 0}),
        *get("g", "limits"),
        put("g", "limits", {}),
        put("g", "limits", {"foo": 1}),
        put("g", "limits", {"bps-total": "1"}),
        *(put("g", "limits", value) for value in (3, None, [], "x")),
        put("g", "x-iops-total", 3),
        put("g", "x-iops-total", "x"),
    ],
    "groups from both kinds of options": [
        add("throttle-group", "a", x_iops_total=5, x_bps_read=7),
        add("throttle-group", "b", x_iops_total=5, x_bps_write=3, limits={"iops-total": 6}),
        add("throttle-group", "c", x_iops_total=-1),
        add("throttle-group", "d", x_iops_total=1, x_iops_total_max=5, x_iops_total_max_length=1 << 32),
        add("throttle-group", "e", x_iops_total=1, x_iops_size=-1),
        *get("a", "limits"),
        *get("b", "limits"),
    ],
    "limits: total and one way": refused_limits(bps_total=1, bps_read=1),
    "limits: bursts of total and one way": refused_limits(iops_total=1, iops_total_max=1, iops_write_max=1),
    "limits: size without requests": refused_limits(iops_size=512, bps_total=1),
    "limits: too much": refused_limits(bps_read=10**15 + 1),
    "limits: less than nothing": refused_limits(bps_read=-1),
    "limits: no length": refused_limits(bps_read=1, bps_read_max=2, bps_read_max_length=0),
    "limits: length without burst": refused_limits(bps_read=1, bps_read_max_length=2),
    "limits: length too high": refused_limits(bps_read=1, bps_read_max=10**9, bps_read_max_length=10**6 + 1),
    "limits: length of more than 32 bits": refused_limits(bps_read=1, bps_read_max=2, bps_read_max_length=1 << 32),
    "limits: length below nothing": refused_limits(bps_read=1, bps_read_max=2, bps_read_max_length=-1),
    "limits: burst without rate": refused_limits(iops_write_max=1),
    "limits: burst below rate": refused_limits(iops_write=2, iops_write_max=1),
    "limits: the size of a request may be anything": [group("g", iops_total=1, iops_size=-10), *get("g", "limits")],
    "iothreads": [
        add("iothread", "i"),
        add("iothread", "j", poll_max_ns=5, aio_max_batch=3, thread_pool_min=2, thread_pool_max=8),
        *get("i", "poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min", "thread-pool-max"),
        *get("j", "poll-max-ns", "aio-max-batch", "thread-pool-min", "thread-pool-max"),
        *(
            add("iothread", "k", **{name: -5})
            for name in ("poll_max_ns", "poll_grow", "aio_max_batch", "thread_pool_min", "thread_pool_max")
        ),
        add("iothread", "k", thread_pool_max=0),
        add("iothread", "k", thread_pool_min=65),
        add("iothread", "k", thread_pool_min=6, thread_pool_max=5),
        put("i", "poll-max-ns", 7),
        put("i", "poll-max-ns", -7),
        put("i", "poll-max-ns", "7"),
        put("i", "thread-pool-max", 3),
        put("i", "thread-pool-min", 100),
        # QEMU says no and keeps the bad value; here a value that is refused is not there.
        Do("qom-get", {"path": "i", "property": "thread-pool-min"}, {"return": 0}),
        delete("i"),
        delete("j"),
    ],
    "secrets": [
        add("secret", "s"),
        add("secret", "s", data="a", file="/x"),
        add("secret", "s", file="$DIR/nope"),
        add("secret", "s", file="$DIR"),
        add("secret", "s", data="a", loaded=False),
        add("secret", "s", data="!!!", format="base64"),
        add("secret", "s", data="YWJj ZGVm", format="base64"),
        add("secret", "s", data="YWJj\nZGVm", format="base64"),
        add("secret", "t", data="a", iv="x"),
        *get("s", "data", "file", "format", "loaded", "keyid", "iv"),
        put("s", "data", "b"),
        put("s", "data", 3),
        put("s", "format", "hex"),
        put("s", "format", "raw"),
        put("s", "loaded", True),
        *get("s", "data", "format", "loaded"),
        delete("s"),
    ],
    "secrets that open secrets": [
        add("secret", "short", data="abc"),
        add("secret", "key", data=KEY, format="base64"),
        add("iothread", "i"),
        *(add("secret", "s", data="YWJj", keyid=id) for id in ("nope", "i", "short", "key")),
        add("secret", "s", data="YWJj", keyid="key", iv="YWJj"),
        add("secret", "s", data="YWJj", keyid="key", iv="?"),
        add("secret", "s", data="YWJj", keyid="key", iv=IV),
        add("secret", "s", data="YWJj", keyid="key", iv=IV, format="base64"),
        add("secret", "s", data="!", keyid="key", iv=IV, format="base64"),
        add("secret", "s", data=IV, keyid="key", iv=IV, format="base64"),
        # "letmein", encrypted.
        add("secret", "s", data="NfyvaqwULsrZa4+h0NmvSw==", keyid="key", iv=IV, format="base64"),
        delete("key"),
    ],
    "keys of the kernel that are not there": [
        add("secret_keyring", "k", serial=1),
        add("secret_keyring", "k", serial=-1),
        add("secret_keyring", "k", serial=1 << 32),
        Do("object-add", {"qom-type": "secret_keyring", "id": "k"}),
    ],
    "authorisation": [
        add("authz-simple", "a", identity="fred"),
        add("authz-simple", "b"),
        *get("a", "identity"),
        put("a", "identity", "bob"),
        *get("a", "identity"),
        add("authz-list", "l"),
        *get("l", "policy", "rules"),
        add(
            "authz-list",
            "n",
            policy="allow",
            rules=[
                {"match": "fred", "policy": "deny"},
                {"match": "*x", "policy": "allow", "format": "glob"},
            ],
        ),
        *get("n", "policy", "rules"),
        put("n", "rules", [{"match": "fred", "policy": "perhaps"}]),
        put("n", "rules", [{"match": "fred", "policy": "allow"}]),
        put("n", "policy", "perhaps"),
        *get("n", "policy", "rules"),
        delete("a"),
        # The real one knows the options, but not the type, which has another name in it. Here it works, as later.
        add("authz-listfile", "f", filename="$DIR/rules.json", ours={"return": {}}),
        Do("object-add", {"qom-type": "authz-listfile", "id": "g"}),
        Do("object-add", {"qom-type": "authz-pam", "id": "g"}),
    ],
    "anonymous TLS": [
        add("tls-creds-anon", "t"),
        add("tls-creds-anon", "u", endpoint="server", priority="bogus!"),
        add("tls-creds-anon", "v", endpoint="client", dir="/nope", verify_peer=False),
        add("tls-creds-anon", "w", endpoint="peer"),
        *get("t", "endpoint", "dir", "verify-peer", "priority", "loaded"),
        *get("v", "endpoint", "dir", "verify-peer"),
        # One that changed sides is not deleted: that is the end of the real one.
        put("t", "endpoint", "server"),
        put("t", "endpoint", "peer"),
        put("t", "loaded", False),
        *get("t", "endpoint"),
        add("tls-creds-anon", "x", loaded=True),
        delete("u"),
    ],
}


def files(where: Path) -> None:
    (where / "rules.json").write_text('{"policy": "allow"}')


@pytest.mark.parametrize("name", TALKS)
def test_same_answers(name: str, qsd: str, tmp_path: Path) -> None:
    assert_same(TALKS[name], tmp_path, prepare=files)


@pytest.mark.parametrize(
    "keys",
    [
        *("", "qemu:00112233", "qemu:00112233\r\nfred:4455", "qemu:0011", "qemu:00112", "qemu:xx", "qemu:", "qemu"),
        *("fred:00112233\n", "#x:1\nqemu:00112233\nfred:00112233\n"),
    ],
)
def test_keys_known_beforehand(keys: str, qsd: str, tmp_path: Path) -> None:
    talk = [
        *(add("tls-creds-psk", f"{side}0", endpoint=side, dir="$DIR") for side in ("server", "client")),
        add("tls-creds-psk", "fred", endpoint="client", dir="$DIR", username="fred"),
        add("tls-creds-psk", "wrong", endpoint="server", dir="$DIR", username="fred"),
        *(add("tls-creds-psk", f"{side}1", endpoint=side, dir="$DIR/nope") for side in ("server", "client")),
        add("tls-creds-psk", "nowhere", endpoint="server"),
        *get("fred", "username"),
    ]
    assert_same(talk, tmp_path, prepare=lambda where: (where / "keys.psk").write_text(keys))


def test_certificates(qsd: str, tmp_path: Path) -> None:
    """Every way in which files can be wrong, for both sides, checked and not."""
    certificates = tmp_path / "certificates"
    write_folders(certificates)
    cases = sorted(os.listdir(certificates))
    talk: list[Step] = [add("secret", "pw", data=PASSWORD), add("secret", "bad", data="guess")]
    for number, case in enumerate((*cases, "nope")):
        for side in ("server", "client"):
            options = {"endpoint": side, "dir": f"$DIR/tls/{case}"}
            talk.append(add("tls-creds-x509", f"{side}{number}", **options))
            talk.append(add("tls-creds-x509", f"{side}{number}x", **options, sanity_check=False))
            if case == "locked-key":
                for password in ("pw", "bad", "nope", "server0"):
                    talk.append(add("tls-creds-x509", f"{side}-{password}", **options, passwordid=password))
    talk.append(add("tls-creds-anon", "dh", endpoint="server", dir="$DIR/tls/junk-dh"))
    talk.append(add("tls-creds-x509", "nowhere"))
    talk += get("server-pw", "sanity-check", "passwordid", "endpoint", "verify-peer", "loaded")
    transcript = assert_same(talk, tmp_path, prepare=lambda where: (where / "tls").symlink_to(certificates))
    made = sum("return" in reply for reply in transcript.replies)
    assert made > 40
    assert len(talk) - made > 40


def hmp(*lines: str) -> list[Step]:
    return [Do("human-monitor-command", {"command-line": line}) for line in lines]


HMP_TALKS: dict[str, Sequence[Step]] = {
    "help": hmp(*(f"help {name}" for name in ("object_add", "object_del", "qom-list", "qom-get", "qom-set"))),
    "more help": hmp("help info iothreads", "object_add throttle-group,help", "object_add secret,?")
    + hmp(*(f"object_add {name},help" for name in ("iothread", "tls-creds-x509", "tls-creds-psk", "authz-list-file"))),
    "object_add": hmp(
        "object_add throttle-group,id=a,limits.iops-total=10",
        "object_add qom-type=throttle-group,id=b",
        'object_add {"qom-type": "throttle-group", "id": "c"}',
        'object_add {"qom-type": "throttle-group", "id": "c"',
        *(f"object_add {text}" for text in ("throttle-group,id=a", "throttle-group", "nope,id=x", "id=x", "")),
        *("object_add iothread,id=9", "object_add iothread,id=i,poll-max-ns=1k", "object_add secret,id=s,data=a,,b"),
        *("object_add throttle-group,id=d,foo=1", "object_add secret,id=t,data=x,format=hex"),
        "object_add authz-list,id=l,rules.0.match=fred,rules.0.policy=allow",
        "object_add tls-creds-x509,id=x",
        *("qom-get a limits", "qom-get s data", "qom-get /objects/l rules", "qom-get a type", "qom-get a nope"),
        *("qom-get a", "qom-get nope type", "object_del a", "object_del a", "object_del", "object_del a b"),
    ),
    "the tree": hmp(
        *("object_add iothread,id=z", "object_add secret,id=b,data=x", "object_add secret,id=a,data=x"),
        *(f"info qom-tree {path}" for path in ("/objects", "objects", "z", "/objects/", "/objects/z", "nope")),
        "help info qom-tree",
    ),
    "qom": hmp(
        *("qom-list", "qom-list nope", "object_add iothread,id=i", "object_add secret,id=s,data=x", "qom-list i"),
        *("qom-set i poll-max-ns 33", "qom-set i poll-max-ns 3k", "qom-set i poll-max-ns", "qom-get i poll-max-ns"),
        *("qom-set -j i poll-max-ns 0x10", "qom-set -j i poll-max-ns 44", "qom-set -j i poll-max-ns {", "qom-list s"),
        *("qom-set i nope 3", "qom-set nope x 3", "qom-set s data a b", "qom-get s data", 'qom-set s data "a b"'),
        *("qom-get s data", "qom-set s format hex", "qom-set s loaded on", "qom-set -j s data 3"),
        *("object_add throttle-group,id=g", 'qom-set -j g limits {"iops-total": 5}', "qom-get g limits"),
    ),
}


@pytest.mark.parametrize("name", HMP_TALKS)
def test_same_text(name: str, qemu_system: str, tmp_path: Path) -> None:
    assert_same(HMP_TALKS[name], tmp_path, real=SYSTEM_EMULATOR)


def test_iothreads_of_the_emulator(qemu_system: str, tmp_path: Path) -> None:
    talk = [
        Do("query-iothreads"),
        add("iothread", "i", poll_max_ns=5, poll_grow=3, poll_shrink=2, aio_max_batch=4),
        Do("query-iothreads"),
    ]
    assert_same(talk, tmp_path, real=SYSTEM_EMULATOR, ignore={"thread-id"})


@pytest.mark.parametrize(
    "text",
    [
        *("throttle-group", "nope,id=x", "id=x", "", '{"qom-type": "iothread"', '{"id": "x"}', "secret,id=9s,data=x"),
        *("secret,id=s,loaded=x", "secret,id=s,data=x,format=hex", "throttle-group,id=g,limits.iops-total=x"),
        *("throttle-group,id=g,foo=1", "tls-creds-x509,id=t", "secret,id=s,data=a,loaded=on"),
    ],
)
def test_what_the_command_line_says(text: str, qsd: str) -> None:
    ours = subprocess.run(
        [sys.executable, "-m", "blockmon", "serve", "--object", text],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    real = subprocess.run([qsd, "--object", text], capture_output=True, text=True, check=False, timeout=60)
    assert ours.stderr.removeprefix("blockmon: ") == real.stderr.removeprefix("qemu-storage-daemon: ")
    assert (ours.returncode, real.returncode) == (1, 1)

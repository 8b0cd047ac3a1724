"""Backups and copy-before-write beside the real qemu-storage-daemon, and their results judged by qemu-img."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Call, Do, Json, Step, Until, WaitEvent, assert_same
from tests.interop.serving import BLOCKMON, human_monitor

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

SIZE = 4 << 20


def tool(where: Path, *words: str) -> str:
    return subprocess.run(words, check=True, cwd=where, capture_output=True, text=True, timeout=30).stdout


def prepare(where: Path) -> None:
    """base <- top with 1 MiB + 128 KiB of data and 64 KiB of zeros; an empty, a short and a raw target."""
    for words in (
        ("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", str(SIZE)),
        ("qemu-io", "-c", "write -P 1 0 1M", "base.qcow2"),
        ("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"),
        ("qemu-io", "-c", "write -P 2 2M 128k", "-c", "write -z 64k 64k", "top.qcow2"),
        ("qemu-img", "create", "-q", "-f", "qcow2", "target.qcow2", str(SIZE)),
        ("qemu-img", "create", "-q", "-f", "qcow2", "second.qcow2", str(SIZE)),
        ("qemu-img", "create", "-q", "-f", "qcow2", "short.qcow2", str(SIZE // 2)),
        ("qemu-img", "create", "-q", "-f", "raw", "target.raw", str(SIZE)),
        ("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "coarse.qcow2", str(SIZE)),
    ):
        tool(where, *words)


def qcow2(name: str, **options: Any) -> Do:
    """Open NAME.qcow2 as the node NAME."""
    file = {"driver": "file", "node-name": f"{name}-file", "filename": f"$DIR/{name}.qcow2"}
    return Do("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file} | wire(options))


def wire(options: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in options.items()}


OPEN: list[Step] = [qcow2("base", read_only=True), qcow2("top", backing="base"), qcow2("target")]


def data(**options: Any) -> dict[str, Any]:
    return {"job-id": "b", "device": "top", "target": "target", "sync": "full"} | wire(options)


def backup(**options: Any) -> Do:
    return Do("blockdev-backup", data(**options))


def drive(**options: Any) -> Do:
    return Do("drive-backup", data() | {"target": "$DIR/new.img"} | wire(options))


def status(value: str, job: str = "b") -> WaitEvent:
    return WaitEvent("JOB_STATUS_CHANGE", {"id": job, "status": value})


def bitmap(verb: str, name: str = "map", **options: Any) -> Do:
    return Do(f"block-dirty-bitmap-{verb}", {"node": "top", "name": name} | wire(options))


def closed(name: str = "target") -> Do:
    """Close a node, which writes all its metadata; until then what the file holds is nobody's business."""
    return Do("blockdev-del", {"node-name": name})


def same(one: str, other: str) -> Call:
    """Whether two images read alike."""

    def look(where: Path) -> Json:
        words = ["qemu-img", "compare", "-U", one, other]
        return subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=30).stdout

    return Call(look)


def layout(name: str) -> Call:
    """What is where in an image: zeros, data, depth. Where in the file is left out."""

    def look(where: Path) -> Json:
        runs: list[dict[str, Any]] = []
        for part in json.loads(tool(where, "qemu-img", "map", "-U", "--output=json", name)):
            kind = {key: part[key] for key in ("depth", "zero", "data")}
            if runs and runs[-1].items() >= kind.items():
                runs[-1]["length"] += part["length"]  # the order of clusters in the file is chance
            else:
                runs.append({"start": part["start"], "length": part["length"]} | kind)
        return runs

    return Call(look)


LOOK: list[Step] = [Do("query-jobs"), Do("query-block-jobs"), Do("x-debug-query-block-graph")]
NODES = Do("query-named-block-nodes", {"flat": True})
END: list[Step] = [status("null"), *LOOK]
MODES = ("on-success", "never", "always")


CONVERSATIONS: dict[str, list[Step]] = {
    "full": [backup(), *END, closed("target"), same("top.qcow2", "target.qcow2"), layout("target.qcow2")],
    "top": [backup(sync="top"), *END, closed("target"), layout("target.qcow2")],
    "full to raw": [
        Do("blockdev-add", {"driver": "file", "node-name": "raw", "filename": "$DIR/target.raw"}),
        backup(target="raw"),
        *END,
        same("top.qcow2", "target.raw"),
    ],
    "coarse target": [
        qcow2("coarse"),
        backup(target="coarse", sync="top"),
        *END,
        closed("coarse"),
        layout("coarse.qcow2"),
    ],
    "none, cancelled": [
        backup(sync="none"),
        *LOOK,
        NODES,
        Do("job-complete", {"id": "b"}),
        Do("block-job-complete", {"device": "b"}),
        Do("job-finalize", {"id": "b"}),
        Do("job-pause", {"id": "b"}),
        status("paused"),
        Do("query-block-jobs"),
        Do("block-job-cancel", {"device": "b"}),
        Do("job-resume", {"id": "b"}),
        Do("block-job-cancel", {"device": "b"}),
        *END,
        NODES,
    ],
    "none, cancelled by force while paused": [
        backup(sync="none", auto_dismiss=False),
        Do("job-pause", {"id": "b"}),
        status("paused"),
        Do("block-job-cancel", {"device": "b", "force": True}),
        status("concluded"),
        *LOOK,
        Do("job-dismiss", {"id": "b"}),
    ],
    "by hand": [
        backup(auto_finalize=False, auto_dismiss=False, filter_node_name="filter"),
        status("pending"),
        WaitEvent("BLOCK_JOB_PENDING"),
        *LOOK,
        Do("block-job-finalize", {"id": "b"}),
        status("concluded"),
        Do("query-jobs"),
        Do("query-block-jobs"),
        Do("job-dismiss", {"id": "b"}),
        *LOOK,
    ],
    "cancelled while pending": [
        backup(auto_finalize=False),
        status("pending"),
        Do("job-cancel", {"id": "b"}),
        *END,
    ],
    "slow, then fast": [
        backup(speed=65536),
        Do("block-job-set-speed", {"device": "b", "speed": -5}),
        Do("block-job-set-speed", {"device": "b", "speed": 0}),
        *END,
        closed("target"),
        same("top.qcow2", "target.qcow2"),
    ],
    "slow, cancelled": [
        backup(sync="bitmap", bitmap="map", bitmap_mode="on-success"),
        bitmap("add"),
        backup(speed=1, sync="none"),
        Do("job-cancel", {"id": "b"}),
        *END,
    ],
    "who may not": [
        backup(device="nope"),
        backup(target="nope"),
        backup(target="top"),
        backup(target="base"),
        backup(job_id="1"),
        Do("blockdev-backup", {"device": "top", "target": "target", "sync": "full"}),
        backup(sync="all"),
        Do("blockdev-backup", {"job-id": "b", "device": "top", "sync": "full"}),
        qcow2("short"),
        backup(target="short"),
        backup(speed=-1),
        backup(filter_node_name="base"),
        backup(filter_node_name="1x"),
        backup(on_source_error="never"),
        *LOOK,
    ],
    "x-perf": [
        backup(x_perf={"max-workers": 0}),
        backup(x_perf={"max-workers": 1 << 31}),
        backup(x_perf={"max-chunk": -1}),
        backup(x_perf={"max-chunk": 4096}),
        backup(x_perf={"nonsense": 1}),
        backup(x_perf={"max-chunk": 65536, "max-workers": 1, "use-copy-range": True}),
        *END,
        closed("target"),
        same("top.qcow2", "target.qcow2"),
    ],
    "compress": [
        Do("blockdev-add", {"driver": "raw", "node-name": "raw", "file": "target"}),
        backup(target="raw", compress=True),
        closed("raw"),
        backup(compress=True),
        *END,
        closed("target"),
        same("top.qcow2", "target.qcow2"),
        closed("target"),
        layout("target.qcow2"),
    ],
    "bitmap misuse": [
        bitmap("add"),
        bitmap("add", "asleep", disabled=True),
        backup(sync="bitmap"),
        backup(sync="incremental"),
        backup(sync="incremental", bitmap="map", bitmap_mode="always"),
        backup(sync="incremental", bitmap_mode="always"),
        backup(sync="bitmap", bitmap="nope", bitmap_mode="always"),
        backup(sync="bitmap", bitmap="map"),
        backup(sync="full", bitmap="map"),
        backup(sync="none", bitmap="map", bitmap_mode="always"),
        backup(sync="full", bitmap="map", bitmap_mode="never"),
        backup(sync="top", bitmap="map", bitmap_mode="never"),
        backup(bitmap_mode="never"),
        backup(sync="full", bitmap="map", bitmap_mode="sometimes"),
        NODES,
    ],
    "bitmap busy": [
        bitmap("add"),
        backup(sync="full", bitmap="map", bitmap_mode="on-success", auto_finalize=False),
        status("pending"),
        NODES,
        qcow2("second"),
        backup(job_id="c", target="second", sync="bitmap", bitmap="map", bitmap_mode="never"),
        bitmap("clear"),
        bitmap("remove"),
        bitmap("disable"),
        Do("job-finalize", {"id": "b"}),
        *END,
        Do("query-jobs"),
        bitmap("remove"),
    ],
    "bitmap of another size": [
        qcow2("short"),
        bitmap("add"),
        backup(target="short", sync="incremental", bitmap="map"),
        NODES,
        bitmap("remove"),
    ],
    **{
        f"bitmap {sync} {mode}": [
            bitmap("add", granularity=65536),
            backup(sync=sync, bitmap="map", bitmap_mode=mode),
            *END,
            NODES,
            closed("target"),
            layout("target.qcow2"),
        ]
        for sync in ("full", "top", "bitmap")
        for mode in MODES
        if (sync == "bitmap" or mode != "never")
    },
    **{
        f"bitmap {mode}, cancelled": [
            bitmap("add", granularity=65536),
            backup(sync="full", bitmap="map", bitmap_mode=mode, speed=1, auto_dismiss=False, auto_finalize=False),
            Until("query-jobs", lambda jobs: jobs[0]["current-progress"] == 65536),
            Do("job-cancel", {"id": "b"}),
            status("concluded"),
            NODES,
            Do("job-dismiss", {"id": "b"}),
        ]
        for mode in ("on-success", "always")
    },
    "two at a time": [
        qcow2("second"),
        backup(auto_finalize=False),
        status("pending"),
        backup(job_id="c", target="second", auto_finalize=False),
        status("pending", "c"),
        *LOOK,
        Do("job-finalize", {"id": "b"}),
        status("null"),
        *LOOK,
        Do("job-finalize", {"id": "c"}),
        status("null", "c"),
        *LOOK,
        closed("second"),
        same("top.qcow2", "second.qcow2"),
    ],
    "what a backup blocks": [
        backup(sync="none"),
        Do("blockdev-del", {"node-name": "top"}),
        Do("block_resize", {"node-name": "top", "size": SIZE * 2}),
        # There the text has "(null)" where the device's name belongs.
        Do(
            "block_resize",
            {"node-name": "target", "size": SIZE * 2},
            {"error": {"class": "GenericError", "desc": "Device 'target' is in use"}},
        ),
        qcow2("second"),
        backup(job_id="c", device="target", target="second"),
        backup(job_id="c", device="second"),
        Do("job-cancel", {"id": "b"}),
        *END,
        Do("blockdev-del", {"node-name": "target"}),
        Do("blockdev-del", {"node-name": "top"}),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation(tmp_path: Path, name: str) -> None:
    assert_same([*OPEN, *CONVERSATIONS[name]], tmp_path, prepare=prepare, ignore=("actual-size",))


SMALL = 1 << 20


def prepare_small(where: Path) -> None:
    """Disks of one chunk, that is one request, so that the numbers told in the middle of a job are certain."""
    prepare(where)
    for words in (
        ("qemu-img", "create", "-q", "-f", "raw", "small.raw", str(SMALL)),
        ("qemu-io", "-f", "raw", "-c", f"write -P 3 0 {SMALL}", "small.raw"),
        ("qemu-img", "create", "-q", "-f", "raw", "copy.raw", str(SMALL)),
    ):
        tool(where, *words)


def breaking(name: str, file: str, **rule: Any) -> Do:
    """A node with a fault: requests of one kind fail."""
    image = {"driver": "file", "filename": f"$DIR/{file}", "node-name": f"{name}-file"}
    fault = {"event": "none"} | rule
    return Do("blockdev-add", {"driver": "blkdebug", "node-name": name, "image": image, "inject-error": [fault]})


def whole(name: str, file: str) -> Do:
    return Do("blockdev-add", {"driver": "file", "node-name": name, "filename": f"$DIR/{file}"})


def small(**options: Any) -> Do:
    return backup(device="small", target="copy", **options)


FAULTS: dict[str, list[Step]] = {
    "source fails": [
        breaking("small", "small.raw", iotype="read", errno=5),
        whole("copy", "copy.raw"),
        small(auto_dismiss=False),
        status("concluded"),
        *LOOK,
        Do("job-dismiss", {"id": "b"}),
    ],
    "target fails": [
        breaking("copy", "copy.raw", iotype="write", errno=5),
        whole("small", "small.raw"),
        small(),
        *END,
    ],
    "source stops the job once": [
        breaking("small", "small.raw", iotype="read", errno=5, once=True),
        whole("copy", "copy.raw"),
        small(on_source_error="stop"),
        WaitEvent("BLOCK_JOB_ERROR"),
        Until("query-block-jobs", lambda jobs: jobs[0]["status"] == "paused"),
        Do("block-job-cancel", {"device": "b"}),
        Do("block-job-resume", {"device": "b"}),
        *END,
        same("small.raw", "copy.raw"),
    ],
    "no space stops the job": [
        breaking("copy", "copy.raw", iotype="write", errno=28, once=True),
        whole("small", "small.raw"),
        small(on_target_error="enospc"),
        WaitEvent("BLOCK_JOB_ERROR"),
        Until("query-block-jobs", lambda jobs: jobs[0]["status"] == "paused"),
        Do("job-resume", {"id": "b"}),
        *END,
        same("small.raw", "copy.raw"),
    ],
    "another error does not": [
        breaking("copy", "copy.raw", iotype="write", errno=5),
        whole("small", "small.raw"),
        small(on_target_error="enospc"),
        *END,
    ],
    "stopped and cancelled": [
        breaking("copy", "copy.raw", iotype="write", errno=5),
        whole("small", "small.raw"),
        small(on_target_error="stop"),
        WaitEvent("BLOCK_JOB_ERROR"),
        Until("query-block-jobs", lambda jobs: jobs[0]["status"] == "paused"),
        Do("block-job-cancel", {"device": "b", "force": True}),
        *END,
    ],
    "ignored once": [
        breaking("copy", "copy.raw", iotype="write", errno=5, once=True),
        whole("small", "small.raw"),
        small(on_target_error="ignore"),
        *END,
        same("small.raw", "copy.raw"),
    ],
    "bitmap of a failed job": [
        breaking("copy", "copy.raw", iotype="write", errno=5),
        whole("small", "small.raw"),
        Do("block-dirty-bitmap-add", {"node": "small", "name": "m", "granularity": 65536}),
        small(bitmap="m", bitmap_mode="always"),
        *END,
        NODES,
        small(bitmap="m", bitmap_mode="on-success"),
        status("null"),
        NODES,
        small(sync="bitmap", bitmap="m", bitmap_mode="never"),
        status("null"),
        NODES,
        small(sync="incremental", bitmap="m"),
        status("null"),
        NODES,
    ],
    "grouped, one fails": [
        qcow2("second"),
        breaking("copy", "copy.raw", iotype="write", errno=5),
        whole("small", "small.raw"),
        Do(
            "transaction",
            {
                "actions": [
                    {"type": "blockdev-backup", "data": data(sync="none")},
                    {"type": "blockdev-backup", "data": data(job_id="c", device="small", target="copy")},
                ],
                "properties": {"completion-mode": "grouped"},
            },
        ),
        status("null"),
        Do("query-jobs"),
    ],
    "individual, one fails": [
        qcow2("second"),
        breaking("copy", "copy.raw", iotype="write", errno=5),
        whole("small", "small.raw"),
        Do(
            "transaction",
            {
                "actions": [
                    {"type": "blockdev-backup", "data": data(sync="none")},
                    {"type": "blockdev-backup", "data": data(job_id="c", device="small", target="copy")},
                ],
            },
        ),
        status("null", "c"),
        Do("query-jobs"),
        Do("job-cancel", {"id": "b"}),
        status("null"),
    ],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path: Path, name: str) -> None:
    assert_same([*OPEN, *FAULTS[name]], tmp_path, prepare=prepare_small, ignore=("actual-size",))


def act(name: str, /, **options: Any) -> Json:
    return (
        {"type": "blockdev-backup", "data": data(**options)}
        if name == "backup"
        else {
            "type": name,
            "data": wire(options),
        }
    )


def together(*actions: Json, mode: str | None = None) -> Do:
    properties = {"properties": {"completion-mode": mode}} if mode is not None else {}
    return Do("transaction", {"actions": list(actions)} | properties)


ADD = act("block-dirty-bitmap-add", node="top", name="map", granularity=65536)

TRANSACTIONS: dict[str, list[Step]] = {
    "bitmap and backups": [
        qcow2("second"),
        together(ADD, act("backup"), act("backup", job_id="c", target="second", sync="top")),
        Until("query-jobs", lambda jobs: not jobs),
        NODES,
        closed("target"),
        same("top.qcow2", "target.qcow2"),
    ],
    "bitmap for its own backup": [
        together(ADD, act("backup", sync="full", bitmap="map", bitmap_mode="on-success")),
        *END,
        NODES,
    ],
    "grouped": [
        qcow2("second"),
        Do("blockdev-add", {"driver": "file", "node-name": "raw", "filename": "$DIR/target.raw"}),
        together(
            act("backup", sync="none"),
            act("backup", job_id="c", device="second", target="raw", sync="none"),
            mode="grouped",
        ),
        *LOOK,
        Do("job-cancel", {"id": "c"}),
        *END,
    ],
    "grouped, by hand": [
        qcow2("second"),
        together(
            act("backup", auto_finalize=False),
            act("backup", job_id="c", target="second", sync="top"),
            mode="grouped",
        ),
        WaitEvent("BLOCK_JOB_PENDING"),
        Until("query-jobs", lambda jobs: all(job["status"] == "pending" for job in jobs)),
        Do("job-finalize", {"id": "c"}),
        status("null"),
        status("null", "c"),
    ],
    "grouped with a bitmap": [together(ADD, act("backup"), mode="grouped"), *LOOK, NODES],
    "second action fails": [
        qcow2("short"),
        together(act("backup"), act("backup", job_id="c", target="short")),
        *LOOK,
        NODES,
    ],
    "second action fails, with a bitmap": [
        bitmap("add"),
        together(act("backup", bitmap="map", bitmap_mode="always"), act("abort")),
        *LOOK,
        NODES,
        bitmap("remove"),
    ],
    "same job twice": [together(act("backup"), act("backup")), *LOOK],
    "drive-backup in a transaction": [
        together(
            {
                "type": "drive-backup",
                "data": {"job-id": "b", "device": "top", "target": "$DIR/new.img", "sync": "full", "format": "qcow2"},
            },
            act("abort"),
        ),
        *LOOK,
        NODES,
        layout("new.img"),
    ],
}


@pytest.mark.parametrize("name", TRANSACTIONS)
def test_transaction(tmp_path: Path, name: str) -> None:
    # Two jobs that run at a time end in any order.
    ordered = name not in ("bitmap and backups", "grouped, by hand")
    assert_same([*OPEN, *TRANSACTIONS[name]], tmp_path, prepare=prepare, ignore=("actual-size",), events=ordered)


DRIVE: dict[str, list[Step]] = {
    "full": [drive(), *END, layout("new.img"), same("top.qcow2", "new.img")],
    "top": [drive(sync="top"), *END, layout("new.img"), Call(lambda where: backing_of(where, "new.img"))],
    "none": [
        drive(sync="none"),
        NODES,
        *LOOK,
        Do("job-cancel", {"id": "b"}),
        *END,
        NODES,
        layout("new.img"),
        Call(lambda where: backing_of(where, "new.img")),
    ],
    "raw": [drive(format="raw"), *END, same("top.qcow2", "new.img")],
    "top, elsewhere": [
        drive(sync="top", target="$DIR/sub/new.img"),
        Call(lambda where: (where / "sub").mkdir()),
        drive(sync="top", target="$DIR/sub/new.img"),
        *END,
    ],
    "raw, top": [drive(format="raw", sync="top"), *LOOK],
    "top of a bottom": [drive(device="base", sync="top"), *END, layout("new.img")],
    "existing": [
        drive(mode="existing", target="$DIR/nope.img"),
        drive(mode="existing", target="$DIR/short.qcow2"),
        drive(mode="existing", target="$DIR/second.qcow2"),
        *END,
        same("top.qcow2", "second.qcow2"),
    ],
    "existing raw": [
        drive(mode="existing", target="$DIR/target.raw", format="raw"),
        *END,
        same("top.qcow2", "target.raw"),
    ],
    "existing, none": [
        drive(mode="existing", target="$DIR/second.qcow2", sync="none"),
        NODES,
        Do("job-cancel", {"id": "b"}),
        *END,
    ],
    "misuse": [
        drive(device="nope"),
        drive(format="nope"),
        drive(format="quorum"),
        drive(target="/nowhere/new.img"),
        drive(mode="sometimes"),
        drive(job_id="1"),
        drive(sync="bitmap"),
        drive(sync="incremental", bitmap="nope"),
        drive(filter_node_name="top"),
        Do("drive-backup", {"device": "top", "target": "$DIR/new.img", "sync": "full"}),
        *LOOK,
    ],
    "compressed": [drive(compress=True), *END, layout("new.img"), same("top.qcow2", "new.img")],
    "compressed raw": [drive(compress=True, format="raw"), *LOOK],
    "incremental": [
        bitmap("add", granularity=65536),
        drive(bitmap="map", bitmap_mode="on-success"),
        status("null"),
        drive(sync="incremental", bitmap="map", target="$DIR/second.qcow2", mode="existing"),
        status("null"),
        NODES,
    ],
}


def backing_of(where: Path, name: str) -> Json:
    info = json.loads(tool(where, "qemu-img", "info", "-U", "--output=json", name))
    text = info["backing-filename"].replace(f"{where}/", "")
    return [json.loads(text[5:]) if text.startswith("json:") else text, info["backing-filename-format"]]


@pytest.mark.parametrize("name", DRIVE)
def test_drive_backup(tmp_path: Path, name: str) -> None:
    assert_same([*OPEN, *DRIVE[name]], tmp_path, prepare=prepare, ignore=("actual-size",))


def filters(**options: Any) -> Do:
    return Do(
        "blockdev-add",
        {"driver": "copy-before-write", "node-name": "cbw", "file": "top", "target": "target"} | wire(options),
    )


NODE_CASES: dict[str, list[Step]] = {
    "options": [
        filters(bitmap={"node": "nope", "name": "map"}),
        filters(bitmap={"node": "top", "name": "map"}),
        filters(bitmap={"node": "top"}),
        filters(target="nope"),
        filters(file="nope"),
        filters(on_cbw_error="never"),
        filters(cbw_timeout=-1),
        filters(cbw_timeout=1 << 32),
        Do("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw", "file": "top"}),
        Do("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw", "target": "top"}),
        Do("blockdev-add", {"driver": "snapshot-access", "node-name": "snap"}),
        NODES,
    ],
    "both": [
        filters(on_cbw_error="break-snapshot", cbw_timeout=10),
        Do("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "cbw"}),
        Do("x-debug-query-block-graph"),
        NODES,
        Do("blockdev-del", {"node-name": "cbw"}),
        Do("blockdev-del", {"node-name": "snap"}),
        Do("blockdev-del", {"node-name": "cbw"}),
        NODES,
    ],
    "bitmap": [
        bitmap("add"),
        filters(bitmap={"node": "top", "name": "map"}),
        NODES,
        bitmap("remove"),
    ],
    "bitmap of another size": [
        qcow2("short"),
        Do("block-dirty-bitmap-add", {"node": "short", "name": "m"}),
        filters(bitmap={"node": "short", "name": "m"}),
    ],
    "snapshot-access over something else": [
        Do("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "top"}),
        Do("x-debug-query-block-graph"),
        backup(device="snap"),
        *END,
    ],
    "backup of the snapshot": [
        filters(),
        Do("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "cbw"}),
        qcow2("second"),
        backup(device="snap", target="second"),
        *END,
        closed("second"),
        same("top.qcow2", "second.qcow2"),
    ],
    "names above": [
        filters(),
        Do("blockdev-add", {"driver": "raw", "node-name": "window", "offset": 512, "file": "cbw"}),
        NODES,
    ],
    "reopen": [
        filters(),
        Do("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "cbw"}),
        Do("blockdev-add", {"driver": "raw", "node-name": "disk", "file": "top"}),
        Do("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "disk", "file": "cbw"}]}),
        Do("x-debug-query-block-graph"),
        Do("blockdev-reopen", {"options": [filters(on_cbw_error="break-snapshot").arguments]}),
        Do(
            "blockdev-reopen",
            {"options": [{"driver": "snapshot-access", "node-name": "snap", "file": "cbw", "discard": "unmap"}]},
        ),
        Do("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "disk", "file": "top"}]}),
        Do("blockdev-del", {"node-name": "snap"}),
        Do("blockdev-del", {"node-name": "cbw"}),
        NODES,
    ],
    "backup to the target's own filter": [filters(), backup(target="cbw"), *LOOK],
}


@pytest.mark.parametrize("name", NODE_CASES)
def test_nodes(tmp_path: Path, name: str) -> None:
    assert_same([*OPEN, *NODE_CASES[name]], tmp_path, prepare=prepare, ignore=("actual-size",))


HMP_LINES = """
help drive_backup
drive_backup
drive_backup top
drive_backup nope new.img
drive_backup -q top new.img
drive_backup top new.img
drive_backup -f top new.img nope
drive_backup -n top nope.img
drive_backup -n top short.qcow2
drive_backup -c top new.img raw
drive_backup -f -c -n top second.qcow2 qcow2 x
drive_backup -fn top second.qcow2
drive_backup "" new.img
drive_backup top ""
drive_backup top new.img ""
drive_backup top sub/new.img
drive_backup -f top sub/new.img
""".strip().splitlines()


def test_human_monitor(qemu_system: str, tmp_path: Path) -> None:
    node = "qcow2,node-name=top,file.driver=file,file.filename=top.qcow2"
    machine = [qemu_system, "-M", "none", "-display", "none", "-S", "-blockdev", node, "-qmp", "stdio"]
    answers = []
    for name, command in (("theirs", machine), ("ours", [*BLOCKMON, "--blockdev", node, "--qmp", "stdio"])):
        where = tmp_path / name
        where.mkdir()
        prepare(where)
        answers.append(human_monitor(command, HMP_LINES, where))
    for line, theirs, ours in zip(HMP_LINES, *answers, strict=True):
        assert ours == theirs, line

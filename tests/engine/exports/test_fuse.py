"""FUSE exports: a file of the host that is a disk. Other programs use it; the engine's process never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import QMPError
from tests.engine.exports.conftest import SIZE, Serving
from tests.interop.differential import Call, Do, Step, WaitEvent, assert_same

MIB = 1 << 20


def _can_mount() -> bool:
    """Whether this machine lets one mount at all: containers often don't."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        return False
    status = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(status.split()[1], 16) & 1 << 21)  # CAP_SYS_ADMIN


def linux() -> tuple[int, ...]:
    """The kernel's version."""
    return tuple(int(number) for number in os.uname().release.split(".")[:2])


pytestmark = pytest.mark.skipif(not _can_mount(), reason="needs /dev/fuse and the right to mount")


def run(*command: str | Path) -> str:
    """What a program says; it must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code: str, path: Path) -> Any:
    """What *code* prints, as JSON, with the file's name in ``path``, in a process of its own."""
    return json.loads(run(sys.executable, "-c", f"import json, os\npath = {str(path)!r}\n{code}"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Serving, Path]]:
    """An engine with the node "disk" (raw, 4 MiB of holes), and the file it is to appear at."""
    serving = Serving(tmp_path)
    try:
        serving.raw("disk", discard="unmap")
        path = tmp_path / "mount"
        path.write_bytes(b"below")
        yield serving, path
    finally:
        serving.engine.close()
    assert path.read_bytes() == b"below"
    for thread in [thread for thread in threading.enumerate() if thread.name == "fuse"]:
        thread.join(20)
        assert not thread.is_alive()


def export(serving: Serving, path: Path, **options: Any) -> None:
    serving.do(
        "block-export-add", **({"type": "fuse", "id": "e", "node_name": "disk", "mountpoint": str(path)} | options)
    )


def test_a_file_that_cp_and_cmp_take_for_one(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    data = os.urandom(3 * MIB + 17)
    (serving.folder / "data").write_bytes(data)
    export(serving, path, writable=True)
    run("dd", f"if={serving.folder / 'data'}", f"of={path}", "conv=notrunc,fsync", "bs=100000")
    assert (serving.folder / "disk.raw").read_bytes() == data + bytes(SIZE - len(data))
    run("cp", path, serving.folder / "copy")
    run("cmp", path, serving.folder / "copy")
    found = python("s = os.stat(path); print(json.dumps([s.st_size, s.st_blocks * 512, s.st_mode]))", path)
    assert found == [SIZE, (serving.folder / "disk.raw").stat().st_blocks * 512, 0o100600]


def test_a_file_copied_over_it_is_what_the_disk_begins_with(mounted: tuple[Serving, Path]) -> None:
    """cp, dd and the shell empty a file before they write to it; the disk stays as long as it is."""
    serving, path = mounted
    data = os.urandom(MIB)
    (serving.folder / "data").write_bytes(data)
    export(serving, path, writable=True)
    run("cp", serving.folder / "data", path)
    assert (serving.folder / "disk.raw").read_bytes() == data + bytes(SIZE - MIB)
    run("sh", "-c", f"printf xyz > {path}")
    assert (serving.folder / "disk.raw").read_bytes() == b"xyz" + data[3:] + bytes(SIZE - MIB)
    assert serving.engine.graph.nodes["disk"].length == SIZE


@pytest.mark.skipif(linux() < (6, 6), reason="Linux maps no such file before 6.6")
def test_the_file_can_be_mapped_into_memory(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    export(serving, path, writable=True)
    code = """import mmap
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    memory[5000:5003] = b"abc"
    memory.flush()
    print(len(memory))"""
    assert python(code, path) == SIZE
    assert (serving.folder / "disk.raw").read_bytes()[4999:5004] == b"\0abc\0"


def test_what_others_change_is_seen_at_once(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    export(serving, path)
    reader = subprocess.Popen(
        [sys.executable, "-uc", f"import os\nf = os.open({str(path)!r}, 0)\nwhile input(): print(os.pread(f, 3, 5))"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader:
        for data in (b"abc", b"xyz"):
            serving.engine.graph.nodes["disk"].write(5, memoryview(data))
            reader.stdin.write("go\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == f"{data!r}\n"
        reader.stdin.close()


def test_holes_and_zeros(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    export(serving, path, writable=True)
    run("dd", "if=/dev/urandom", f"of={path}", "conv=notrunc", "bs=1M", "count=4")
    run("fallocate", "-p", "-o", str(MIB), "-l", str(MIB), path)
    assert (serving.folder / "disk.raw").stat().st_blocks * 512 <= 3 * MIB
    holes = (
        "f = os.open(path, 0); print(json.dumps([os.lseek(f, 0, os.SEEK_HOLE), os.lseek(f, 1 << 20, os.SEEK_DATA)]))"
    )
    assert python(holes, path) == [MIB, 2 * MIB]
    run("fallocate", "-z", "-o", str(3 * MIB), "-l", str(MIB), path)
    assert (serving.folder / "disk.raw").read_bytes()[3 * MIB :] == bytes(MIB)


def test_growing(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    export(serving, path, writable=True, growable=True)
    run("dd", "if=/dev/zero", f"of={path}", "conv=notrunc", "bs=1M", "seek=4", "count=2")
    assert serving.engine.graph.nodes["disk"].length == 6 * MIB
    run("fallocate", "-o", str(6 * MIB), "-l", str(MIB), path)
    run("truncate", "-s", str(9 * MIB), path)
    assert python("print(os.stat(path).st_size)", path) == 9 * MIB


def test_who_has_the_file_open_loses_it_with_the_export(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    export(serving, path)
    code = f"""import os
f = os.open({str(path)!r}, 0)
print("open")
input()
try:
    os.pread(f, 1, 0)
except OSError as error:
    print(error.errno)"""
    holder = subprocess.Popen([sys.executable, "-uc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "open\n"
        serving.do("block-export-del", id="e")
        serving.wait_event("BLOCK_EXPORT_DELETED")
        assert path.read_bytes() == b"below"
        output, _ = holder.communicate("\n", timeout=20)
    assert output == "107\n"  # ENOTCONN


def test_an_unmount_by_somebody_else_ends_the_export(mounted: tuple[Serving, Path]) -> None:
    serving, path = mounted
    export(serving, path)
    run("umount", path)
    serving.wait_event("BLOCK_EXPORT_DELETED")
    assert serving.do("query-block-exports") == []
    export(serving, path)
    with pytest.raises(QMPError, match="There already is a FUSE export"):
        export(serving, path, id="f")


# -- beside the real one ---------------------------------------------------------------------------------------------

MOUNT = "$DIR/mount"
ADD = Do("blockdev-add", {"driver": "file", "node-name": "f", "filename": "$DIR/a.raw"})


def add(**options: Any) -> Do:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Do("block-export-add", {"type": "fuse", "id": "e", "node-name": "f", "mountpoint": MOUNT} | given)


def options_of(path: Path) -> list[str]:
    """How it is mounted, but for how much is read at a time."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    options = next(words[3] for words in lines if words[1] == str(path))
    return [option for option in options.split(",") if not option.startswith("max_read=")]


def script(code: str, mode: str = "os.O_RDWR") -> Call:
    """Run *code* on the mounted file: the numbers it gets, and errors by their names."""
    lines = "\n".join(f"attempt(lambda: {line})" for line in code.splitlines())
    program = f"""import errno, json
found = []
f = os.open(path, {mode})
def attempt(what):
    try:
        value = what()
        found.append(len(value) if isinstance(value, bytes) else value)
    except OSError as error:
        found.append(errno.errorcode[error.errno])
{lines}
print(json.dumps(found))"""
    return Call(lambda where: python(program, where / "mount"))


CASES: dict[str, list[Step]] = {
    "errors": [
        ADD,
        add(mountpoint="$DIR"),
        add(mountpoint="$DIR/none"),
        add(node_name="g"),
        add(id="1"),
        add(allow_other="maybe"),
        add(),
        add(id="e2"),
        Do("query-block-exports"),
        Do("block-export-del", {"id": "e"}),
        WaitEvent("BLOCK_EXPORT_DELETED"),
        Do("query-block-exports"),
    ],
    "permissions": [ADD, add(), Do("x-debug-query-block-graph")],
    "permissions of a writer": [ADD, add(writable=True), Do("x-debug-query-block-graph")],
    "permissions of a file that would grow": [ADD, add(growable=True), Do("x-debug-query-block-graph")],
    "permissions of a growing file": [ADD, add(writable=True, growable=True), Do("x-debug-query-block-graph")],
    "writable": [
        ADD,
        add(writable=True),
        script(
            """os.pwrite(f, b"x" * 100, 0)
os.pread(f, 100, (1 << 20) - 50)
os.pread(f, 100, 1 << 20)
os.pwrite(f, b"x" * 100, (1 << 20) - 50)
os.pwrite(f, b"x" * 100, 1 << 20)
os.posix_fallocate(f, 0, 4096)
os.posix_fallocate(f, 1 << 20, 4096)
os.ftruncate(f, 3 << 20)
os.fstat(f).st_size
os.lseek(f, 2 << 20, os.SEEK_DATA)
os.lseek(f, 3 << 20, os.SEEK_HOLE)
os.lseek(f, (3 << 20) + 1, os.SEEK_HOLE)
os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
os.stat(path).st_size"""
        ),
    ],
    "half a sector at the end": [
        Call(lambda where: os.truncate(where / "a.raw", 1000)),
        ADD,
        add(writable=True),
        script(
            """os.stat(path).st_size
os.pread(f, 2000, 0).hex()
os.lseek(f, 0, os.SEEK_HOLE)
os.lseek(f, 1010, os.SEEK_HOLE)
os.lseek(f, 1024, os.SEEK_HOLE)
os.lseek(f, 1025, os.SEEK_HOLE)
os.lseek(f, 1010, os.SEEK_DATA)
os.pwrite(f, b"x" * 100, 1000)
os.stat(path).st_size"""
        ),
        Call(lambda where: os.stat(where / "a.raw").st_size),
    ],
    **{
        f"modes and owners, {allow_other=}, {writable=}": [
            ADD,
            add(writable=writable, allow_other=allow_other),
            script(
                """os.utime(path)
os.utime(path, (1, 2))
os.chmod(path, 0o400)
os.chmod(path, 0o700)
os.chmod(path, 0o644)
os.chmod(path, 0o440)
os.chown(path, 1, -1)
os.chown(path, -1, 2)
[os.stat(path).st_mode, os.stat(path).st_uid, os.stat(path).st_gid]""",
                mode="os.O_RDONLY",
            ),
            Call(lambda where: options_of(where / "mount")),
        ]
        for allow_other in ("off", "on", "auto")
        for writable in (False, True)
    },
    "growable": [
        ADD,
        add(writable=True, growable=True),
        script(
            """os.pwrite(f, b"x" * 100, 1 << 21)
os.fstat(f).st_size
os.pread(f, 100, (1 << 21) - 50)
os.ftruncate(f, 512)
os.fstat(f).st_size"""
        ),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_like_the_daemon(case: str, qsd: str, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        (where / "a.raw").write_bytes(b"x" * 65536 + bytes((1 << 20) - 65536))
        (where / "mount").write_bytes(b"")

    assert_same(CASES[case], tmp_path, prepare=prepare)

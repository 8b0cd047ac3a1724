"""qemu-io in our monitor beside the real qemu-io: the same commands, one after another, on copies of one image."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.serving import BLOCKMON, TIMEOUT, human_monitor, plain
from tests.qemu import QemuImages

COMMANDS = """
map
write -P 0xaa 0 4k
write -P 0xaa 512 1536
write -z 4k 64k
write -z -u 64k 64k
write -zn 64k 64k
write -q 0 1k
write -C 0 2k
write -f 0 1k
write -p 0 1k
write -P 999 0 1k
write -P x 0 1k
write -P 0x 0 1k
write -u 0 1k
write -n 0 64k
write -z -P 1 0 1k
write -s nofile 0 1k
write -P 1 -s nofile 0 1k
write -z -b 0 1k
write -c 2M 64k
write -c 2M 64k
write -c 2M 512
write -c 2M 100
write -c 100 64k
write -c 2000K 64k
write -c -P 7 2112k 128k
write -c -P 0 2304k 64k
write -c -z 2368k 64k
write -c -s pattern 2560k 64k
write -cC 2624k 64k
write -cq 2624k 64k
write -c -f 0 64k
write -c -b -z 0 64k
write -c 0 0
write -c 4032k 128k
write -c 9M 64k
write -c 0 4G
write 0
write
write 0 1 2
write x 1k
write 0 x
write 0 -1
write -1 1k
write 0 8E
write 0 4G
write 0 2147483136
write 1 1k
write 0 1
write 0 0
write 9M 1k
write -i 0 1k
write -P
write 0 1.5k
write 1kk 1k
write 1b 1k
write 0x10 0x20
write 010 010
write 0 1m
write 0 1e3
write 9223372036854775807 1k
write 99999999999999999999 1k
write -s pattern 0 300
write -s /dev/null 0 512
write -s . 0 512
write 1k 1k -q
write -q -- 0 1k
write -zfC 0 64k
read -v 0 300
read 0 1k
read -P 0 0 1k
read -P 0xaa 0 8k
read -v 500 30
read -v -P 1 0 16
read -v 1000 0x21
read -s 10 -l 10 -P 0xcd 0 100
read -s 10 -l 100 -P 0xcd 0 100
read -s 10 0 100
read -l 10 -P 0xcd 0 100
read -s 100 -P 0xcd 0 100
read -q 0 1k
read -C 0 1k
read -bP 0 1k
read -p 0 1k
read 9M 1k
read -z 0 1k
read -P 300 0 1k
read -s x -P 1 0 1k
read -vq 0 16
read
readv 0 1k 2k
readv -v 0 10 20
readv -P 0xcd 0 1k
readv -P 0 0 1k
readv -s 0 1k
readv 0 513
readv x 1
readv 0 8M 1
readv 0 2G 2G
writev 0 1k 2k
writev -P 3 0 512
writev -f 0 512
writev 1 512
writev 9M 512
writev -C 0 512 512
writev -z 0 512
writev -P 0x55 100 1 2 3 4
readv -P 0x55 100 10
aio_read 0 1k
aio_read -P 0 0 1k
aio_read -v 0 16
aio_read -C 0 1k
aio_read -q 0 1k
aio_read -i 0 1k
aio_read 0 x
aio_read 9M 1k
aio_read 0
aio_write 0 1k 1k
aio_write -P 5 0 1k
aio_write -u 0 64k
aio_write -z 0 64k 64k
aio_write -i 0 1k
aio_write -f 0 1k
aio_write 9M 1k
aio_write -n 0 1k
aio_flush
aio_flush x
flush
flush x
discard 0 64k
discard -C 0 64k
discard -q 0 64k
discard 1 1k
discard 9M 1k
discard 0 4G
discard 0
discard 0 x
map
map x
alloc 0
alloc 0 1k
alloc 0 4M
alloc 0 9M
alloc 9M 1
alloc 1 1
alloc x
alloc
length
length x
truncate
truncate x
truncate 4M
truncate -m foo 4M
truncate 4M -m off
truncate -m
truncate -x 4M
info
info x
sleep 1
sleep x
sleep
help nope
help map
nope
r 0 1k
w 0 1k
a 0
i
l
f
""".strip().splitlines()


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, images: QemuImages, tmp_path: Path) -> tuple[str, Path, Path]:
    """(format, image for qemu-io, its copy for ours), of 4 MiB, each in a folder of its own."""
    fmt: str = request.param
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    (theirs / "pattern").write_bytes(bytes(range(256)))
    if fmt == "qcow2":
        images.create(theirs / "base", "4M")
        images.io(theirs / "base", "write -P 3 0 128k", "write -z 1M 256k")
        images.create(theirs / "image", backing="base")
        images.io(theirs / "image", "write -P 4 64k 32k", "write -P 5 3M 64k")
    else:
        images.create(theirs / "image", "4M", fmt="raw")
    shutil.copytree(theirs, ours)
    return fmt, theirs / "image", ours / "image"


def real_qemu_io(program: str, fmt: str, path: Path, command: str) -> str:
    done = subprocess.run(
        ["timeout", str(TIMEOUT), program, "-d", "unmap", "-f", fmt, "-c", command, path.name],
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return plain(done.stdout).replace("qemu-io: ", "")


def test_answers_and_effects_are_qemu_io_s(qemu_io: str, images: QemuImages, image: tuple[str, Path, Path]) -> None:
    fmt, theirs, ours = image
    expected = [real_qemu_io(qemu_io, fmt, theirs, command) for command in COMMANDS]
    node = f"{fmt},node-name=n,discard=unmap,file.driver=file,file.filename={ours.name}"
    lines = [f'qemu-io n "{command}"' for command in COMMANDS]
    got = human_monitor([*BLOCKMON, "--blockdev", node, "--qmp", "stdio"], lines, ours.parent)
    for command, their, our in zip(COMMANDS, expected, got, strict=True):
        assert our == their, command
    images.assert_identical(theirs, ours, a_format=fmt, b_format=fmt)
    if fmt == "qcow2":
        images.check(ours)


def test_half_a_sector_at_the_end(qemu_io: str, tmp_path: Path) -> None:
    """It counts as a whole one, and is one once something is written to it."""
    commands = ["length", "map", "alloc 0 1k", "alloc 900 200", "read -v 900 124", "read 900 125", "read 1k 1"]
    commands += ["write -P 1 1000 24", "length", "read -P 1 1000 24", "write 512 513", "discard 512 512"]
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
        (folder / "image").write_bytes(b"x" * 1000)
    expected = [real_qemu_io(qemu_io, "raw", theirs / "image", command) for command in commands]
    lines = [f'qemu-io n "{command}"' for command in commands]
    node = "file,node-name=n,discard=unmap,filename=image"
    got = human_monitor([*BLOCKMON, "--blockdev", node, "--qmp", "stdio"], lines, ours)
    assert dict(zip(commands, got, strict=True)) == dict(zip(commands, expected, strict=True))
    assert (ours / "image").read_bytes() == (theirs / "image").read_bytes()

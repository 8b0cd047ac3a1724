"""Legacy drives: ``-drive`` on both command lines, drive_add and drive_del in both monitors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import QMPError
from tests.interop.differential import Do, OurPeer, Step, assert_same
from tests.interop.pc import hmp
from tests.qemu import QemuImages

ROOT = Path(__file__).parents[2]
PC = ("qemu-system-x86_64", "-M", "pc", "-display", "none", "-nodefaults", "-S", "-qmp", "stdio")

REFUSED = [
    "file=a.qcow2,if=foo",
    "file=a.qcow2,if=ide,index=1,bus=1",
    "file=a.qcow2,if=ide,index=7,unit=0",
    "file=a.qcow2,if=ide,unit=5",
    "file=a.qcow2,if=none,unit=x",
    "file=a.qcow2,if=none,media=foo",
    "file=a.qcow2,if=floppy,werror=stop",
    "file=a.qcow2,if=sd,rerror=stop",
    "file=a.qcow2,if=none,werror=foo",
    "file=a.qcow2,if=none,rerror=enospc",
    "file=a.qcow2,if=none,cache=foo",
    "file=a.qcow2,if=none,aio=foo",
    "file=a.qcow2,if=none,aio=native",
    "file=a.qcow2,if=none,iops=10,throttling.iops-total=10",
    "file=a.qcow2,if=none,readonly=on,read-only=on",
    "file=a.qcow2,if=none,group=g,throttling.group=h",
    "file=a.qcow2,if=none,foo=bar",
    "file=a.qcow2,if=none,id=1x",
    "file=a.qcow2,if=none,id=",
    "file=a.qcow2,if=none,format=foo",
    "file=a.qcow2,if=none,format=qcow2,driver=qcow2",
    "file=a.qcow2,if=none,bps=10,bps_rd=5",
    "file=a.qcow2,if=none,iops_max=10",
    "file=a.qcow2,if=none,bps=1e3",
    "file=a.qcow2,if=none,bps=-1",
    "file=a.qcow2,if=none,throttling.iops-size=5",
    "file=a.qcow2,if=none,throttling.bps-total=1000,throttling.bps-total-max=10",
    "file=a.qcow2,if=none,throttling.bps-total=10,throttling.bps-total-max-length=10",
    "file=a.qcow2,if=none,detect-zeroes=foo",
    "file=a.qcow2,if=none,discard=foo",
    "file=a.qcow2,if=none,stats-intervals.0=0",
    "file=a.qcow2,if=none,stats-intervals.0=x",
    "file=a.qcow2,if=none,stats-intervals.1=1",
    "file=a.qcow2,if=none,stats-intervals.x=1",
    "file=a.qcow2,if=none,stats-account-failed=maybe",
    "file=a.qcow2,if=none,read-only=maybe",
    "file=a.qcow2,if=none,snapshot=5",
    "file=a.qcow2,if=none,copy-on-read=x",
    "file=a.qcow2,if=none,file.filename=a.qcow2",
    "file=a.qcow2,if=none,backing.file.filename=x",
    "file=nope.qcow2,if=none",
    "file=a.raw,format=qcow2,if=none",
    "format=raw,if=none",
    "foo=1",
    "file=a.raw,format=raw,if=scsi",
    "file=a.raw,format=raw,if=sd",
    "file=a.raw,format=raw,if=xen,unit=3",
    "file=a.raw,format=raw,if=ide,bus=5",
]

MADE = [
    "if=none",
    "if=none,id=x",
    "if=none,id=x,snapshot=on",
    "file=,if=none,id=x",
    "file=a.qcow2,if=none,id=x",
    "file=a.qcow2",
    "file=a.raw,format=raw,if=virtio",
    "file=a.raw,format=raw,if=virtio,index=3",
    "if=floppy",
    "if=ide,media=cdrom,index=2",
    "file=a.raw,format=raw,if=ide,media=cdrom",
    "file=a.raw,format=raw,if=none,media=cdrom",
    "file=a.raw,format=raw,if=none,unit=1,bus=2",
    "file=a.qcow2,if=ide,id=i,cache=none,throttling.iops-total=100,stats-intervals.0=60,werror=stop",
    "file=a.qcow2,if=none,iops=100,iops_max=200,throttling.iops-total-max-length=3,iops_size=8192,group=g",
    "file=a.qcow2,if=none,bps_rd=1000000,bps_wr=2000000",
    "file=a.qcow2,if=none,cache=writethrough",
    "file=a.qcow2,if=none,cache=unsafe,cache.direct=on",
    "file=a.qcow2,if=none,cache=directsync",
    "file=a.qcow2,if=none,detect-zeroes=unmap",
    "file=a.qcow2,if=none,readonly=on",
    "file=a.qcow2,if=none,node-name=foo,l2-cache-size=1M,lazy-refcounts=on",
    "file.filename=a.qcow2,if=none",
    "driver=qcow2,file.driver=file,file.filename=a.qcow2,if=none",
    "file=b.qcow2,if=none,werror=ignore,rerror=stop",
    "file=a.qcow2,if=ide,index=0,file=b.qcow2",
]


@pytest.fixture
def folder(tmp_path: Path, images: QemuImages) -> Path:
    prepare(images, tmp_path)
    return tmp_path


def prepare(images: QemuImages, where: Path) -> None:
    (where / "a.raw").write_bytes(bytes(1 << 20))
    images.run("create", "-q", "-f", "qcow2", where / "a.qcow2", "1M")
    images.run("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", where / "b.qcow2")


def emulator() -> str:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    return found


def make(engine: Engine, text: str) -> None:
    def run() -> None:
        options = engine.drives.parse(text)
        backend = engine.drives.add(options)
        try:
            engine.drives.attach_device(options)
        except BaseException:
            engine.drives.discard(backend)
            raise

    engine.control.call(run)


@pytest.mark.parametrize("text", REFUSED)
def test_same_refusal(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    real = subprocess.run(
        [emulator(), *PC[1:7], "-drive", text], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert real.returncode == 1
    expected = real.stderr.split(f"-drive {text}: ", 1)[1].splitlines()[0]
    engine = Engine()
    try:
        with pytest.raises(QMPError) as caught:
            make(engine, text)
        assert caught.value.desc.splitlines()[0] == expected
        assert engine.execute("query-block") == []
        assert engine.execute("query-named-block-nodes") == []
    finally:
        engine.close()


@pytest.mark.parametrize("text", MADE)
def test_same_device(text: str, folder: Path, images: QemuImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """What query-block and the permission graph say of a drive, and info block in words."""
    emulator()
    talk: list[Step] = [
        Do("query-block"),
        Do("x-debug-query-block-graph"),
        Do("query-blockstats"),
    ]

    def ours() -> OurPeer:
        monkeypatch.chdir(folder / "play/ours")
        peer = OurPeer()
        make(peer._engine, text)
        return peer

    assert_same(
        talk,
        folder / "play",
        prepare=lambda where: prepare(images, where),
        real=["sh", "-c", 'cd "$0" && exec "$@"', str(folder / "play/real"), *PC, "-drive", text],
        # Devices of the board have no id, and paths that count all parts of it.
        ignore={"qdev"},
        ours=ours,
    )


MONITOR: dict[str, Sequence[Step]] = {
    "drive_add": [
        hmp("drive_add 0 if=none,id=x,file=$DIR/a.qcow2"),
        hmp("drive_add 0 if=none,id=x"),
        hmp("drive_add 0 if=none,id=y"),
        hmp("drive_add 0 if=none"),
        hmp("drive_add 0:0 if=none,file=$DIR/nope"),
        hmp("drive_add 0 foo=1"),
        hmp("drive_add"),
        hmp("drive_add 0"),
        hmp("drive_add 0 if=scsi,file=$DIR/a.raw,format=raw"),
        hmp("drive_add 0 if=virtio,file=$DIR/a.raw,format=raw"),
        hmp("info block x"),
        hmp("info block"),
        Do("query-block"),
    ],
    "drive_add -n": [
        hmp("drive_add -n 0 driver=qcow2,node-name=nn,file.driver=file,file.filename=$DIR/a.qcow2"),
        hmp("drive_add -n 0 driver=qcow2,file.driver=file,file.filename=$DIR/a.qcow2"),
        hmp("drive_add -n 0 node-name=n2,driver=nope"),
        Do("query-named-block-nodes", {"flat": True}),
        hmp("drive_del nn"),
        Do("query-named-block-nodes"),
    ],
    "drive_del": [
        hmp("drive_add 0 if=none,id=x,file=$DIR/a.qcow2"),
        hmp("drive_add 0 if=none,id=y"),
        hmp("drive_del x"),
        hmp("drive_del x"),
        hmp("drive_del y"),
        hmp("drive_del"),
        Do("query-block"),
        Do("query-named-block-nodes"),
    ],
    "drive_del under a device": [
        hmp("drive_add 0 if=none,id=x,file=$DIR/a.qcow2,werror=stop"),
        Do("device_add", {"driver": "virtio-blk-pci", "id": "d", "drive": "x"}),
        Do("query-block"),
        Do("x-debug-query-block-graph"),
        hmp("drive_del x"),
        Do("query-block"),
        Do("query-named-block-nodes"),
        hmp("drive_add 0 if=none,id=x,file=$DIR/a.qcow2"),
    ],
    "throttling of a drive": [
        hmp("drive_add 0 if=none,id=x,file=$DIR/a.qcow2,iops=100,bps_rd=5000,iops_size=4096"),
        hmp("info block"),
        Do("query-block"),
        hmp("block_set_io_throttle x 0 0 0 0 0 0"),
        Do("query-block"),
    ],
}


@pytest.mark.parametrize("name", MONITOR)
def test_same_monitor(name: str, tmp_path: Path, images: QemuImages) -> None:
    emulator()

    def ours() -> OurPeer:
        peer = OurPeer()
        peer.ask("stop", {})
        peer.events.clear()
        return peer

    assert_same(MONITOR[name], tmp_path, prepare=lambda where: prepare(images, where), real=PC, ours=ours)


def test_the_command_line(tmp_path: Path, images: QemuImages) -> None:
    """Drives and devices on our command line, in an order that needs sorting; questions for help; a failure."""
    prepare(images, tmp_path)
    (tmp_path / "look.bmon").write_text("info block\n")
    program = [sys.executable, "-m", "blockmon", "run"]

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [*program, *args, str(tmp_path / "look.bmon")]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)

    done = run(
        *("--device", "virtio-blk-pci,drive=d,id=v,share-rw=on", "--device", '{"driver": "ide-hd", "drive": "n"}'),
        *("--drive", f"file={tmp_path}/a.qcow2,if=none,id=d", "--blockdev", "driver=null-co,node-name=n,size=1048576"),
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert f"{tmp_path}/a.qcow2 (qcow2)" in done.stdout
    assert "Attached to:      /machine/peripheral/v/virtio-backend" in done.stdout
    assert "Attached to:      /machine/peripheral-anon/device[0]" in done.stdout
    assert run("--drive", "format=help").stdout.startswith("Supported formats: blkdebug ")
    assert 'name "ide-hd"' in run("--device", "help").stdout
    assert "drive=<str>" in run("--device", "scsi-hd,help").stdout
    failed = run("--device", "ide-hd,drive=nope")
    assert failed.returncode == 3
    assert failed.stderr == "blockmon: --device ide-hd,drive=nope: Property 'ide-hd.drive' can't find value 'nope'\n"

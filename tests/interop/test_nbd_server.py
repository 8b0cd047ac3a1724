"""Our NBD server and the programs that people use: libnbd's tools, qemu-img, qemu-io, fio."""

import json
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from tests.conftest import find_tool
from tests.engine.exports.client import Client
from tests.engine.objects.certificates import Authority
from tests.interop.serving import BLOCKMON, Serve
from tests.qemu import QemuImages

SIZE = 16 << 20


def run(*command: str | Path) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Host:
    """An engine that exports nodes over a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        self.path = folder / "sock"
        self.do("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.path)}})

    def do(self, command: str, **arguments: Any) -> Any:
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.engine.submit(command, given).result(60)

    def open(self, name: str, image: Path, driver: str = "qcow2", **options: Any) -> None:
        file = {"driver": "file", "filename": str(image)}
        self.do("blockdev-add", driver=driver, node_name=name, file=file, **options)

    def export(self, node: str, **options: Any) -> str:
        """Export a node under its own name; the URI."""
        self.do("block-export-add", type="nbd", id=f"e-{node}", node_name=node, **options)
        return f"nbd+unix:///{node}?socket={self.path}"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.engine.close()


@pytest.fixture
def chain(tmp_path: Path, images: QemuImages) -> Path:
    """An overlay with data, zeros and holes over a base with data."""
    base = images.create(tmp_path / "base.qcow2", SIZE)
    images.io(base, "write -P 1 0 4M", "write -P 2 12M 1M")
    top = images.create(tmp_path / "top.qcow2", backing=base)
    images.io(top, "write -P 3 1M 64k", "write -z 2M 1M", "write -P 4 8M 128k")
    return top


def test_nbdinfo(host: Host, chain: Path, nbdinfo: str) -> None:
    host.open("top", chain)
    host.do("block-dirty-bitmap-add", node="top", name="b")
    uri = host.export("top", writable=True, allocation_depth=True, bitmaps=["b"], description="the top")
    (told,) = json.loads(run(nbdinfo, "--json", uri))["exports"]
    assert (told["export-size"], told["description"], told["is_read_only"]) == (SIZE, "the top", False)
    assert told["contexts"] == ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b"]
    assert [told[f"can_{name}"] for name in ("multi_conn", "fua", "trim", "fast_zero", "df", "cache")] == [True] * 6
    run("qemu-io", "-f", "raw", "-c", "write -P 9 5M 64k", uri)

    def extents(context: str) -> list[tuple[int, int, int]]:
        found = json.loads(run(nbdinfo, f"--map={context}", "--json", uri))
        return [(extent["offset"], extent["length"], extent["type"]) for extent in found]

    mega = 1 << 20
    assert extents("base:allocation") == [
        *((0, 2 * mega, 0), (2 * mega, mega, 3), (3 * mega, mega, 0), (4 * mega, mega, 3), (5 * mega, 65536, 0)),
        *((5 * mega + 65536, 3 * mega - 65536, 3), (8 * mega, 131072, 0), (8 * mega + 131072, 4 * mega - 131072, 3)),
        *((12 * mega, mega, 0), (13 * mega, 3 * mega, 3)),
    ]
    assert extents("qemu:dirty-bitmap:b") == [
        (0, 5 * mega, 0),
        (5 * mega, 65536, 1),
        (5 * mega + 65536, SIZE - 5 * mega - 65536, 0),
    ]
    depths = extents("qemu:allocation-depth")
    assert depths[:3] == [(0, mega, 2), (mega, 65536, 1), (mega + 65536, mega - 65536, 2)]
    assert {depth for _, _, depth in depths} == {0, 1, 2}


def test_contexts_are_the_daemons(host: Host, chain: Path, nbdinfo: str, tmp_path: Path) -> None:
    host.open("top", chain, read_only=True)
    ours = host.export("top", allocation_depth=True)
    socket = tmp_path / "real"
    daemon = subprocess.Popen(
        [
            *("timeout", "60", "qemu-storage-daemon"),
            *("--blockdev", f"qcow2,node-name=top,read-only=on,file.driver=file,file.filename={chain}"),
            *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
            *("--export", "nbd,id=e,node-name=top,allocation-depth=on", "--pidfile", str(tmp_path / "pid")),
        ]
    )
    try:
        while not (tmp_path / "pid").exists():
            assert daemon.poll() is None
        real = f"nbd+unix:///top?socket={socket}"
        for context in ("base:allocation", "qemu:allocation-depth"):
            assert run(nbdinfo, f"--map={context}", ours) == run(nbdinfo, f"--map={context}", real)
        told = [json.loads(run(nbdinfo, "--json", uri))["exports"][0] for uri in (ours, real)]
        for each in told:
            del each["uri"]
        assert told[0] == told[1]
    finally:
        daemon.terminate()
        daemon.wait()


def test_nbdcopy_both_ways(host: Host, chain: Path, tmp_path: Path, images: QemuImages) -> None:
    nbdcopy = find_tool("nbdcopy")
    host.open("top", chain, read_only=True)
    source = host.export("top")
    copy = tmp_path / "copy.raw"
    run(nbdcopy, "--connections=4", "--requests=16", source, copy)
    images.run("compare", "-f", "raw", "-F", "qcow2", copy, chain)
    target = images.create(tmp_path / "target.qcow2", SIZE)
    host.open("target", target)
    run(nbdcopy, "--connections=4", "--flush", source, host.export("target", writable=True))
    host.do("nbd-server-stop")
    host.do("blockdev-del", node_name="target")
    images.check(target)
    images.assert_identical(target, chain)


def test_qemu_img(host: Host, chain: Path, tmp_path: Path, images: QemuImages) -> None:
    host.open("top", chain, read_only=True)
    uri = host.export("top")
    copy = tmp_path / "copy.qcow2"
    images.run("convert", "-f", "raw", "-O", "qcow2", uri, copy)
    images.run("compare", "-f", "raw", "-F", "qcow2", uri, copy)
    images.assert_identical(copy, chain)
    seen = json.loads(images.run("map", "--output=json", "-f", "raw", uri))
    assert sum(piece["length"] for piece in seen) == SIZE
    assert [(piece["start"], piece["zero"]) for piece in seen[:3]] == [(0, False), (2 << 20, True), (3 << 20, False)]
    assert json.loads(images.run("info", "--output=json", uri))["virtual-size"] == SIZE


def test_qemu_io(host: Host, tmp_path: Path, images: QemuImages) -> None:
    image = images.create(tmp_path / "a.qcow2", SIZE)
    host.open("a", image, discard="unmap")
    uri = host.export("a", writable=True)
    run(
        *("qemu-io", "-f", "raw", "-d", "unmap"),
        *("-c", "write -P 5 0 5M", "-c", "write -f -P 6 1M 64k", "-c", "write -z -u 2M 1M", "-c", "discard 3M 1M"),
        *("-c", "flush", "-c", "read -P 5 0 1M", "-c", "read -P 6 1M 64k", "-c", "read -P 0 2M 2M", uri),
    )
    host.do("nbd-server-stop")
    host.do("blockdev-del", node_name="a")
    images.check(image)
    images.io(image, "read -P 5 4M 1M", "read -P 0 2M 2M")


def test_a_job_of_fio_verifies(host: Host, tmp_path: Path, images: QemuImages, fio: str, chain: Path) -> None:
    """Checksums of what sixteen requests in flight wrote, on an overlay, while a mirror and a backup run.

    In the end the mirror has what was written, and the backup what was there before.
    """
    then = tmp_path / "then.raw"
    images.run("convert", "-f", "qcow2", "-O", "raw", chain, then)
    host.open("top", chain)
    for name in ("mirror", "backup"):
        host.open(name, images.create(tmp_path / f"{name}.qcow2", SIZE))
    slow = {"sync": "full", "speed": 1 << 20}
    host.do("blockdev-mirror", job_id="mirror", device="top", target="mirror", filter_node_name="filter", **slow)
    host.do("blockdev-add", driver="raw", node_name="guest", file="filter")  # one node takes one job
    uri = host.export("guest", writable=True)
    host.do("blockdev-backup", job_id="backup", device="guest", target="backup", **slow)
    run(
        *(fio, "--name=x", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--iodepth=16"),
        *(f"--size={SIZE}", "--verify=crc32c", "--verify_state_save=0", "--output-format=json"),
    )
    assert {job["status"] for job in host.do("query-jobs")} == {"running"}
    for name in ("mirror", "backup"):
        host.do("block-job-set-speed", device=name, speed=0)
    while not next(job for job in host.do("query-block-jobs") if job["device"] == "mirror")["ready"]:
        pass
    host.do("block-job-cancel", device="mirror")
    while host.do("query-jobs"):
        pass
    host.do("nbd-server-stop")
    host.do("blockdev-del", node_name="guest")
    for name in ("top", "mirror", "backup"):
        host.do("blockdev-del", node_name=name)
        images.check(chain if name == "top" else tmp_path / f"{name}.qcow2")
    images.assert_identical(chain, tmp_path / "mirror.qcow2")
    images.assert_identical(tmp_path / "backup.qcow2", then, b_format="raw")


def test_fleecing(host: Host, tmp_path: Path, images: QemuImages) -> None:
    """What a disk was at one moment is read by NBD while its guest writes on."""
    disk = images.create(tmp_path / "disk.qcow2", SIZE)
    images.io(disk, f"write -P 1 0 {SIZE}")
    scratch = images.create(tmp_path / "scratch.qcow2", SIZE)
    host.open("disk", disk)
    host.open("scratch", scratch)
    host.do("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk", target="scratch")
    live = host.export("cbw", writable=True)
    host.do("blockdev-add", driver="snapshot-access", node_name="then", file="cbw")
    then = host.export("then")
    begun, stop = threading.Event(), threading.Event()

    def write() -> None:
        source = random.Random(3)
        with Client(host.path) as guest:
            guest.structured().go("cbw")
            while not stop.is_set():
                assert guest.write(source.randrange(SIZE // 4096) * 4096, b"\2" * 4096) == 0
                begun.set()

    guest = threading.Thread(target=write)
    guest.start()
    try:
        assert begun.wait(20)
        images.run("convert", "-f", "raw", "-O", "raw", then, tmp_path / "then.raw")
    finally:
        stop.set()
        guest.join()
    assert (tmp_path / "then.raw").read_bytes() == b"\1" * SIZE
    images.run("convert", "-f", "raw", "-O", "raw", live, tmp_path / "now.raw")
    assert b"\2" in (tmp_path / "now.raw").read_bytes()


def test_incremental_backup_by_a_bitmap(host: Host, tmp_path: Path, images: QemuImages, nbdinfo: str) -> None:
    """The full copy plus what the exported bitmap says is the disk: how backup programs pull."""
    disk = images.create(tmp_path / "disk.qcow2", SIZE)
    images.io(disk, "write -P 1 0 8M")
    host.open("disk", disk)
    live = host.export("disk", writable=True)
    copy = tmp_path / "copy.raw"
    host.do("block-dirty-bitmap-add", node="disk", name="b0")
    images.run("convert", "-f", "raw", "-O", "raw", live, copy)
    run("qemu-io", "-f", "raw", "-c", "write -P 7 3M 192k", "-c", "write -P 8 10M 64k", "-c", "write -z 0 64k", live)
    host.do("block-dirty-bitmap-disable", node="disk", name="b0")
    frozen = f"nbd+unix:///then?socket={host.path}"
    host.do("block-export-add", type="nbd", id="then", node_name="disk", name="then", bitmaps=["b0"])
    pieces = json.loads(run(nbdinfo, "--map=qemu:dirty-bitmap:b0", "--json", frozen))
    dirty = [(piece["offset"], piece["length"]) for piece in pieces if piece["type"] & 1]
    assert dirty == [(0, 65536), (3 << 20, 3 * 65536), (10 << 20, 65536)]
    with Client(host.path) as client, copy.open("r+b") as file:
        client.structured().go("then")
        for offset, length in dirty:
            file.seek(offset)
            file.write(client.read(offset, length))
    images.run("compare", "-f", "raw", "-F", "raw", copy, live)


def test_tcp(host: Host, chain: Path, nbdinfo: str) -> None:
    """Of the ports from the one asked for to the last one allowed, the first free one is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        host.do("nbd-server-stop")
        where = {"host": "127.0.0.1", "port": str(first), "to": first + 20, "ipv4": True}
        host.do("nbd-server-start", addr={"type": "inet", "data": where})
        host.open("top", chain, read_only=True)
        host.export("top")
        for port in range(first + 1, first + 21):
            done = subprocess.run(
                [nbdinfo, "--size", f"nbd://127.0.0.1:{port}/top"], capture_output=True, timeout=60, check=False
            )
            if done.returncode == 0:
                assert int(done.stdout) == SIZE
                return
    raise AssertionError("it listens nowhere")


def test_tls_with_gnutls_clients(host: Host, chain: Path, tmp_path: Path, nbdinfo: str, images: QemuImages) -> None:
    authority = Authority()
    for name, content in authority.files().items():
        (tmp_path / name).write_bytes(content)
    host.do("nbd-server-stop")
    host.do("object-add", **{"qom-type": "tls-creds-x509"}, id="tls", endpoint="server", dir=str(tmp_path))
    host.do("object-add", **{"qom-type": "authz-simple"}, id="who", identity="CN=client")
    address = {"type": "unix", "data": {"path": str(host.path)}}
    host.do("nbd-server-start", addr=address, tls_creds="tls", tls_authz="who")
    host.open("top", chain, read_only=True)
    plain = host.export("top")
    node = f"driver=nbd,server.type=unix,server.path={host.path},export=top,tls-creds=tls,tls-hostname=server"
    creds = f"tls-creds-x509,id=tls,endpoint=client,dir={tmp_path}"
    copy = tmp_path / "copy.qcow2"
    images.run("convert", "--object", creds, "--image-opts", node, "-O", "qcow2", copy)
    images.assert_identical(copy, chain)
    refused = subprocess.run([nbdinfo, plain], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0


def test_the_command_line(tmp_path: Path, nbdinfo: str) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1 << 20))
    socket = tmp_path / "sock"
    serve = Serve(
        *("--blockdev", f"file,node-name=f,filename={tmp_path / 'a.raw'}"),
        *("--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=1"),
        *("--export", "nbd,id=one,node-name=f,writable=on,name=disk"),
        *("--export", json.dumps({"type": "nbd", "id": "two", "node-name": "f", "name": "second"})),
    )
    assert [export["id"] for export in serve.ask("query-block-exports")["return"]] == ["two", "one"]
    (told,) = json.loads(run(nbdinfo, "--json", f"nbd+unix:///disk?socket={socket}"))["exports"]
    assert (told["export-size"], told["is_read_only"], told["can_multi_conn"]) == (1 << 20, False, False)
    listed = json.loads(run(nbdinfo, "--list", "--json", f"nbd+unix://?socket={socket}"))["exports"]
    assert [export["export-name"] for export in listed] == ["disk", "second"]
    serve.ask("quit")
    serve.wait()
    assert not socket.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--export", "nbd,id=e,node-name=f"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--export", "nbd,id=e,node-name=nope"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--export", "nbd,id=e,node-name=f,bitmaps.0=b"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--export", "nbd,id=e,node-name=f,bitmaps.0.node=f"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--export", "id=e,node-name=f"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--export", "nbd,id=e,node-name=f,writable=maybe"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--export", "nope,id=e,node-name=f"],
        ["--nbd-server", "addr.type=unix"],
        ["--nbd-server", "addr.path=sock"],
        ["--nbd-server", "addr.type=unix,addr.path=sock,max-connections=x"],
        ["--nbd-server", "addr.type=fd,addr.str=x"],
        ["--nbd-server", "addr.type=fd,addr.str=0"],
        ["--nbd-server", "addr.type=unix,addr.path=sock", "--nbd-server", "addr.type=unix,addr.path=sock2"],
    ],
)
def test_mistakes_on_the_command_line_are_told_as_the_daemon_does(options: list[str], tmp_path: Path, qsd: str) -> None:
    said = []
    for name, command in (("real", [qsd]), ("ours", BLOCKMON)):
        where = tmp_path / name
        where.mkdir()
        done = subprocess.run(
            ["timeout", "60", *command, "--blockdev", "null-co,node-name=f", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=where,
        )
        assert done.returncode == 1
        said.append(done.stderr.splitlines()[0].split(": ", 2)[2 if name == "ours" else 1 :])
    real, ours = (": ".join(words) for words in said)
    # Ours begins with the option at fault, the daemon's only with its text.
    assert ours == real.removeprefix(f"{options[-2]} {options[-1]}: ")
